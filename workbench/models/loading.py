"""Load tokenizers and language models from a hub id, a folder or toy:NAME, and save them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.utils import logging

from workbench.config.schema import PolicyConfig
from workbench.errors import UserError, error_context
from workbench.models.precision import DTYPES, resolve_precision
from workbench.models.quantization import disable_weight_repacking, keep_vectors_in_fp32, quantization_config
from workbench.run.files import missing_path
from workbench.run.hub import hub_is_reachable, is_hub_id, unreachable
from workbench.toy import model_folder, toy_name

# Loading weights is not worth a bar of its own: it would stand between those of the stages. Downloads have another.
logging.set_tqdm_hook(lambda factory, arguments, options: factory(*arguments, **options | {"disable": True}))

# Tokenizers without a limit report 1e30.
MAX_CONTEXT_LENGTH = 10_000_000


def resolve(model: str) -> str:
    """Return what `from_pretrained` takes for `model`; raises UserError for a folder that does not exist."""
    name = toy_name(model)
    if name is not None:
        return str(model_folder(name))
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{model}: the folder has no config.json; use a folder made by save_pretrained")
        return str(path)
    if path.exists():
        raise UserError(f"{model}: not a folder; use a folder made by save_pretrained, or a hub id")
    if model.startswith((".", "/", "~")) or not is_hub_id(model):
        raise UserError(f"{missing_path(model)}; use a folder made by save_pretrained, or a hub id")
    return model


def from_pretrained(auto_class: Any, model: str, **options: Any) -> Any:
    """Return `auto_class.from_pretrained`; a failure becomes a one-line UserError with the model and the cause."""
    folder = resolve(model)
    is_local = Path(folder).is_dir()
    is_reachable = is_local or hub_is_reachable(folder, "model")
    if not is_reachable:
        options["local_files_only"] = True
    try:
        return auto_class.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = lines[0] if lines else type(error).__name__
        if is_local:
            raise UserError(f"{model}: cannot be loaded: {cause}") from error
        if is_reachable:
            raise UserError(f"{model}: no such folder, and no hub model that can be loaded: {cause}") from error
        raise UserError(unreachable(model, "model")) from error


def load_config(model: str) -> PretrainedConfig:
    """Load the model's configuration, without its weights."""
    return from_pretrained(AutoConfig, model)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, which pads with EOS if it has no padding token; masks never depend on ids."""
    tokenizer = from_pretrained(AutoTokenizer, model)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise UserError(f"{model}: the tokenizer has neither pad_token nor eos_token; set one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model that generates; raises UserError for one without EOS."""
    tokenizer = load_tokenizer(model)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{model}: the tokenizer has no eos_token, so a response could never end; set one")
    return tokenizer


def context_length(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, model: nn.Module | None = None
) -> int | None:
    """Return the maximum number of tokens that the model reads at once, or None for no limit.

    For a decoder that is prompt and response together. T5 has relative positions and no limit of its own; its
    tokenizer gives the length that it was trained on. With a loaded `model`, its learned position tables count too: one
    with a padding row (RoBERTa) has fewer positions than its configuration says.
    """
    limits = [tokenizer.model_max_length]
    text_config = config.get_text_config(decoder=not config.is_encoder_decoder)
    has_positions = {"max_position_embeddings", "n_positions"} & set(text_config.to_dict())
    if has_positions and not config.is_encoder_decoder:
        limits.append(text_config.max_position_embeddings)
    for name, module in model.named_modules() if model is not None else ():
        if name.endswith((".position_embeddings", ".wpe")) and isinstance(module, nn.Embedding):
            first_position = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - first_position)
    limit = min(limits)
    return None if limit > MAX_CONTEXT_LENGTH else limit


def policy_precision(policy: PolicyConfig, device: torch.device, config: PretrainedConfig | None = None) -> str:
    """Return fp32, bf16 or fp16: the precision of the policy on a device; `config` is the model's, if loaded before.

    Raises UserError for a precision that is known to fail with the architecture.
    """
    with error_context("policy.precision"):
        return resolve_precision(policy.precision, device, config or load_config(policy.model))


