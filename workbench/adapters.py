"""LoRA adapters: fresh ones, trained ones, and whether one that was trained elsewhere fits the base."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
)
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.config import LoraSettings, PolicyConfig
from workbench.errors import UserError
from workbench.models import load_model, shapes_of

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)


def add_lora(
    model: PreTrainedModel, lora: LoraSettings, name: str, *, key: str = "policy", classifier: bool = False
) -> PeftModel:
    """The model with a fresh trainable adapter called `name`, which changes nothing until it is trained.

    A classifier's output layer is trained as well. Raises UserError, with the configuration's `key`, for modules that
    the model does not have.
    """
    task = TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
    if classifier:
        task = TaskType.SEQ_CLS
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,  # dropout would make the ratio of old and new probabilities differ from 1
        target_modules=lora.target_modules or "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 stores (in, out)
        task_type=task,
    )
    try:
        return get_peft_model(model, config, adapter_name=name)
    except ValueError as error:
        raise UserError(f"{key}.lora.target_modules: {lora.target_modules}: {str(error).splitlines()[0]}") from error


class Trainable(NamedTuple):
    """What PPO trains, and for full fine-tuning the copies that LoRA has as adapters."""

    model: PreTrainedModel | PeftModel
    reference: PreTrainedModel | None
    value_model: PreTrainedModel | None


def load_trainable(
    policy: PolicyConfig, start: Path | None, *, device: torch.device, value_model: bool = False
) -> Trainable:
    """The model that PPO trains and its reference, and a model for the values if asked for.

    `start` is the folder of the SFT stage: an adapter, loaded twice (frozen as `sft`, trainable as `policy`) or three
    times (trainable as `value`), or a full model. Without it the base is where PPO starts.
    """
    if policy.lora is None:
        place = policy if start is None else dataclasses.replace(policy, model=str(start))
        reference = load_model(place, device=device).requires_grad_(False)
        return Trainable(
            load_model(place, device=device), reference, load_model(place, device=device) if value_model else None
        )
    model = load_model(policy, device=device)
    trained = ["policy", "value"] if value_model else ["policy"]
    if start is None:
        trainable = add_lora(model, policy.lora, "policy")
        if value_model:
            trainable.add_adapter("value", trainable.peft_config["policy"])
    else:
        trainable = load_adapters(model, {"sft": start})
        for name in trained:
            trainable.load_adapter(start, adapter_name=name, is_trainable=True)
    trainable.set_adapter("policy")
    return Trainable(trainable, None, None)


def load_adapters(model: PreTrainedModel | PeftModel, folders: dict[str, Path]) -> PeftModel:
    """The model with the frozen adapters of stages, by name; raises UserError for a folder that holds no whole one."""
    for name, folder in folders.items():
        try:
            model = load_adapter(model, name, folder)
        except UserError as error:
            raise UserError(f"{error}; redo the stage with --force {folder.name}") from error
    assert isinstance(model, PeftModel)
    return model


def load_adapter(model: PreTrainedModel | PeftModel, name: str, folder: Path) -> PeftModel:
    """The model with one more frozen adapter; raises UserError for a folder that holds no whole one."""
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: no adapter in it")
    try:
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=False)
        model.load_adapter(folder, adapter_name=name)
    except UNREADABLE as error:
        raise UserError(f"{folder}: the adapter cannot be loaded: {str(error).splitlines()[0]}") from error
    return model


def check_adapter(model: str, folder: Path) -> str:
    """The name of the base that an adapter says it was trained on.

    Raises UserError unless its weights have the names and shapes that they would have on `model`.
    """
    refused = f"{folder}: no adapter for {model}"
    try:
        config = PeftConfig.from_pretrained(folder)
        given = {name: tuple(weight.shape) for name, weight in load_peft_weights(str(folder), "cpu").items()}
        shapes, trained_on = shapes_of(model), config.base_model_name_or_path
        refused += f", but for {trained_on}"
        config.base_model_name_or_path = (
            shapes.name_or_path or None
        )  # a difference is the caller's to judge, not peft's
        with torch.device("meta"):
            state = get_peft_model_state_dict(get_peft_model(shapes, config))
    except UNREADABLE as error:
        raise UserError(f"{refused}: {str(error).splitlines()[0]}") from error
    wanted = {name: tuple(weight.shape) for name, weight in state.items()}
    odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if odd:
        found, needed = given.get(odd[0], "missing"), wanted.get(odd[0], "missing")
        raise UserError(f"{refused}: {odd[0]} is {found} and should be {needed}")
    return str(trained_on)
