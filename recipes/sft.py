"""Supervised fine-tuning: teach the policy to answer prompts as the data does."""

# Imports of torch and transformers stand inside the functions, so that --help answers at once.
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.config.schema import Config, DataSource, SFTConfig
from workbench.run.cli import Stage, main
from workbench.run.distributed import per_process
from workbench.run.folder import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

NAME = "sft"


def wanted(config: Config) -> bool:
    """Whether the configuration has an SFT stage."""
    return config.sft is not None


def rows(config: Config, source: DataSource, key: str = "data") -> list[dict[str, Any]]:
    """The rows to learn, with their responses; `key` names the source within the section."""
    from workbench.data.prompt_rows import prompt_rows

    return prompt_rows(config.policy.model, source, key=f"sft.{key}", max_new_tokens=1, response=True)


def plan(config: Config) -> list[str]:
    """What the stage would do."""
    from workbench.models.memory import model_plan
    from workbench.run.hf_trainer import check_trainer_args

    sft = settings(config)
    check_trainer_args("sft.trainer_args", sft.trainer_args)
    count = len(rows(config, sft.data))
    steps = sft.max_steps or -(-count // sft.batch_size) * sft.epochs
    return [f"{steps:g} steps of {sft.batch_size} rows from {count}", *model_plan(config, sft.batch_size)]


def settings(config: Config) -> SFTConfig:
    """The stage's section of the configuration."""
    assert config.sft is not None
    return config.sft


def run(run: Run) -> dict[str, Any]:
    """Train and save an adapter, or a model, in the run's sft folder."""
    from transformers import set_seed

    from workbench.models.loading import load_policy_tokenizer, save_model
    from workbench.run.files import writing
    from workbench.run.hf_trainer import remove_checkpoints, run_trainer

    config, sft, folder = run.config, settings(run.config), run.stage(NAME)
    train_rows = rows(config, sft.data)
    validation_rows = rows(config, sft.validation, "validation") if sft.validation else None
    set_seed(config.seed)
    tokenizer = load_policy_tokenizer(config.policy.model)
    trainer = make_trainer(config, tokenizer, folder, train_rows, validation_rows)
    run_trainer(trainer, folder, NAME)
    metrics = {"loss": trainer.state.log_history[-1]["train_loss"], "steps": trainer.state.global_step}
    if validation_rows:
        metrics["validation_loss"] = trainer.evaluate()["eval_loss"]
    if trainer.is_world_process_zero():
        with writing(folder):
            save_model(trainer.accelerator.unwrap_model(trainer.model), folder)
            tokenizer.save_pretrained(folder)
            remove_checkpoints(folder)
    trainer.accelerator.wait_for_everyone()
    return {"inputs": {"model": config.policy.model, "data": sft.data.path}, "metrics": metrics}


def make_trainer(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    train_rows: list[dict[str, Any]],
    validation_rows: list[dict[str, Any]] | None,
) -> Trainer:
    """TRL's SFTTrainer for a decoder, transformers' Seq2SeqTrainer for an encoder-decoder."""
    from accelerate import PartialState
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments
    from trl import SFTConfig as TrlConfig
    from trl import SFTTrainer

    from workbench.models.adapters import add_lora
    from workbench.models.loading import load_model, use_paged_optimizer
    from workbench.run.hf_trainer import training_arguments

    sft, state = settings(config), PartialState()
    share = per_process("sft.batch_size", sft.batch_size, state.num_processes)
    micro = min(sft.micro_batch_size or share, share)
    model = load_model(config.policy, device=state.device)
    if config.policy.lora:
        model = add_lora(model, config.policy.lora, "default")
    options = training_arguments(
        folder,
        epochs=sft.epochs,
        max_steps=sft.max_steps,
        batch_size=micro,
        accumulation=share // micro,
        learning_rate=sft.learning_rate,
        precision=config.policy.precision,
        checkpointing=config.policy.gradient_checkpointing,
        save_every=sft.save_every,
        seed=config.seed,
        on_cpu=state.device.type == "cpu",
        paged=use_paged_optimizer(config.policy, state.device),
        track=config.track,
        extra=sft.trainer_args,
    )
    as_row = encoder_decoder_row if model.config.is_encoder_decoder else causal_row
    data = {
        "train_dataset": Dataset.from_list([as_row(row) for row in train_rows]),
        "eval_dataset": Dataset.from_list([as_row(row) for row in validation_rows]) if validation_rows else None,
        "processing_class": tokenizer,
    }
    if model.config.is_encoder_decoder:
        collator = DataCollatorForSeq2Seq(tokenizer, model, label_pad_token_id=-100)
        return Seq2SeqTrainer(model, Seq2SeqTrainingArguments(**options), data_collator=collator, **data)
    return SFTTrainer(model, TrlConfig(**options, max_length=None, completion_only_loss=True), **data)


def encoder_decoder_row(row: dict[str, Any]) -> dict[str, Any]:
    """What Seq2SeqTrainer reads; its collator pads labels with -100, which the loss ignores."""
    return {
        "input_ids": row["prompt_ids"],
        "attention_mask": [1] * len(row["prompt_ids"]),
        "labels": row["response_ids"],
    }


def causal_row(row: dict[str, Any]) -> dict[str, Any]:
    """What SFTTrainer reads; the loss is taken where completion_mask is 1."""
    return {
        "input_ids": row["prompt_ids"] + row["response_ids"],
        "completion_mask": [0] * len(row["prompt_ids"]) + [1] * len(row["response_ids"]),
    }


STAGE = Stage(NAME, wanted, plan, run)

if __name__ == "__main__":
    main([STAGE], __doc__)
