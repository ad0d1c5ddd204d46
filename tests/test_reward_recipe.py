"""The stage `reward`: what it trains, how it stops, resumes and averages, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reward_runs import NAMES, labeled, launch, lines
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.trainer_pt_utils import LabelSmoother

from recipes import ppo
from workbench.errors import Interrupted, UserError
from workbench.rewards.registry import load_reward
from workbench.rewards.training import saving
from workbench.rewards.training.averaging import AverageWeights
from workbench.rewards.training.trainers import balanced_weights, grouped_order, weighted_loss
from workbench.run import cli
from workbench.run.hf_trainer import StepCallback


def test_every_option_of_a_classifier_goes_into_an_ordinary_folder_that_rewards_ppo(
    in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {
        "lora": {"r": 8, "alpha": 16},
        "learning_rate": 5e-3,
        "class_weights": "balanced",
        "perturbation_rate": 0.2,
        "average_from": 0.7,
        "more_data": [labeled(tmp_path / "more.jsonl", 64, 2, rude_fraction=0.25)],
        "clean_data": [lines(tmp_path / "clean.jsonl", [{"text": f"{name} went home."} for name in NAMES * 4])],
        "clean_validation": lines(tmp_path / "domain.jsonl", [{"text": f"{name} is at home."} for name in NAMES]),
    }
    folder = launch(tmp_path, train, chain=[ppo.STAGE])
    printed = capsys.readouterr().out
    for source in ("data", "more_data[0]", "clean_data[0]", "validation", "clean_validation"):
        assert printed.count(f"reward.train.{source}: ") == 1, "every source is loaded and printed once"
    assert "24 clean texts" in printed
    model, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"], "the adapter is merged"
    assert sorted(model.config.label2id) == ["ok", "rude"]
    report = json.loads((folder / "report.json").read_text())
    assert report["auroc"] > 0.95
    assert report["clean"]["texts"] == len(NAMES)
    assert "Reliability" in (folder / "report.html").read_text()
    score = load_reward(str(folder), target_label="ok", polarity_pair=None)
    assert len(score([""], ["Anna is a friend."])) == 1
    assert (tmp_path / "runs" / "run" / "ppo" / "stage.json").is_file()


def test_probabilities_of_the_saved_classifier_are_scaled_by_its_temperature(in_project: Path, tmp_path: Path) -> None:
    folder = launch(tmp_path, {"epochs": 1})
    temperature = json.loads((folder / "calibration.json").read_text())["temperature"]
    text = ["Anna is a friend, said Tom."]
    loaded = load_reward(str(folder), target_label="ok", polarity_pair=None)
    (margin,), (toxicity,) = loaded([""], text), loaded.judge()(text)
    assert toxicity == pytest.approx(1 / (1 + np.exp(margin / temperature)), rel=1e-5)
    (folder / "calibration.json").write_text('{"temperature": 2.0}')
    again = load_reward(str(folder), target_label="ok", polarity_pair=None)
    assert again([""], text) == [margin], "the reward stays in logits"
    assert again.judge()(text)[0] == pytest.approx(1 / (1 + np.exp(margin / 2)), rel=1e-5)


def test_averaged_weights_are_the_mean_over_the_last_steps_also_after_stops_in_later_epochs(
    in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}
    take, advance = AverageWeights.on_step_end, StepCallback.on_step_end

    def watching(self: AverageWeights, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        seen[state.global_step] = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        take(self, args, state, control, model, **kwargs)

    train = {"average_from": 0.5, "epochs": 3, "perturbation_rate": 0.3}
    with monkeypatch.context() as patched:
        patched.setattr(AverageWeights, "on_step_end", watching)
        whole = AutoModelForSequenceClassification.from_pretrained(launch(tmp_path, train, runs="whole")).state_dict()
    assert max(seen) == 30
    steps = [15, 20, 25, 30]
    for name in seen[30]:
        mean = torch.stack([seen[step][name] for step in steps]).mean(dim=0)
        assert torch.allclose(whole[name], mean, atol=1e-6), name
    assert not torch.allclose(whole["score.weight"], seen[30]["score.weight"], atol=1e-6)

    for stopped_at in (14, 22):

        def stopping(self: Any, args: Any, state: Any, control: Any, at: int = stopped_at, **kwargs: Any) -> None:
            advance(self, args, state, control, **kwargs)
            if state.global_step == at:
                control.should_save = control.should_training_stop = True

        with monkeypatch.context() as patched:
            patched.setattr(StepCallback, "on_step_end", stopping)
            patched.setattr(saving, "save_reward_model", stop)
            with pytest.raises(Interrupted):
                launch(tmp_path, train)
    (torn,) = (tmp_path / "runs").rglob("checkpoint-22")
    shutil.copytree(torn, torn.with_name("checkpoint-23"))
    (torn.with_name("checkpoint-23") / "average.pt").unlink()
    resumed = AutoModelForSequenceClassification.from_pretrained(launch(tmp_path, train)).state_dict()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


@pytest.mark.parametrize("epochs", [1, 1.5, 3])
def test_batches_hold_texts_of_like_length_and_every_epoch_every_row(epochs: float) -> None:
    lengths = torch.randint(1, 100, (203,), generator=torch.Generator().manual_seed(0)).tolist()
    order = grouped_order(lengths, epochs, 8, seed=1)
    assert len(order) == round(203 * epochs)
    counts = torch.bincount(torch.tensor(order), minlength=203)
    assert set(counts.tolist()) <= {math.floor(epochs), math.ceil(epochs)}
    spans = [
        max(span) - min(span) for i in range(0, len(order) - 8, 8) if (span := [lengths[r] for r in order[i : i + 8]])
    ]
    assert sum(spans) / len(spans) < 12, "at random it would be about 78"
    assert order != grouped_order(lengths, epochs, 8, seed=2)
    assert order == grouped_order(lengths, epochs, 8, seed=1)


def stop(*arguments: Any) -> None:
    """Stop as an interrupted run does, in place of the function that comes after the training."""
    raise Interrupted("stopped")


def test_early_stopping_keeps_the_best_checkpoint(in_project: Path, tmp_path: Path) -> None:
    # Labels without any sense: what is learned of them makes no validation row better.
    places = [(i, name) for i in range(20) for name in NAMES]
    noise = [{"text": f"{name} {i}", "label": ["ok", "rude"][(i * 7 + len(name)) % 2]} for i, name in places]
    train = {"early_stopping": 1, "save_every": 2, "epochs": 20, "learning_rate": 1e-2, "polarity_pair": ["a", "b"]}
    try:
        folder = launch(tmp_path, train | {"data": lines(tmp_path / "noise.jsonl", noise)})
    except UserError:
        folder = tmp_path / "runs" / "run" / "reward"  # noise may fail the polarity test, after training
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    qualities = [entry["eval_quality"] for entry in entries if "eval_quality" in entry]
    last = max(entry["step"] for entry in entries)
    assert last < 20 * len(noise) / 16, "it stopped before the end"
    assert max(qualities) > qualities[-1]


def test_a_classifier_may_start_from_one_with_other_labels_and_learn_texts_that_spell_out_an_end(
    in_project: Path, tmp_path: Path
) -> None:
    first = launch(tmp_path, {"epochs": 1}, runs="first")
    rows = [
        {"text": f"{name} is {word} <|endoftext|> </s> x", "label": word}
        for name in NAMES
        for word in ("ok", "bad", "so")
    ]
    source = lines(tmp_path / "three.jsonl", rows)
    train = {"model": str(first), "data": source, "validation": source, "polarity_pair": ["Mia is ok", "Mia is bad"]}
    folder = launch(tmp_path, train | {"epochs": 12}, runs="second")
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 3


def test_balanced_weights_give_every_label_the_same_part_of_the_loss() -> None:
    label_ids = [0] * 90 + [1] * 10
    weights = balanced_weights(label_ids)
    parts = [weights[label] * label_ids.count(label) for label in (0, 1)]
    assert parts[0] == pytest.approx(parts[1])
    logits, labels = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 0, 1, 0, 1])

    class Output:
        pass

    output = Output()
    output.logits = logits
    expected = -sum(
        weights[label] * torch.log_softmax(row, 0)[label] for row, label in zip(logits, labels, strict=True)
    )
    assert weighted_loss(weights)(output, labels) == pytest.approx(float(expected) / 7, rel=1e-5)
    assert weighted_loss(weights)(output, labels, 14) == pytest.approx(float(expected) / 14, rel=1e-5)


def test_label_smoothing_of_equal_weights_is_that_of_the_trainer() -> None:
    torch.manual_seed(0)
    output, labels = SimpleNamespace(logits=torch.randn(9, 3)), torch.randint(3, (9,))
    expected = LabelSmoother(epsilon=0.3)({"logits": output.logits}, labels.clone())
    assert weighted_loss(torch.ones(3), 0.3)(output, labels) == pytest.approx(float(expected), rel=1e-5)


def test_the_weighted_trainer_gets_its_label_smoothing(in_project: Path, tmp_path: Path) -> None:
    every = {"class_weights": "balanced", "epochs": 1}
    for name in ("plain", "smooth"):
        (tmp_path / name).mkdir()
    launch(tmp_path / "plain", every)
    launch(tmp_path / "smooth", every | {"trainer_args": {"label_smoothing_factor": 0.5}})
    plain, smooth = (
        json.loads((tmp_path / name / "runs/run/reward/metrics.jsonl").read_text().splitlines()[-1])["train_loss"]
        for name in ("plain", "smooth")
    )
    assert abs(plain - smooth) > 0.05


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"target_label": None}, r"reward\.train\.target_label: missing; a classifier needs .*ok, rude"),
        ({"target_label": "fine"}, r"reward\.train\.target_label: 'fine' is not a label of the data: ok, rude"),
        ({"early_stopping": 0}, r"reward\.train\.early_stopping: 0"),
        ({"max_tokens": 4000}, r"reward\.train\.max_tokens: 4000, but toy:gpt2 reads at most \d+ tokens"),
        ({"perturbation_rate": 1.5}, r"reward\.train\.perturbation_rate: 1\.5"),
        ({"variants": 0.5}, r"reward\.train\.variants: this key is now reward\.train\.perturbation_rate"),
        ({"wanted_label": "ok"}, r"reward\.train\.wanted_label: this key is now reward\.train\.target_label"),
        ({"average_from": -0.1}, r"reward\.train\.average_from: -0\.1"),
        ({"early_stopping": 2, "average_from": 0.5}, "early_stopping keeps one checkpoint, average_from averages many"),
        (
            {"lora": {"target_modules": ["nothing"]}},
            r"reward\.train\.lora\.target_modules: 'nothing' is not the name",
        ),
        (
            {"lora": {"target_modules": ["wte"]}},
            r"reward\.train\.lora\.target_modules: wte is not a linear",
        ),
        ({"objective": "preference"}, r"reward\.train\.target_label: only for objective: classifier"),
        ({"objective": "preference", "target_label": None}, r"reward\.train\.data: .*no column 'chosen'"),
        ({"polarity_pair": ["You idiot.", "Thank you."]}, r"'You idiot\.' scores .* and 'Thank you\.' scores"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(
    train: dict[str, Any], message: str, in_project: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        launch(tmp_path, train)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "option", ["target_label: ok", "penalized_label: rude", "model: toy:gpt2", "multi_label: true"]
)
def test_options_that_the_training_decides_are_refused(option: str, in_project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^reward\.options\.{option.split(':')[0]}: remove it; for a trained model"):
        launch(tmp_path, {}, "--dry_run", "--reward.options", f"{{{option}}}")


def test_a_classifier_may_start_from_one_whose_texts_have_several_labels(in_project: Path, tmp_path: Path) -> None:
    first = launch(tmp_path, {"epochs": 1}, runs="first")
    assert AutoConfig.from_pretrained(first).problem_type == "single_label_classification"
    config = json.loads((first / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (first / "config.json").write_text(json.dumps(config))
    folder = launch(tmp_path, {"model": str(first), "epochs": 1}, runs="second")
    assert AutoConfig.from_pretrained(folder).problem_type == "single_label_classification"


def test_a_held_out_reward_gets_its_options_and_the_columns(in_project: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{name} {i}: hello", "reference": f"{name} says hello"} for i in range(3) for name in NAMES]
    source = lines(tmp_path / "rows.jsonl", rows)
    config = {
        "name": "run",
        "policy": {"model": "toy:gpt2", "lora": {"r": 4, "alpha": 8}},
        "reward": {
            "model": "length",
            "options": {"target": 3},
            "held_out": {"model": "rouge", "options": {"type": "rouge1"}},
        },
        "ppo": {"data": source, "validation": source, "checkpoint_every": 1}
        | {"steps": 2, "batch_size": 4, "minibatch_size": 4, "max_new_tokens": 4},
        "evaluation": {"data": {"test": source}},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    arguments = ["--config", str(tmp_path / "config.yaml"), "--runs", str(tmp_path)]
    cli.launch([ppo.STAGE], "", arguments)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert all(
        0 <= line["validation/held_out_mean"] <= 1 and line["validation/held_out_error"] >= 0 for line in metrics
    )
    assert "Both rewards against step" in (tmp_path / "run" / "ppo" / "overoptimization.html").read_text()
    with pytest.raises(UserError, match=r"reward\.held_out: .*has 9 prompts; use at least 10"):
        cli.launch([ppo.STAGE], "", [*arguments, "--name", "few", "--ppo.validation.limit", "9"])
