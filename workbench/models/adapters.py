"""LoRA adapters: create them, load them, and check whether one that was trained elsewhere fits the base."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

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
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.config.schema import PolicyConfig
from workbench.config.tuning import LoraSettings
from workbench.errors import UserError, one_line, shorten
from workbench.models.loading import load_model, meta_model
from workbench.models.weights import check_finite

LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError, UnpicklingError, EOFError)
ALL_LINEAR = "all-linear"  # peft's name for every linear layer but the output head
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# Values of init_lora_weights that leave the base unchanged; the others subtract the initial adapter from it.
BASE_PRESERVING_INITIALIZATIONS = (True, False, "gaussian", "orthogonal")
# LoRA settings that leave the base unchanged whatever their value, so that other adapters can share it.
# fmt: off
BASE_PRESERVING_SETTINGS = frozenset((
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
    "layers_to_transform", "layers_pattern", "fan_in_fan_out", "use_rslora", "use_dora", "lora_bias",
    "modules_to_save", "ensure_weight_tying", "runtime_config", "loftq_config",
))
# fmt: on


def add_lora(
    model: PreTrainedModel, lora: LoraSettings, name: str, *, key: str = "policy.lora", classifier: bool = False
) -> PeftModel:
    """Return the model with a new trainable adapter called `name`, which changes nothing until it is trained.

    A classifier's head, which is new, is trained in full as well. Raises UserError, with the configuration's `key`, for
    modules that the model does not have.
    """
    # Not SEQ_CLS: its model passes on arguments that not every classifier takes, and knows heads of two names only.
    task = None
    if not classifier:
        task = TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
    targets = lora.target_modules or ALL_LINEAR
    if targets == [ALL_LINEAR]:
        targets = ALL_LINEAR
    if isinstance(targets, list):
        check_target_modules(model, targets, f"{key}.target_modules")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,  # dropout would make the ratio of old and new probabilities differ from 1
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 stores (in, out)
        modules_to_save=classifier_head(model) if classifier else None,
        task_type=task,
    )
    try:
        return get_peft_model(model, config, adapter_name=name)
    except ValueError as error:
        raise UserError(f"{key}.target_modules: {lora.target_modules}: {str(error).splitlines()[0]}") from error


def check_rank(model: PreTrainedModel, lora: LoraSettings, key: str, name: str) -> None:
    """Raise UserError for an adapter of a higher rank than every weight of the model called `name`."""
    full_rank = max(min(weight.shape) for weight in model.parameters() if weight.dim() == 2)
    if lora.r > full_rank:
        raise UserError(
            f"{key}: {lora.r} is above {full_rank}, the rank of the largest weight of {name}; an adapter of a higher "
            "rank cannot express more; lower it"
        )


def classifier_head(model: PreTrainedModel) -> list[str]:
    """Return the names of a classifier's modules with weights that are not part of its body."""
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


def check_target_modules(model: PreTrainedModel, names: list[str], key: str) -> None:
    """Raise UserError for a name of no layer, and for layers that LoRA cannot adapt without changing another one."""
    modules = dict(model.named_modules())
    embedded = {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}
    adaptable = {
        path.rsplit(".", 1)[-1]
        for path, module in modules.items()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in embedded
    }
    allowed = f"; use {ALL_LINEAR}, or names among {', '.join(sorted(adaptable))}"
    for name in names:
        if name == ALL_LINEAR:
            raise UserError(f"{key}: {ALL_LINEAR} stands for all names; write it without a list")
        matches = [module for path, module in modules.items() if path == name or path.endswith(f".{name}")]
        if not matches:
            raise UserError(f"{key}: {shorten(name)} is not the name of a layer{allowed}")
        for module in matches:
            if not isinstance(module, nn.Linear | Conv1D):
                raise UserError(f"{key}: {name} is not a linear layer ({type(module).__name__}){allowed}")
            if id(module.weight) in embedded:
                raise UserError(f"{key}: {name} shares its weight with the embeddings, which would change too{allowed}")


@dataclass(frozen=True)
class TrainableModels:
    """The models of a policy that PPO trains; a PEFT model holds the reference and the value model as adapters."""

    model: PreTrainedModel | PeftModel
    reference: PreTrainedModel | None = None
    """A frozen copy, in full fine-tuning."""
    value_model: PreTrainedModel | None = None
    """A separate copy for the values; only in full fine-tuning, and optional."""


def load_trainable(
    policy: PolicyConfig, start: Path | None, *, device: torch.device, value_model: bool = False
) -> TrainableModels:
    """Load the model that PPO trains, its reference, and optionally a model for the values.

    `start` is the folder of the SFT stage. It holds an adapter, which is loaded as `sft` (frozen), as `policy` and, for
    the values, as `value`, or a full model. Without it PPO starts from the base.
    """
    if policy.lora is None:
        initial = policy if start is None else dataclasses.replace(policy, model=str(start))
        reference = load_model(initial, device=device).requires_grad_(False)
        model = load_model(initial, device=device)
        return TrainableModels(model, reference, load_model(initial, device=device) if value_model else None)
    base = load_model(policy, device=device)
    trained = ["policy", "value"] if value_model else ["policy"]
    if start is None:
        trainable = add_lora(base, policy.lora, "policy")
        if value_model:
            trainable.add_adapter("value", trainable.peft_config["policy"])
    else:
        trainable = load_adapters(base, {"sft": start})
        for name in trained:
            trainable.load_adapter(start, adapter_name=name, is_trainable=True)
    trainable.set_adapter("policy")
    return TrainableModels(trainable)