def load_model(policy: PolicyConfig, *, device: torch.device) -> PreTrainedModel:
    """Load the base model onto `device` without dropout or sampling options, frozen if the policy uses LoRA.

    Raises UserError for a precision that is known to fail.
    """
    config = load_config(policy.model)
    precision = policy_precision(policy, device, config)
    # A frozen base is kept in the precision it computes in; weights that are trained stay in fp32.
    dtype = DTYPES[precision] if policy.lora else torch.float32
    disable_dropout(config)
    options: dict[str, Any] = {"dtype": dtype, "config": config} | attention(precision, device)
    if policy.quantization:
        quantization = quantization_config(policy.quantization, DTYPES[precision])
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    model = from_pretrained(auto_class(config), policy.model, **options)
    if policy.quantization:
        disable_weight_repacking(model)
        keep_vectors_in_fp32(model)
    else:
        model.to(device)
    if policy.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if config.is_encoder_decoder:
        # The loss of SFT shifts its labels by the configuration's own id.
        model.config.decoder_start_token_id = start_id(model)
    fuse_kernels(model)
    model.requires_grad_(policy.lora is None)
    reset_generation_config(model)
    return model


def meta_model(model: str) -> PreTrainedModel:
    """Return the model at a hub id, folder or toy:NAME on the "meta" device: its shapes without its weights."""
    config = load_config(model)
    disable_dropout(config)
    with torch.device("meta"):
        shapes: PreTrainedModel = auto_class(config).from_config(config)
    with suppress(UserError):  # without that file, config.json names the stop tokens
        shapes.generation_config = from_pretrained(GenerationConfig, model)
    return shapes


def auto_class(config: PretrainedConfig) -> Any:
    """Return the transformers class that loads a language model of this configuration."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def attention(precision: str, device: torch.device) -> dict[str, str]:
    """Return `from_pretrained` options: on a CPU in bf16, fused attention takes 3 to 6 times as long backward."""
    return {"attn_implementation": "eager"} if device.type == "cpu" and precision == "bf16" else {}


def fuse_kernels(model: PreTrainedModel) -> None:
    """Replace modules made of five to eight operations with torch's single kernel; weights keep their names."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
            elif isinstance(child, T5LayerNorm | LlamaRMSNorm):
                fused = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                fused.weight = child.weight
                setattr(module, name, fused)


def disable_dropout(config: PretrainedConfig) -> None:
    """Set every dropout probability of a configuration to 0, in place.

    With dropout on, the first ratio is not 1 and the KL at the first step is large.
    """
    for part in (config, config.get_text_config(decoder=True)):
        for name, value in part.to_dict().items():
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)


def reset_generation_config(model: PreTrainedModel) -> None:
    """Keep the model's special tokens and drop its sampling options.

    `generate` fills what a caller leaves unset from the model's own generation_config (top_k, repetition penalty,
    ...), and would then sample from a different distribution than the one that is scored.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    options = model.generation_config.to_dict()
    model.generation_config = GenerationConfig(**{name: options.get(name) for name in names})


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a response: the tokenizer's EOS and those of the model's generation_config."""
    eos = model.generation_config.eos_token_id
    listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return sorted({tokenizer.eos_token_id, *listed})


def start_id(model: PreTrainedModel) -> int | None:
    """Return the id with which `generate` starts an encoder-decoder's response; None for a decoder."""
    if not model.config.is_encoder_decoder:
        return None
    ids = (model.generation_config.decoder_start_token_id, model.config.decoder_start_token_id)
    return next(int(first) for first in (*ids, model.generation_config.bos_token_id) if first is not None)


def save_model(
    model: PreTrainedModel | PeftModel, folder: Path, state_dict: dict[str, torch.Tensor] | None = None
) -> None:
    """Write an ordinary transformers model, or PEFT adapter, into `folder`.

    The active adapter's files are written to `folder` itself, where `PeftModel.from_pretrained(base, folder)` looks.
    `state_dict` has the weights of a sharded model in full.
    """
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder, state_dict=state_dict)
        return
    name = model.active_adapter
    # Without the flag peft looks up the base on the hub, and may save the frozen embeddings with the adapter.
    model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
    for file in (folder / name).iterdir() if (folder / name).is_dir() else ():
        file.replace(folder / file.name)
    if (folder / name).is_dir():
        (folder / name).rmdir()
