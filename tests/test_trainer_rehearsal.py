"""trainer_args are rehearsed with the steps, the model and the rows of the stage, and leave nothing changed."""

from __future__ import annotations

import math
import os
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from small_runs import small
from tiny_classifiers import save
from transformers import trainer_optimizer

from recipes import sft
from workbench.config.parsing import parse
from workbench.errors import UserError
from workbench.models.loading import load_config
from workbench.rewards.training import plan as reward_plan
from workbench.run.cli import execute
from workbench.run.library_settings import DETERMINISM_VARIABLES
from workbench.run.torch_settings import read_torch_settings
from workbench.run.trainer_args import check_trainer_args
from workbench.run.trainer_plan import TrainerPlan
from workbench.sft import plan as sft_plan

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
SOURCE = "{path: 'toy:summaries', split: validation, template: '{dialogue}', columns: {response: summary}, limit: 30}"
PAIRS = ("preference",)
VALIDATION = ("--sft.validation", SOURCE)


def sft_trainer(folder: Path, arguments: str, *options: str, rows: int = 800, name: str = "gpt2") -> TrainerPlan:
    """Return the plan of SFT's trainer with these trainer_args."""
    config_name = "quickstart_gpt2" if name == "gpt2" else "quickstart"
    config = parse(small(config_name, folder, "--sft.trainer_args", arguments, "--sft.max_steps", "null", *options))[0]
    return sft_plan.trainer_plan(config, load_config(config.policy.model), rows, 30 if config.sft.validation else 0)


def reward_trainer(folder: Path, arguments: str, *options: str, rows: int = 64) -> TrainerPlan:
    """Return the plan of the reward's trainer with these trainer_args."""
    is_preference, options = options == PAIRS, () if options == PAIRS else options
    every = ("--reward.model", "null", "--reward.train.trainer_args", arguments, *options)
    config = parse(small("quickstart_gpt2", folder, *every))[0]
    assert config.reward is not None
    assert config.reward.train is not None
    train = replace(config.reward.train, objective="preference") if is_preference else config.reward.train
    return reward_plan.trainer_plan(train, 0, "fp32", rows, 20)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            "{lr_scheduler_type: cosine, lr_scheduler_kwargs: {num_cycles: a}, warmup_steps: 20}",
            "ValueError: could not convert",
        ),
        ("{lr_scheduler_type: polynomial, lr_scheduler_kwargs: {power: a}, warmup_steps: 90}", "TypeError"),
        (
            "{lr_scheduler_type: inverse_sqrt, lr_scheduler_kwargs: {timescale: -9}, warmup_steps: 5}",
            "ZeroDivisionError",
        ),
        (
            "{lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: 3, num_cycles: a}, "
            "warmup_steps: 90}",
            "ValueError: could not convert",
        ),
        (
            "{lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: 3, min_lr_ratio: -2}}",
            "ValueError: it gives a learning rate of -0.006 at step 100",
        ),
    ],
)
def test_the_schedule_is_computed_over_all_its_phases(
    arguments: str, reason: str, in_project: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"^sft\.trainer_args\.lr_scheduler_\w+: .*: the trainer refuses .*{reason}"):
        check_trainer_args(sft_trainer(tmp_path, arguments))


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_plateau_comes_in_the_rehearsal(schedule: str, in_project: Path, tmp_path: Path) -> None:
    every = f"eval_strategy: steps, lr_scheduler_type: {schedule}"
    check_trainer_args(sft_trainer(tmp_path, f"{{{every}, lr_scheduler_kwargs: {{patience: 3}}}}", *VALIDATION))
    for wrong in ("patience: a", "patience: 50, cooldown: a", "min_lr: a"):
        with pytest.raises(UserError, match=r"^sft\.trainer_args\.lr_scheduler_kwargs: .*: the trainer refuses it"):
            check_trainer_args(sft_trainer(tmp_path, f"{{{every}, lr_scheduler_kwargs: {{{wrong}}}}}", *VALIDATION))


