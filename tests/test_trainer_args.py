"""trainer_args: what the trainer would refuse, or fail with once it trains, is one line in the plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from small_runs import small
from transformers import TrainingArguments

from recipes import reward, sft
from workbench.config.parsing import parse
from workbench.errors import UserError
from workbench.models.loading import load_config
from workbench.rewards.training import plan as reward_plan
from workbench.run.cli import plan_stages
from workbench.run.trainer_args import check_trainer_args
from workbench.run.trainer_plan import TrainerPlan
from workbench.sft import plan as sft_plan

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def sft_trainer(folder: Path, arguments: str, *options: str, name: str = "quickstart_gpt2") -> TrainerPlan:
    """Return the plan of SFT's trainer with these trainer_args."""
    config = parse(small(name, folder, "--sft.trainer_args", arguments, *options))[0]
    return sft_plan.trainer_plan(config, load_config(config.policy.model), 800, 30)


def reward_trainer(folder: Path, arguments: str, *options: str) -> TrainerPlan:
    """Return the plan of the reward's trainer with these trainer_args."""
    given_options = ("--reward.model", "null", "--reward.train.trainer_args", arguments, *options)
    config = parse(small("quickstart_gpt2", folder, *given_options))[0]
    assert config.reward is not None
    assert config.reward.train is not None
    return reward_plan.trainer_plan(config.reward.train, 0, "fp32", 800, 30)


