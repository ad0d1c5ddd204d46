"""LoRA adapters: fresh ones, trained ones, and whether one that was trained elsewhere fits the base."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
)
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.config.schema import LoraSettings, PolicyConfig
from workbench.errors import UserError, one_line
from workbench.models.loading import load_model, meta_model

UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Ways to begin that change no weight of the base; others move what they begin with out of it.
KEEPS_BASE = (True, False, "gaussian", "orthogonal")
# Settings of LoRA that, whatever their value, leave the base as it is and share it with other adapters.
# fmt: off
HARMLESS = frozenset((
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
    "layers_to_transform", "layers_pattern", "fan_in_fan_out", "use_rslora", "use_dora", "lora_bias",
    "modules_to_save", "ensure_weight_tying", "runtime_config", "loftq_config",
))
# fmt: on


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


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (folder / "adapter_config.json").is_file()


def load_adapter(model: PreTrainedModel | PeftModel, name: str, folder: Path) -> PeftModel:
    """The model with one more frozen adapter; raises UserError for a folder that holds no whole one."""
    if not is_adapter(folder):
        raise UserError(f"{folder}: no adapter in it")
    try:
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=False)
        model.load_adapter(folder, adapter_name=name)
    except UNREADABLE as error:
        raise UserError(f"{folder}: the adapter cannot be loaded: {str(error).splitlines()[0]}") from error
    return model


def check_adapter(model: str, folder: Path) -> str:
    """The name of the base that an adapter made elsewhere says it was trained on.

    Raises UserError unless it can join `model` and leave every other adapter and the model itself as they are, and its
    weights have the names and shapes that they would have there.
    """
    refused = f"{folder}: no adapter for {model}"
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError(f"{refused}: it has neither {' nor '.join(WEIGHTS)}")
    try:
        config = PeftConfig.from_pretrained(str(folder.resolve()))
        given = {name: tuple(weight.shape) for name, weight in load_peft_weights(str(folder.resolve()), "cpu").items()}
    except Exception as error:  # files made elsewhere fail in as many ways as there are libraries that read them
        raise UserError(f"{refused}: it cannot be read: {one_line(error)}") from error
    trained_on, shapes = str(config.base_model_name_or_path), meta_model(model)
    refused += f", but for {trained_on}"
    reason = unfit(config, given)
    if reason is not None:
        raise UserError(f"{refused}: {reason}")
    # peft would warn of a difference, which is for the caller to judge.
    config.base_model_name_or_path = shapes.name_or_path or None
    try:
        with torch.device("meta"):
            state = get_peft_model_state_dict(get_peft_model(shapes, config), save_embedding_layers=False)
    except UNREADABLE as error:
        raise UserError(f"{refused}: {str(error).splitlines()[0]}") from error
    wanted = {name: tuple(weight.shape) for name, weight in state.items()}
    odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if odd:
        found, needed = given.get(odd[0], "missing"), wanted.get(odd[0], "missing")
        raise UserError(f"{refused}: {odd[0]} is {found} and should be {needed}")
    return trained_on


def unfit(config: PeftConfig, names: Iterable[str]) -> str | None:
    """Why an adapter with weights of these names cannot stand beside others on one base, if it cannot."""
    if config.peft_type != PeftType.LORA:
        kind = config.peft_type.value if config.peft_type else "of no kind"
        return f"it is {kind}, and only LoRA shares a base with others; merge it into a model first"
    plain = vars(LoraConfig())
    for name, value in vars(config).items():
        kept = value in KEEPS_BASE if name == "init_lora_weights" else name in HARMLESS or value == plain[name]
        if not kept:
            return f"its {name} is {value!r}, which may change the base it joins; merge it into a model first"
    saved = config.modules_to_save
    bases = sorted(name for name in names if ".base_layer." in name or not ("lora_" in name or saved))
    if bases:
        return f"it carries {bases[0]}, a weight of the base; save it with save_embedding_layers=False"
    return None