@pytest.mark.parametrize(
    "arguments",
    [
        "{lr_scheduler_type: cosine, lr_scheduler_kwargs: {num_cycles: 2}, warmup_steps: 0.1}",
        "{lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr_rate: 0.1}, max_steps: 9000000}",
        "{lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: 20}}",
        "{lr_scheduler_type: inverse_sqrt}",
        "{lr_scheduler_type: constant}",
    ],
)
def test_schedules_that_work_are_taken(arguments: str, in_project: Path, tmp_path: Path) -> None:
    check_trainer_args(sft_trainer(tmp_path, arguments))


def test_the_stage_takes_as_many_steps_as_its_plan_says(in_project: Path, tmp_path: Path) -> None:
    plan = sft_trainer(tmp_path, "{}", "--sft.micro_batch_size", "2", rows=65)
    arguments = plan.arguments({})
    assert arguments.gradient_accumulation_steps == 4
    assert plan.steps(arguments) == math.ceil(65 / 8)
    assert plan.steps(plan.arguments({"max_steps": 7})) == 7
    assert sft_trainer(tmp_path, "{per_device_train_batch_size: 1}", rows=65).steps(plan.arguments({})) == 17


def test_without_the_last_batch_there_has_to_be_another(in_project: Path, tmp_path: Path) -> None:
    check_trainer_args(sft_trainer(tmp_path, "{dataloader_drop_last: true}", rows=8))
    with pytest.raises(UserError, match=r"drop_last: True would leave out all 7 rows to be trained on, .* batch of 8"):
        check_trainer_args(sft_trainer(tmp_path, "{dataloader_drop_last: true}", rows=7))
    arguments = "{dataloader_drop_last: true, per_device_eval_batch_size: 31}"
    with pytest.raises(UserError, match=r"drop_last: True would leave out all 30 rows to be evaluated, .* batch of 31"):
        check_trainer_args(sft_trainer(tmp_path, arguments, *VALIDATION))


def test_settings_of_accelerate_are_not_changed_in_the_configuration(in_project: Path, tmp_path: Path) -> None:
    plan = sft_trainer(tmp_path, "{accelerator_config: {gradient_accumulation_kwargs: {sync_each_batch: true}}}")
    check_trainer_args(plan)
    assert plan.extra == {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}