REFUSED = [
    ("{warmup_stepz: 3}", "warmup_stepz: TrainingArguments has no such field; did you mean warmup_steps?"),
    ("{output_dir: x}", "output_dir: checkpoints belong in the run folder"),
    ("{report_to: wandb}", "report_to: the run logs its metrics itself; choose a tracker with track"),
    ("{deepspeed: x.json}", "deepspeed: the launcher's configuration decides"),
    ("{fsdp: full_shard}", "fsdp: the launcher's configuration decides"),
    ("{push_to_hub: true}", "push_to_hub: the workbench pushes nothing while it trains"),
    ("{resume_from_checkpoint: x}", "resume_from_checkpoint: the same command resumes"),
    ("{gradient_checkpointing: true}", "gradient_checkpointing: its name is now activation_checkpointing"),
    ("{label_names: [x]}", "label_names: the stage reads the trainer's own results"),
    ("{load_best_model_at_end: true}", "load_best_model_at_end: True: the trainer refuses it: ValueError: --load_best"),
    ("{lr_scheduler_type: cosin}", "lr_scheduler_type: 'cosin': the trainer refuses it: ValueError: cosin is not a"),
    ("{optim: adamv}", "optim: 'adamv': the trainer refuses it: ValueError: adamv is not a valid OptimizerNames"),
    ("{seed: 1, optim_args: x}", "optim_args: 'x': the trainer refuses it: ValueError"),
    ("{lr_scheduler_kwargs: {x: 1}}", "lr_scheduler_kwargs: {'x': 1}: the trainer refuses it: TypeError"),
    ("{lr_scheduler_type: cosine_with_min_lr}", "lr_scheduler_type: 'cosine_with_min_lr': the trainer refuses it"),
    ("{dataloader_prefetch_factor: 2}", "dataloader_prefetch_factor: 2: the trainer refuses it"),
    ("{accelerator_config: {x: 1}}", "accelerator_config: {'x': 1}: the trainer refuses it: TypeError"),
    ("{log_level: loud}", "log_level: 'loud': the trainer refuses it: KeyError"),
    ("{save_strategy: false}", "save_strategy: must be a string, not False; write it in quotes"),
    ("{save_strategy: never}", "save_strategy: 'never': the trainer refuses it: ValueError: never is not a valid"),
    ("{per_device_train_batch_size: -1}", "per_device_train_batch_size: -1 must be between 1 and 1048576"),
    ("{gradient_accumulation_steps: 0}", "gradient_accumulation_steps: 0 must be between 1 and 1048576"),
    ("{per_device_train_batch_size: 2.5}", "per_device_train_batch_size: must be an integer, not 2.5"),
    ("{logging_steps: 0}", "logging_steps: 0 must be above 0"),
    ("{save_steps: -5}", "save_steps: -5 must be above 0"),
    ("{max_grad_norm: -1}", "max_grad_norm: -1 must be 0 or between 1e-06 and 1000000000; 0 is no clipping"),
    ("{max_grad_norm: 1e-30}", "max_grad_norm: 1e-30 must be 0 or between 1e-06 and 1000000000; 0 is no clipping"),
    ("{weight_decay: 1e300}", "weight_decay: 1e+300 must be between 0 and 10"),
    ("{learning_rate: 1e30}", "learning_rate: 1e+30 must be between 0 and 10"),
    ("{adam_epsilon: 1e-300}", "adam_epsilon: 1e-300 must be between 1e-30 and 1"),
    ("{adam_epsilon: 1e30}", "adam_epsilon: 1e+30 must be between 1e-30 and 1"),
    ("{adam_beta1: 1.0}", "adam_beta1: 1.0: the trainer refuses it: ValueError: Invalid beta"),
    ("{adam_beta2: 1.5}", "adam_beta2: 1.5 must be between 0 and 1"),
    ("{neftune_noise_alpha: 1e300}", "neftune_noise_alpha: 1e+300 must be between 0 and 1000"),
    ("{num_train_epochs: 1e-30}", "num_train_epochs: 1e-30 must be between 1e-06 and 100000"),
    ("{warmup_steps: 1e300}", "warmup_steps: 1e+300 must be between 0 and 10000000"),
    ("{save_steps: 1e300}", "save_steps: 1e+300 must be at most 10000000"),
    ("{torch_empty_cache_steps: 0}", "torch_empty_cache_steps: 0 must be between 1 and 10000000"),
    ("{ddp_timeout: 9223372036854775807}", "ddp_timeout: 9223372036854775807 must be between 1 and 2147483647"),
    (
        "{train_sampling_strategy: sorted}",
        "train_sampling_strategy: 'sorted' is unknown; use one of random, sequential",
    ),
    ("{local_rank: 1000}", "local_rank: the launcher's configuration decides"),
    ("{dataloader_num_workers: -1}", "dataloader_num_workers: -1 must be between 0 and 1024"),
    ("{dataloader_num_workers: 1000000}", "dataloader_num_workers: 1000000 must be between 0 and 1024"),
    ("{dataloader_num_workers: 2, dataloader_prefetch_factor: 0}", "dataloader_prefetch_factor: 0 must be between 1"),
    ("{dataloader_persistent_workers: true}", "dataloader_persistent_workers: True: the trainer refuses it"),
    ("{dataloader_multiprocessing_context: fork}", "dataloader_multiprocessing_context: 'fork': the trainer refuses"),
    (
        "{dataloader_num_workers: 2, dataloader_multiprocessing_context: thread}",
        "dataloader_multiprocessing_context: 'thread': the trainer refuses it: ValueError: multiprocessing_context",
    ),
    ("{learning_rate: abc}", "learning_rate: must be a number, not 'abc'"),
    ("{learning_rate: null}", "learning_rate: must be a number, not null"),
    ("{learning_rate: .inf}", "learning_rate: inf must be a finite number"),
    ("{weight_decay: true}", "weight_decay: must be a number, not True"),
    ("{seed: x}", "seed: must be an integer, not 'x'"),
    ("{logging_first_step: x}", "logging_first_step: must be true or false, not 'x'"),
    ("{fp16: true}", "fp16: True contradicts {precision}, which is fp32 here; leave it out and set {precision}"),
    ("{bf16: true}", "bf16: True contradicts {precision}, which is fp32 here"),
    ("{bf16_full_eval: true}", "bf16_full_eval: it converts the trained weights; set {precision}"),
    ("{eval_strategy: steps}", "eval_strategy: there are no rows to evaluate on; set {rows}, or leave it out"),
    ("{eval_on_start: true}", "eval_on_start: there are no rows to evaluate on; set {rows}, or leave it out"),
    ("{save_only_model: true}", "save_only_model: True would let a resume start with a new optimizer; leave it out"),
    ("{ignore_data_skip: true}", "ignore_data_skip: True would let a resume train on the same rows again"),
    ("{dataloader_in_order: false}", "dataloader_in_order: False would bring the batches in an order that no resume"),
    ("{enable_jit_checkpoint: true}", "enable_jit_checkpoint: True would swallow SIGTERM"),
    ("{save_strategy: best}", "save_strategy: best would save nothing when the run is stopped; use steps or epoch"),
    ("{optim: galore_adamw_layerwise}", "optim: galore_adamw_layerwise keeps its state out of the checkpoints"),
    ("{eval_do_concat_batches: false}", "eval_do_concat_batches: False would leave the results in pieces"),
    ("{do_train: true}", "do_train: True is not read by the trainer; leave it out"),
    ("{disable_tqdm: false}", "disable_tqdm: False shows nothing: the run has a progress of its own; leave it out"),
    ("{length_column_name: words}", "length_column_name: 'words' is no column of the rows"),
    ("{run_name: mine}", "run_name: the run logs its metrics itself; choose a tracker with track"),
    ("{report_to: [wandb]}", "report_to: the run logs its metrics itself; choose a tracker with track"),
    ("{hub_revision: main}", "hub_revision: the workbench pushes nothing while it trains"),
    ("{max_steps: 0}", "max_steps: 0 would train nothing; set it to -1 for no limit, or leave it out"),
    ("{debug: tpu_metrics_debug}", "debug: tpu_metrics_debug is read only on a TPU; leave it out"),
    (
        "{accelerator_config: {split_batches: true}}",
        "accelerator_config.split_batches: True would divide the configure",
    ),
    (
        "{accelerator_config: {gradient_accumulation_kwargs: {num_steps: 3}}}",
        "accelerator_config.gradient_accumulation_kwargs.num_steps: 3 would multiply the configured batch",
    ),
    ("{torch_compile_backend: quick}", "torch_compile_backend: 'quick': the trainer refuses it: ValueError"),
    (
        "{dataloader_drop_last: true, per_device_train_batch_size: 8000}",
        "dataloader_drop_last: True would leave out all",
    ),
    (
        "{optim: rmsprop, optim_args: 'alpha=abc'}",
        "optim_args: 'alpha=abc': the trainer refuses it with optim: 'rmsprop': ValueError: could not convert",
    ),
    ("{eval_steps: 5}", "eval_steps: 5 is read only with eval_strategy: steps; set it, or leave eval_steps out"),
    ("{eval_delay: 5}", "eval_delay: 5 is read only with an eval_strategy; set one, or leave eval_delay out"),
    ("{save_strategy: epoch, save_steps: 5}", "save_steps: 5 is read only with save_strategy: steps"),
    ("{logging_strategy: epoch, logging_steps: 5}", "logging_steps: 5 is read only with logging_strategy: steps"),
    ("{lr_scheduler_type: constant, warmup_steps: 5}", "warmup_steps: 5 is read only by a schedule with a warmup"),
    (
        "{lr_scheduler_type: constant_with_warmup, lr_scheduler_kwargs: {power: 2}}",
        "lr_scheduler_kwargs: {'power': 2} is read only by a schedule with options",
    ),
    (
        "{activation_checkpointing_kwargs: {use_reentrant: true}}",
        "activation_checkpointing_kwargs: {'use_reentrant': T",
    ),
    ("{optim_target_modules: [attn]}", "optim_target_modules: ['attn'] is read only by the galore and apollo optimize"),
    ("{per_device_eval_batch_size: 5}", "per_device_eval_batch_size: 5: there are no rows to evaluate on; set {rows}"),
    ("{optim: sgd, adam_beta1: 0.5}", "adam_beta1: 0.5 is not read by optim: sgd; set another optim, or leave it out"),
    ("{optim: adafactor, adam_epsilon: 0.5}", "adam_epsilon: 0.5 is not read by optim: adafactor"),
    (
        "{optim_args: 'weight_decay=1'}",
        "optim_args: 'weight_decay=1': weight_decay is not read by optim: adamw_torch_f",
    ),
    (
        "{optim: sgd, optim_args: 'momentum=0.9, momentumm=1'}",
        "optim_args: 'momentum=0.9, momentumm=1': momentumm is not read by optim: sgd; leave it out",
    ),
    ("{metric_for_best_model: bleu}", "metric_for_best_model: bleu is not measured; use one of loss"),
]


