"""Put a tuning method on a model, load what it saved, and say in a plan whether it fits the architecture."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch
from peft import IA3Config, PeftModel, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_TARGETS
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.config.schema import PolicyConfig
from workbench.config.tuning import (
    FULL,
    LORA,
    PREFIX_TUNING,
    PROMPT_TUNING,
    ZERO_SHOT,
    TuningMethod,
    check_method_settings,
)
from workbench.data.context import Context
from workbench.errors import UserError, error_context
from workbench.models.adapters import WEIGHT_FILES, add_lora, check_rank, is_adapter, load_adapter
from workbench.models.loading import fuse_kernels, meta_model
from workbench.models.memory import UNCOUNTABLE
from workbench.models.soft_prompts import add_prefix, add_prompt, is_soft_prompt, load_soft_prompt, task_type
from workbench.models.weights import check_finite, stored_weights
from workbench.run.distributed import is_sharded_launch

MODEL_FILES = ("model*.safetensors", "pytorch_model*.bin")


def tuned_policy(policy: PolicyConfig, method: TuningMethod) -> PolicyConfig:
    """Return how to load the base for a method: in fp32 to train every weight, else frozen and perhaps quantized."""
    lora = None if method.method == FULL else method.lora_settings()
    return dataclasses.replace(policy, lora=lora, quantization=method.quantization)


def add_method(
    model: PreTrainedModel, method: TuningMethod, *, seed: int, name: str = "default", key: str = "method"
) -> PreTrainedModel | PeftModel:
    """Return the model, loaded as `tuned_policy` says, ready to train: only what the method trains takes gradients.

    What is trained starts from the seed, as an adapter called `name`. Raises UserError, with the configuration's `key`,
    for a method that the model cannot take.
    """
    check_method_settings(method, key)
    if method.method == LORA:
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            return add_lora(model, method.lora_settings(), name, key=key)
    with error_context(f"{key}.method: {method.method}"):
        if method.method == ZERO_SHOT:
            return model.requires_grad_(False)
        if method.method == FULL:
            return model.float().requires_grad_(True)
        if method.method == PROMPT_TUNING:
            return add_prompt(model, method.virtual_token_count(), name, seed)
        if method.method == PREFIX_TUNING:
            return add_prefix(model, method.virtual_token_count(), name, seed)
        return add_ia3(model, name)


def add_ia3(model: PreTrainedModel, name: str) -> PeftModel:
    """Return the frozen model with scales of keys, values and activations, which change nothing until trained.

    Raises UserError for an architecture whose keys, values and activations are not known by name.
    """
    model_type = model.config.model_type
    if model_type not in IA3_TARGETS:
        raise UserError(f"the layers that it scales are not known for {model_type}; use lora")
    model.requires_grad_(False)
    config = IA3Config(
        task_type=task_type(model),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 stores (in, out)
    )
    try:
        return get_peft_model(model, config, adapter_name=name)
    except ValueError as error:
        raise UserError(f"{model_type}: {str(error).splitlines()[0]}; use lora") from error


def load_method(model: PreTrainedModel, folder: Path, name: str = "default") -> PreTrainedModel | PeftModel:
    """Return the model, loaded as `tuned_policy` says, as `save_model` left it in `folder`, frozen.

    An adapter or virtual tokens are put on it under `name`; a full model's weights replace its own. Raises UserError
    for files that are missing, do not fit or are corrupt.
    """
    if is_adapter(folder):
        return load_soft_prompt(model, folder, name) if is_soft_prompt(folder) else load_adapter(model, name, folder)
    weights = dict(stored_weights(folder))
    check_finite(str(folder), weights.items())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    loaded = {id(parameters[weight]) for weight in weights if weight in parameters}
    missing = [weight for weight, parameter in parameters.items() if id(parameter) not in loaded]
    if missing:
        raise UserError(f"{folder}: {len(missing)} weights are missing, such as {missing[0]}; save the model again")
    try:
        model.load_state_dict(weights, strict=False)  # weights that modules share are there once
    except RuntimeError as error:
        raise UserError(f"{folder}: its weights do not fit the model: {str(error).splitlines()[-1].strip()}") from error
    return model.requires_grad_(False)


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many parameters take gradients, and how many there are, each as a number and not as it is packed."""
    counts = [(parameter_count(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, is_trained in counts if is_trained), sum(count for count, _ in counts)


def parameter_count(parameter: nn.Parameter) -> int:
    """Return the number of elements; bitsandbytes packs two weights of 4 bits into one."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def saved_bytes(folder: Path) -> int:
    """Return the bytes of the weights in a folder that `save_model` wrote: of an adapter, or of a full model."""
    patterns = WEIGHT_FILES if is_adapter(folder) else MODEL_FILES
    return sum(file.stat().st_size for pattern in patterns for file in folder.glob(pattern))


def tuned_context(context: Context, method: TuningMethod, key: str) -> Context:
    """Return what the model reads besides the virtual tokens; raises UserError if they leave no room."""
    count = method.virtual_token_count()
    is_in_response = method.method == PREFIX_TUNING and not context.is_decoder_only
    length = context.response_length if is_in_response else context.length
    if not count or length is None:
        return context
    if count >= length:
        raise UserError(
            f"{key}.virtual_tokens: {count} leave no room in the context length of {length} tokens; lower them"
        )
    if is_in_response:
        return dataclasses.replace(context, response_length=length - count)
    return dataclasses.replace(context, length=length - count)


def check_method(policy: PolicyConfig, method: TuningMethod, key: str) -> None:
    """Raise UserError, with the configuration's `key`, for a method that the model, or this machine, cannot take.

    The model is on the "meta" device: none of its weights is read.
    """
    check_method_settings(method, key)
    if method.quantization is not None and find_spec("bitsandbytes") is None:
        raise UserError(
            f"{key}.quantization: {method.quantization} needs bitsandbytes, which is not installed; pip install "
            "bitsandbytes, or remove quantization"
        )
    if method.method == PREFIX_TUNING and policy.gradient_checkpointing:
        raise UserError(
            f"{key}.method: prefix_tuning does not work with policy.gradient_checkpointing, which recomputes without "
            "the cache that holds the prefix; turn it off, or use prompt_tuning"
        )
    if method.method not in (FULL, ZERO_SHOT) and is_sharded_launch():
        raise UserError(
            f"{key}.method: {method.method} does not work under FSDP, which divides models that are trained in full; "
            "launch with recipes/accelerate/multi_gpu.yaml"
        )
    model = meta_model(policy.model)
    fuse_kernels(model)
    if method.method == LORA:
        check_rank(model, method.lora_settings(), f"{key}.r", policy.model)
    with suppress(*UNCOUNTABLE), torch.device("meta"):  # what cannot be run without weights is not refused here
        add_method(model, method, seed=0, key=key)