def load_adapters(model: PreTrainedModel | PeftModel, folders: dict[str, Path]) -> PeftModel:
    """Return the model with the frozen adapters of stages, by name; raises UserError for a corrupt one."""
    for name, folder in folders.items():
        try:
            model = load_adapter(model, name, folder)
        except UserError as error:
            raise UserError(f"{error}; redo the stage with --force {folder.name}") from error
    assert isinstance(model, PeftModel)
    return model


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter rather than a full model."""
    return (folder / "adapter_config.json").is_file()


def load_adapter(model: PreTrainedModel | PeftModel, name: str, folder: Path) -> PeftModel:
    """Return the model with one more frozen adapter; raises UserError for a corrupt one."""
    if not is_adapter(folder):
        raise UserError(f"{folder}: the folder has no adapter_config.json")
    if not any((folder / f"adapter_model.{suffix}").is_file() for suffix in ("safetensors", "bin")):
        raise UserError(f"{folder}: the folder has no adapter_model.safetensors")
    try:
        if isinstance(model, PeftModel):
            loaded = model
            loaded.load_adapter(str(folder), adapter_name=name)
        else:
            loaded = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=False)
    except LOADING_ERRORS as error:
        raise UserError(f"{folder}: the adapter cannot be loaded: {one_line(error)}") from error
    adapter = get_peft_model_state_dict(loaded, adapter_name=name, save_embedding_layers=False)
    check_finite(str(folder), adapter.items())
    return loaded


def check_adapter(model: str, folder: Path) -> str:
    """Return the name of the base that an adapter from elsewhere was trained on.

    Raises UserError unless the names and shapes of the adapter's weights fit `model`, and it leaves the model and every
    other adapter on it unchanged.
    """
    refusal = f"{folder}: the adapter does not fit {model}"
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise UserError(f"{refusal}: it has neither {' nor '.join(WEIGHT_FILES)}")
    try:
        config = PeftConfig.from_pretrained(str(folder.resolve()))
        weights = load_peft_weights(str(folder.resolve()), "cpu")
    except Exception as error:  # each library that reads these files raises its own exceptions
        raise UserError(f"{refusal}: it cannot be read: {one_line(error)}") from error
    check_finite(str(folder), weights.items())
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    trained_on, base = str(config.base_model_name_or_path), meta_model(model)
    refusal += f" (it was trained on {trained_on})"
    reason = incompatibility(config, shapes)
    if reason is not None:
        raise UserError(f"{refusal}: {reason}")
    # peft would warn that the names differ, which is for the caller to judge.
    config.base_model_name_or_path = base.name_or_path or None
    try:
        with torch.device("meta"):
            state = get_peft_model_state_dict(get_peft_model(base, config), save_embedding_layers=False)
    except LOADING_ERRORS as error:
        raise UserError(f"{refusal}: {str(error).splitlines()[0]}") from error
    expected = {name: tuple(weight.shape) for name, weight in state.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            actual, needed = shapes.get(name, "missing"), expected.get(name, "missing")
            raise UserError(f"{refusal}: {name} is {actual} and should be {needed}")
    return trained_on


def incompatibility(config: PeftConfig, weights: Iterable[str]) -> str | None:
    """Return why an adapter with weights of these names cannot share a base with others, or None if it can."""
    if config.peft_type != PeftType.LORA:
        kind = config.peft_type.value if config.peft_type else "of an unknown type"
        return f"it is {kind}, and only LoRA can share a base with other adapters; merge it into a model first"
    defaults = vars(LoraConfig())
    for name, value in vars(config).items():
        if name == "init_lora_weights":
            leaves_base = value in BASE_PRESERVING_INITIALIZATIONS
        else:
            leaves_base = name in BASE_PRESERVING_SETTINGS or value == defaults[name]
        if not leaves_base:
            return f"its {name} is {value!r}, which may change the base it is loaded onto; merge it into a model first"
    saves_modules = config.modules_to_save
    base_weights = sorted(name for name in weights if ".base_layer." in name or not ("lora_" in name or saves_modules))
    if base_weights:
        return f"it contains {base_weights[0]}, a weight of the base; save it with save_embedding_layers=False"
    return None


@contextmanager
def active_adapter(model: PeftModel, name: str) -> Iterator[None]:
    """Activate the adapter called `name`, or with "base" none; afterwards what was active before is so again.

    These contexts may stand within each other.
    """
    if name == "base":
        with model.disable_adapter():
            yield
        return
    active = model.active_adapter
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    is_base = any(layer.disable_adapters for layer in layers)  # which set_adapter would leave as it is
    if name == active and not is_base:
        yield
        return
    if is_base:
        model.base_model.enable_adapter_layers()
    try:
        model.set_adapter(name, inference_mode=True)
        yield
    finally:
        model.set_adapter(active)
        if is_base:
            model.base_model.disable_adapter_layers()


def adapter_name(name: str) -> str | None:
    """Return the LoRA adapter that a parameter belongs to; a layer may be called value too, as in BERT's attention."""
    match = re.search(r"\.lora_\w+\.(\w+)", name)
    return match[1] if match else None