@pytest.mark.parametrize("make", [sft_trainer, reward_trainer])
@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_the_trainer_would_refuse_is_one_line_with_the_key(
    arguments: str, message: str, make: Any, in_project: Path, tmp_path: Path
) -> None:
    plan = make(tmp_path, arguments)
    with pytest.raises(UserError) as raised:
        check_trainer_args(plan)
    for name, key in (("{precision}", plan.precision_key), ("{rows}", str(plan.rows_key))):
        message = message.replace(name, key)
    assert str(raised.value).startswith(f"{plan.key}.{message}")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        (sft.STAGE, ["--sft.trainer_args", "{eval_strategy: steps}"], "sft.trainer_args.eval_strategy: there are no"),
        (
            reward.STAGE,
            ["--reward.model", "null", "--reward.train.trainer_args", "{optim: adamv}"],
            "reward.train.trainer_args.optim: 'adamv'",
        ),
    ],
)
def test_the_plans_of_both_stages_refuse(
    stage: Any, options: list[str], message: str, in_project: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as raised:
        list(plan_stages([stage], parse(small("quickstart_gpt2", tmp_path, *options))[0], None))
    assert str(raised.value).startswith(message)


def test_arguments_that_work_are_accepted_and_nothing_is_left_behind(
    in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # a launch, whose other process this one must not wait for
    monkeypatch.setenv("RANK", "0")
    environment, before, number = dict(os.environ), dict(PartialState._shared_state), torch.get_rng_state()
    arguments = (
        "{lr_scheduler_type: polynomial, lr_scheduler_kwargs: {power: 2.0}, optim: adafactor, logging_steps: 1, "
        "save_strategy: epoch, bf16: false, max_grad_norm: 0, "
        "dataloader_num_workers: 2, dataloader_prefetch_factor: 1, dataloader_persistent_workers: true, "
        "dataloader_multiprocessing_context: fork, report_to: [], neftune_noise_alpha: 5, save_total_limit: 3, "
        "bf16_full_eval: false, fp16_full_eval: false, push_to_hub: false, deepspeed: null, disable_tqdm: true, "
        "save_only_model: false, do_train: false, eval_delay: 0, max_steps: -1, debug: '', log_level: error, "
        "accelerator_config: {even_batches: true, gradient_accumulation_kwargs: {sync_each_batch: true}}}"
    )
    check_trainer_args(sft_trainer(tmp_path, arguments))
    assert dict(os.environ) == environment
    assert dict(PartialState._shared_state) == before
    assert torch.equal(torch.get_rng_state(), number)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["quickstart", "quickstart_gpt2"])
def test_rows_to_evaluate_on_allow_the_best_model(name: str, in_project: Path, tmp_path: Path) -> None:
    rows = ("--sft.validation", "{path: 'toy:summaries', split: validation}")
    best = "{eval_strategy: steps, eval_steps: 200, load_best_model_at_end: true, metric_for_best_model: eval_loss}"
    check_trainer_args(sft_trainer(tmp_path, best, *rows, name=name))
    with pytest.raises(UserError, match=r"load_best_model_at_end requires the saving steps to be a round multiple"):
        check_trainer_args(sft_trainer(tmp_path, best.replace("200", "7"), *rows, name=name))


def test_early_stopping_measures_the_quality(in_project: Path, tmp_path: Path) -> None:
    stopping = ("--reward.train.early_stopping", "2")
    check_trainer_args(reward_trainer(tmp_path, "{metric_for_best_model: quality, eval_delay: 1}", *stopping))
    with pytest.raises(UserError, match=r"eval_strategy: 'no': the trainer refuses it"):
        check_trainer_args(reward_trainer(tmp_path, "{eval_strategy: 'no'}", *stopping))


def test_every_field_with_a_range_exists() -> None:
    from workbench.run.trainer_args import RANGES, RUN_KEYS

    assert RANGES.keys() <= TrainingArguments.__dataclass_fields__.keys()
    assert RUN_KEYS.keys() <= TrainingArguments.__dataclass_fields__.keys()
