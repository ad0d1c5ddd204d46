"""The trainer for supervised fine-tuning: the loss on responses, given their prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor, nn
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer

from workbench.config.derived import micro_batch_size
from workbench.config.names import SFT
from workbench.config.schema import Config
from workbench.config.tuning import PREFIX_TUNING, SOFT_PROMPTS, TuningMethod, tuning_rate
from workbench.errors import UserError, error_context
from workbench.models.adapters import add_lora
from workbench.models.architecture import check_architecture, checked_policy
from workbench.models.loading import load_model, policy_precision
from workbench.models.optimizer import use_paged_optimizer
from workbench.models.policy import Policy
from workbench.models.precision import autocast_dtype
from workbench.models.sharding import block_names, shard_model
from workbench.models.tuning import add_method, tuned_policy
from workbench.run.distributed import is_sharded_launch, per_process
from workbench.run.hf_trainer import training_arguments
from workbench.sft.plan import SFTPlan

IGNORED_LABEL = -100


def make_sft_trainer(config: Config, plan: SFTPlan, folder: Path, *, method: TuningMethod | None = None) -> Trainer:
    """Return TRL's SFTTrainer for a decoder, and transformers' Seq2SeqTrainer for an encoder-decoder.

    It trains by `method`, at its learning rate, or as the configuration's policy section says.
    """
    sft, state = config.sft, PartialState()
    assert sft is not None
    learning_rate = sft.learning_rate
    if method is not None:
        config = dataclasses.replace(config, policy=tuned_policy(config.policy, method))
        if method.method == PREFIX_TUNING and sft.trainer_args.get("activation_checkpointing"):
            raise UserError(
                "sft.trainer_args.activation_checkpointing: prefix_tuning does not work with it; leave it out"
            )
    rows_per_process = per_process("sft.batch_size", sft.batch_size, state.num_processes)
    rows = micro_batch_size(config, SFT, rows_per_process)
    model = load_model(config.policy, device=state.device)
    precision = policy_precision(config.policy, state.device, model.config)
    with error_context("policy.model"):  # before the hours of training after which PPO would refuse the model
        checked_policy(model, plan.tokenizer, autocast=autocast_dtype(precision))
    if method is not None:
        learning_rate = tuning_rate(method, model.config.is_encoder_decoder)
        model = add_method(model, method, seed=config.seed)
        if method.method in SOFT_PROMPTS:
            with error_context(method.method):
                check_architecture(Policy(model, plan.tokenizer, autocast=autocast_dtype(precision)), "default")
    elif config.policy.lora:
        model = add_lora(model, config.policy.lora, "default")
    extra = sft.trainer_args
    if is_sharded_launch():
        # Accelerate's own way of dividing models fails where more than two modules share a weight, as in T5.
        shard_model(model, block_names(model))
        # Else every process holds whole gradients until the last micro batch of a step.
        extra = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}} | extra
    arguments = training_arguments(
        folder,
        epochs=sft.epochs,
        max_steps=sft.max_steps,
        batch_size=rows,
        accumulation=rows_per_process // rows,
        learning_rate=learning_rate,
        precision=precision,
        checkpointing=config.policy.gradient_checkpointing,
        save_every=sft.save_every,
        seed=config.seed,
        on_cpu=state.device.type == "cpu",
        paged=use_paged_optimizer(model.parameters()),
        extra=extra,
    )
    to_features = encoder_decoder_features if model.config.is_encoder_decoder else decoder_features
    validation = [to_features(row) for row in plan.validation_rows]
    data: dict[str, Any] = {
        "train_dataset": Dataset.from_list([to_features(row) for row in plan.train_rows]),
        "eval_dataset": Dataset.from_list(validation) if validation else None,
        "processing_class": plan.tokenizer,
    }
    if model.config.is_encoder_decoder:
        collate = decoder_inputs(
            DataCollatorForSeq2Seq(plan.tokenizer, label_pad_token_id=IGNORED_LABEL),
            model.config.decoder_start_token_id,
            plan.tokenizer.pad_token_id,
        )
        options = Seq2SeqTrainingArguments(**arguments)
        loss = partial(token_loss, label_smoothing=options.label_smoothing_factor)
        return Seq2SeqTrainer(model, options, data_collator=collate, compute_loss_func=loss, **data)
    trainer = SFTTrainer(model, TRLConfig(**arguments, max_length=None, completion_only_loss=True), **data)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # TRL converts the adapters of a quantized base to bf16
    return trainer


def decoder_inputs(collate: Callable[[Any], Any], start_id: int, pad_id: int) -> Callable[[Any], Any]:
    """Return a collator that adds the decoder's inputs (B, T), the labels one later; not every model does it itself."""

    def collate_with_inputs(features: Any) -> Any:
        batch = collate(features)
        labels = batch["labels"]
        start = torch.full_like(labels[:, :1], start_id)
        shifted = torch.cat((start, labels[:, :-1]), dim=1)
        batch["decoder_input_ids"] = shifted.masked_fill(shifted == IGNORED_LABEL, pad_id)
        return batch

    return collate_with_inputs


def token_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropy of the labels (B, T), a mean over the tokens of all micro batches and processes.

    An encoder-decoder's own loss is a mean over its micro batch: a row would count by what it is batched with.
    """
    total = nn.functional.cross_entropy(
        outputs.logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / ((labels != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch)


def encoder_decoder_features(row: dict[str, Any]) -> dict[str, Any]:
    """Return the features that Seq2SeqTrainer reads; its collator pads the labels with IGNORED_LABEL."""
    return {
        "input_ids": row["prompt_ids"],
        "attention_mask": [1] * len(row["prompt_ids"]),
        "labels": row["response_ids"],
    }


def decoder_features(row: dict[str, Any]) -> dict[str, Any]:
    """Return the features that SFTTrainer reads; the loss is computed where completion_mask is 1."""
    return {
        "input_ids": row["prompt_ids"] + row["response_ids"],
        "completion_mask": [0] * len(row["prompt_ids"]) + [1] * len(row["response_ids"]),
    }