@pytest.fixture
def low_rank_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for two optional packages."""

    class LowRank(torch.optim.AdamW):
        pass

    names = ("GaLoreAdamW", "GaLoreAdamW8bit", "GaLoreAdafactor")
    monkeypatch.setitem(sys.modules, "galore_torch", SimpleNamespace(**dict.fromkeys(names, LowRank)))
    monkeypatch.setitem(sys.modules, "apollo_torch", SimpleNamespace(APOLLOAdamW=LowRank))
    for name in ("galore", "apollo"):
        monkeypatch.setattr(trainer_optimizer, f"is_{name}_torch_available", lambda: True)


@pytest.mark.usefixtures("low_rank_optimizers")
@pytest.mark.parametrize("optimizer", ["galore_adamw", "apollo_adamw"])
def test_modules_to_project_are_those_of_the_stages_model(optimizer: str, in_project: Path, tmp_path: Path) -> None:
    for modules in ("[q, v]", "'.*SelfAttention.*'", "all-linear"):
        arguments = f"{{optim: {optimizer}, optim_target_modules: {modules}, optim_args: 'rank=2'}}"
        check_trainer_args(sft_trainer(tmp_path, arguments, name="t5"))
    classifier = ("--reward.train.model", save(tmp_path / "bert", "bert"), "--reward.train.lora", "{r: 2}")
    check_trainer_args(reward_trainer(tmp_path, f"{{optim: {optimizer}, optim_target_modules: [query]}}", *classifier))
    for modules, reason in (
        ("[attention]", "the model has no linear"),
        ("'*'", "error: nothing to repeat"),
        ("[1]", ""),
    ):
        arguments = f"{{optim: {optimizer}, optim_target_modules: {modules}}}"
        with pytest.raises(UserError, match=rf"^sft\.trainer_args\.optim_target_modules: .*: {reason}"):
            check_trainer_args(sft_trainer(tmp_path, arguments, name="t5"))
    for extra in ("weight_decay: 0.1", "optim_args: 'ranks=2'"):
        with pytest.raises(UserError, match=r"is (not )?read"):
            check_trainer_args(
                sft_trainer(tmp_path, f"{{optim: {optimizer}, optim_target_modules: [q], {extra}}}", name="t5")
            )


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (PAIRS, "{label_smoothing_factor: 0.1}", "label_smoothing_factor: 0.1 is not read by TRL's loss of pairs"),
        (
            PAIRS,
            "{train_sampling_strategy: group_by_length}",
            "train_sampling_strategy: 'group_by_length' needs rows of",
        ),
        ((), "{num_train_epochs: 3}", "num_train_epochs: 3 would multiply reward.train.epochs; set that"),
        (
            ("--reward.train.early_stopping", "2"),
            "{load_best_model_at_end: false}",
            "load_best_model_at_end: False contradicts reward.train.early_stopping; leave it out",
        ),
        (
            ("--reward.train.early_stopping", "2"),
            "{restore_callback_states_from_checkpoint: false}",
            "restore_callback_states_from_checkpoint: False would let a resume forget its patience",
        ),
        (
            ("--reward.train.early_stopping", "2"),
            "{dataloader_drop_last: true, per_device_eval_batch_size: 64}",
            "dataloader_drop_last: True would leave out all 20 rows to be evaluated",
        ),
    ],
)
def test_what_one_reward_trainer_cannot_take_is_refused(
    options: tuple[str, ...], arguments: str, message: str, in_project: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as raised:
        check_trainer_args(reward_trainer(tmp_path, arguments, *options))
    assert str(raised.value).startswith(f"reward.train.trainer_args.{message}")


def test_what_the_other_reward_trainer_can_take_is_taken(in_project: Path, tmp_path: Path) -> None:
    check_trainer_args(reward_trainer(tmp_path, "{label_smoothing_factor: 0.1, train_sampling_strategy: random}"))
    check_trainer_args(reward_trainer(tmp_path, "{num_train_epochs: 3, label_smoothing_factor: 0}", *PAIRS))


def test_finding_overflows_needs_a_gpu(in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = sft_trainer(tmp_path, "{debug: underflow_overflow}")
    monkeypatch.setattr("workbench.run.trainer_args.has_gpus", lambda: False)
    with pytest.raises(UserError, match=r"^sft\.trainer_args\.debug: underflow_overflow fails on the CPU"):
        check_trainer_args(plan)
    monkeypatch.setattr("workbench.run.trainer_args.has_gpus", lambda: True)
    check_trainer_args(plan)


def process_settings() -> list[Any]:
    """What a trainer sets for the whole process."""
    variables = [os.environ.get(name) for name in DETERMINISM_VARIABLES]
    return [read_torch_settings(), transformers.utils.logging.get_verbosity(), *variables]


def test_a_rehearsal_leaves_the_process_as_it_was(
    in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.training_args.is_torch_tf32_available", lambda: True)
    before, numbers, arrays = process_settings(), random.getstate(), np.random.get_state()[1].tolist()
    check_trainer_args(sft_trainer(tmp_path, "{full_determinism: true, tf32: true, log_level: debug}"))
    assert process_settings() == before
    assert random.getstate() == numbers
    assert np.random.get_state()[1].tolist() == arrays


def test_a_stage_leaves_the_process_as_it_was(
    in_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.training_args.is_torch_tf32_available", lambda: True)
    seen = []
    evaluate = transformers.Trainer.evaluate

    def recording(trainer: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return evaluate(trainer, *arguments, **options)

    monkeypatch.setattr(transformers.Trainer, "evaluate", recording)
    options = ("--sft.trainer_args", "{full_determinism: true, tf32: true, log_level: error}", "--sft.max_steps", "1")
    config = parse(small("quickstart_gpt2", tmp_path, *options, *VALIDATION))[0]
    before = process_settings()
    execute([sft.STAGE], config, None)
    assert process_settings() == before
    assert seen[-1] is True
