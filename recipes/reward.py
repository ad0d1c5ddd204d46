"""Reward: train a toxicity classifier or a preference model, and judge it before PPO is paid by it."""

# Imports of torch and transformers stand inside the functions, so that --help answers at once.
from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.config.schema import Config, RewardTraining
from workbench.errors import UserError
from workbench.run.cli import Stage, main
from workbench.run.distributed import print_once
from workbench.run.folder import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from workbench.rewards.training.datasets import Pair

NAME = "reward"


def wanted(config: Config) -> bool:
    """Whether a reward model is to be trained; one that is given wins."""
    return config.reward is not None and config.reward.model is None


def settings(config: Config) -> RewardTraining:
    """The stage's section of the configuration."""
    assert config.reward is not None
    assert config.reward.train is not None
    return config.reward.train


def plan(config: Config) -> list[str]:
    """What the stage would do."""
    from reward_models import classifier, preference
    from workbench.rewards.training.datasets import check_settings, clean, label_names, labelled, pairs, texts
    from workbench.rewards.training.validation import require_both

    train = settings(config)
    check_settings(train)
    assert config.reward is not None
    loader = preference.load if train.objective == "preference" else classifier.load
    valid = set(inspect.signature(loader).parameters) - {"model"}
    for name in config.reward.options:
        if name not in valid:
            raise UserError(f"reward.options.{name}: no such option of this reward; valid: {', '.join(sorted(valid))}")
    if train.objective == "preference":
        rows, aim = len(pairs(train)[0]), "pays for what is preferred"
    else:
        found, names = labelled(train, config.seed)
        labels = label_names(train, names)
        require_both([name == train.target_label for name in texts("validation", train.validation, labels)[1]])
        if train.clean_validation:
            clean("clean_validation", train.clean_validation)
        rows, aim = len(found), f"pays for {train.target_label}"
    check_window(config)
    steps = -(-rows // train.batch_size) * train.epochs
    return [f"{steps:g} steps of {train.batch_size} from {rows}, {train.model}, {aim}"]


def check_window(config: Config) -> None:
    """Raises UserError where texts would be longer than what the model reads."""
    from workbench.models.loading import context_length, load_config, load_tokenizer

    train = settings(config)
    limit = context_length(load_config(train.model), load_tokenizer(train.model))
    if limit is not None and train.max_tokens > limit:
        raise UserError(
            f"reward.train.max_tokens: {train.max_tokens}, but {train.model} reads {limit} tokens; lower it"
        )


def run(run: Run) -> dict[str, Any]:
    """Train, save a transformers folder in the run's reward folder, and judge what was saved on the validation rows."""
    from transformers import set_seed

    from workbench.models.loading import load_tokenizer
    from workbench.rewards.training.datasets import check_settings, sources
    from workbench.rewards.training.trainers import AVERAGE_FILE
    from workbench.run.hf_trainer import run_trainer

    config, train, folder = run.config, settings(run.config), run.stage(NAME)
    check_settings(train)
    set_seed(config.seed)
    tokenizer = load_tokenizer(train.model)
    check_window(config)
    options: dict[str, Any] = {"folder": folder, "seed": config.seed, "track": config.track}
    if train.objective == "preference":
        trainer, judge = train_pairs(config, tokenizer, options)
    else:
        trainer, judge = train_labels(config, tokenizer, options)
    averaged = [AVERAGE_FILE] if train.average_from is not None else []
    run_trainer(trainer, folder, NAME, last_files=["trainer_state.json", *averaged])
    tokenizer.model_max_length = min(train.max_tokens, tokenizer.model_max_length)  # read as far as it was trained
    save(trainer, tokenizer, folder)
    report = judge(folder)
    if trainer.is_world_process_zero():
        write_report(report, folder)
    print_once(summary(report))
    return {
        "inputs": {"model": train.model, "data": [source.path for _, source in sources(train)]},
        "metrics": {name: value for name, value in report.items() if isinstance(value, int | float)},
    }


Judge = Callable[[Path], dict[str, Any]]


def train_labels(config: Config, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> tuple[Trainer, Judge]:
    """The trainer of a classifier, and what judges the saved one."""
    from reward_models.classifier import load
    from workbench.rewards.training.datasets import clean, label_names, labelled, texts
    from workbench.rewards.training.trainers import classifier_trainer
    from workbench.rewards.training.validation import classifier_report, require_both

    train = settings(config)
    rows = labelled(train, config.seed)
    labels = label_names(train, rows[1])
    validation = texts("validation", train.validation, labels)
    is_wanted = [name == train.target_label for name in validation[1]]
    require_both(is_wanted)
    domain = clean("clean_validation", train.clean_validation) if train.clean_validation else []

    def judge(folder: Path) -> dict[str, Any]:
        # Loading it as PPO will do runs the polarity test.
        reward = load(str(folder), target_label=train.target_label, polarity_pair=tuple(train.polarity_pair))
        return classifier_report(
            lambda some: reward([""] * len(some), some), validation[0], is_wanted, domain, threshold=train.threshold
        )

    return classifier_trainer(train, tokenizer, labels, rows, validation, **options), judge


def train_pairs(config: Config, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> tuple[Trainer, Judge]:
    """The trainer of a preference model, and what judges the saved one."""
    from reward_models.preference import encode, load
    from workbench.rewards.training.datasets import pairs
    from workbench.rewards.training.trainers import preference_trainer
    from workbench.rewards.training.validation import preference_report

    train = settings(config)
    rows, validation = pairs(train)

    def ids(part: list[Pair]) -> list[tuple[list[int], list[int]]]:
        prompts, chosen, rejected = (list(column) for column in zip(*part, strict=True))
        encoded = (encode(tokenizer, prompts, completions, train.max_tokens) for completions in (chosen, rejected))
        return list(zip(*encoded, strict=True))

    def judge(folder: Path) -> dict[str, Any]:
        reward = load(str(folder), max_tokens=train.max_tokens)
        return preference_report(reward, validation)

    return preference_trainer(train, tokenizer, ids(rows), ids(validation), **options), judge


def save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write an ordinary transformers folder; an adapter is merged into it."""
    from peft import PeftModel

    from workbench.run.files import writing
    from workbench.run.hf_trainer import remove_checkpoints

    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    if trainer.is_world_process_zero():
        with writing(folder):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            remove_checkpoints(folder)
    trainer.accelerator.wait_for_everyone()


def write_report(report: dict[str, Any], folder: Path) -> None:
    """report.json and report.html, and the temperature, which the reward reads when it is asked for probabilities."""
    from workbench.report.reward_page import reward_page
    from workbench.run.files import write_text

    write_text(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "report.html", reward_page(report))
    if report["kind"] == "classifier":
        temperature = {"temperature": report["calibration"]["temperature"]}
        write_text(folder / "calibration.json", json.dumps(temperature) + "\n")


def summary(report: dict[str, Any]) -> str:
    """The report in a line, and a line for each warning."""
    if report["kind"] == "classifier":
        quality = f"AUROC {report['auroc']:.4f}, accuracy {report['accuracy']:.4f}"
        text = f"reward: {quality} on {report['texts']} validation texts"
    else:
        text = f"reward: {report['accuracy']:.1%} of {report['pairs']} validation pairs in the right order"
    return "\n".join([text, *(f"reward: warning: {warning}" for warning in report["warnings"])])


STAGE = Stage(NAME, wanted, plan, run)

if __name__ == "__main__":
    main([STAGE], __doc__)
