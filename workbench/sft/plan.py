"""Load and check everything that supervised fine-tuning needs before anything trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase, Seq2SeqTrainingArguments, TrainingArguments

from workbench.config.derived import micro_batch_size
from workbench.config.names import SFT
from workbench.config.schema import Config
from workbench.data.mixing import load_training_rows, shuffled_together
from workbench.data.prompts import load_configured_prompts
from workbench.errors import error_context
from workbench.models.loading import load_config, load_policy_tokenizer, policy_precision
from workbench.models.memory_plan import number_of_processes, planned_model, policy_lines
from workbench.models.model_checks import policy_notes
from workbench.models.positions import model_context
from workbench.models.precision import machine_device
from workbench.run.hf_trainer import training_arguments
from workbench.run.trainer_args import check_trainer_args
from workbench.run.trainer_plan import TrainerPlan, planned_steps


@dataclass(frozen=True)
class SFTPlan:
    """Everything the stage works with; `run` uses these same objects."""

    lines: list[str]
    tokenizer: PreTrainedTokenizerBase
    train_rows: list[dict[str, Any]]
    """Rows with prompt_ids and response_ids."""
    validation_rows: list[dict[str, Any]]
    """Rows for the validation loss; empty unless the configuration has some."""


def plan_sft(config: Config) -> SFTPlan:
    """Load the tokenizer and the rows of the stage; raises UserError for invalid settings or data."""
    sft = config.sft
    assert sft is not None
    with error_context("policy.model"):
        tokenizer = load_policy_tokenizer(config.policy.model)
        reports = policy_notes(config.policy.model, tokenizer)
    model_config = load_config(config.policy.model)
    context = model_context(model_config, tokenizer)

    sources, training_lines = load_training_rows(sft, config.seed, tokenizer, context)
    train_rows = shuffled_together([rows for _, rows in sources], config.seed)
    reports += training_lines
    validation_rows: list[dict[str, Any]] = []
    if sft.validation:
        validation_rows, line = load_configured_prompts(
            "sft.validation", sft.validation, tokenizer, max_new_tokens=1, context=context, with_responses=True
        )
        reports.append(line)
    check_trainer_args(trainer_plan(config, model_config, len(train_rows), len(validation_rows)))
    steps = planned_steps(sft.trainer_args, sft.max_steps, -(-len(train_rows) // sft.batch_size), sft.epochs)
    summary = f"{steps:g} steps of {sft.batch_size} rows from {len(train_rows)}"
    longest = max(train_rows, key=lambda row: len(row["prompt_ids"]) + len(row["response_ids"]))
    tokens = (len(longest["prompt_ids"]), len(longest["response_ids"]))
    lines = [*reports, summary, *policy_lines(config, SFT, *tokens)]
    return SFTPlan(lines, tokenizer, train_rows, validation_rows)


def trainer_plan(config: Config, model: PretrainedConfig, training_rows: int, evaluation_rows: int) -> TrainerPlan:
    """Return what the trainer will be made with, as far as trainer_args have to fit it."""
    sft, processes = config.sft, number_of_processes()
    assert sft is not None
    rows_per_process = -(-sft.batch_size // processes)
    rows = micro_batch_size(config, SFT, rows_per_process)

    def arguments(extra: dict[str, Any]) -> TrainingArguments:
        from trl import SFTConfig as TRLConfig  # takes a second, and is needed only to check trainer_args

        values = training_arguments(
            Path(SFT),
            epochs=sft.epochs,
            max_steps=sft.max_steps,
            batch_size=1,
            accumulation=rows_per_process // rows,
            learning_rate=sft.learning_rate,
            precision="fp32",
            checkpointing=config.policy.gradient_checkpointing,
            save_every=sft.save_every,
            seed=config.seed,
            on_cpu=True,
            paged=False,
            extra=extra,
        )
        return Seq2SeqTrainingArguments(**values) if model.is_encoder_decoder else TRLConfig(**values, max_length=None)

    return TrainerPlan(
        key="sft.trainer_args",
        extra=sft.trainer_args,
        arguments=arguments,
        precision=policy_precision(config.policy, machine_device(), model),
        precision_key="policy.precision",
        rows_key=None if sft.validation else "sft.validation",
        network=lambda: planned_model(config),
        training_rows=training_rows,
        evaluation_rows=evaluation_rows,
        rows_at_a_time=rows,
        processes=processes,
    )
