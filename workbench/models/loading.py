"""Load tokenizers and language models from a hub id, a folder or toy:NAME, and save them."""

from __future__ import annotations

import json
import pickle
import string
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
from workbench.errors import UserError, error_context, one_line
from workbench.models.precision import DTYPES, resolve_precision
from workbench.models.quantization import disable_weight_repacking, keep_vectors_in_fp32, quantization_config
from workbench.models.weights import check_finite, check_report
from workbench.run.files import missing_path
from workbench.run.hub import hub_is_reachable, is_hub_id, unreachable
from workbench.toy import model_folder, toy_name

# Loading weights is not worth a bar of its own: it would stand between those of the stages. Downloads have another.
logging.set_tqdm_hook(lambda factory, arguments, options: factory(*arguments, **options | {"disable": True}))

# A tokenizer of fewer tokens that knows no letter and no digit has lost its files.
MIN_VOCABULARY, MIN_KNOWN_CHARACTERS = 300, 2


def resolve(model: str) -> str:
    """Return what `from_pretrained` takes for `model`; raises UserError for a folder that does not exist."""
    name = toy_name(model)
    if name is not None:
        return str(model_folder(name))
    path = Path(model).expanduser()
    if path.is_dir():
        check_model_folder(model, path)
        return str(path)
    if path.exists():
        raise UserError(f"{model}: not a folder; use a folder made by save_pretrained, or a hub id")
    if model.startswith((".", "/", "~")) or not is_hub_id(model):
        raise UserError(f"{missing_path(model)}; use a folder made by save_pretrained, or a hub id")
    return model


def check_model_folder(model: str, folder: Path) -> None:
    """Raise UserError, with what to do, for a folder that holds no model, an adapter, or both."""
    is_model, adapter = (folder / "config.json").is_file(), folder / "adapter_config.json"
    if is_model and adapter.is_file():
        raise UserError(
            f"{model}: the folder holds a model (config.json) and an adapter (adapter_config.json), and only one "
            "of them can be loaded; move adapter_config.json out of it, or merge the adapter into a model"
        )
    if not is_model and adapter.is_file():
        raise UserError(
            f"{model}: the folder holds an adapter of {adapter_base(adapter)}, not a model; merge it into a model "
            "first: workbench export --run RUN --to FOLDER --merge for an adapter of a run, merge_and_unload() of peft "
            "for any other; to go on from the SFT stage of a run, set reuse.sft to that run"
        )
    if not is_model:
        raise UserError(f"{model}: the folder has no config.json; use a folder made by save_pretrained")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{model}: config.json is not valid JSON: {one_line(error)}; save the model again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        problem = "has no model_type" if isinstance(config, dict) else f"holds a {type(config).__name__}"
        raise UserError(f"{model}: config.json {problem}, so it describes no model; use one made by save_pretrained")


def adapter_base(file: Path) -> str:
    """Return the base that an adapter_config.json names."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError):
        return "an unknown base"


def from_pretrained(auto_class: Any, model: str, **options: Any) -> Any:
    """Return `auto_class.from_pretrained`; a failure becomes a one-line UserError with the model and the cause.

    Code that comes with a model is never run.
    """
    folder = resolve(model)
    is_local = Path(folder).is_dir()
    is_reachable = is_local or hub_is_reachable(folder, "model")
    if not is_reachable:
        options["local_files_only"] = True
    if auto_class is not GenerationConfig:
        options["trust_remote_code"] = False
    try:
        return auto_class.from_pretrained(folder, **options)
    except Exception as error:  # each library that reads these files raises its own exceptions
        cause = loading_error(error)
        if is_local:
            raise UserError(f"{model}: cannot be loaded: {cause}") from error
        if is_reachable:
            raise UserError(f"{model}: no such folder, and no hub model that can be loaded: {cause}") from error
        raise UserError(unreachable(model, "model")) from error


def loading_error(error: Exception) -> str:
    """Return in one line why a model cannot be loaded."""
    if isinstance(error, pickle.UnpicklingError):
        return (
            "its weights are a pickle that holds more than tensors, and reading it could run code; use weights that "
            "were saved as safetensors"
        )
    if "trust_remote_code" in str(error):
        return "it needs code that comes with the model, which is never run; use a model that transformers implements"
    if isinstance(error, SafetensorError):
        return f"its weights are damaged or incomplete ({one_line(error)}); copy or download them again"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OSError | ValueError | RuntimeError | ImportError) and lines:
        return lines[0]
    return one_line(error)


def load_config(model: str) -> PretrainedConfig:
    """Load the model's configuration, without its weights."""
    return from_pretrained(AutoConfig, model)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, which pads with EOS if it has no padding token; masks never depend on ids.

    It pads and truncates on the right, whatever its file says: everything that reads its batches counts on it. Raises
    UserError for one without a vocabulary.
    """
    tokenizer = from_pretrained(AutoTokenizer, model)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    # Without its files, transformers makes a tokenizer of special tokens only.
    texts = tokenizer([*string.ascii_letters, *string.digits], add_special_tokens=False)["input_ids"]
    known = {token for ids in texts for token in ids} - {tokenizer.unk_token_id}
    if len(known) < MIN_KNOWN_CHARACTERS and len(tokenizer) < MIN_VOCABULARY:
        raise UserError(
            f"{model}: its tokenizer has no vocabulary ({len(tokenizer)} tokens); add the tokenizer's files with "
            "tokenizer.save_pretrained"
        )
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
    model, report = from_pretrained(auto_class(config), policy.model, output_loading_info=True, **options)
    check_report(policy.model, report)
    if policy.quantization:
        disable_weight_repacking(model)
        keep_vectors_in_fp32(model)
    else:
        model.to(device)
    check_finite(policy.model, model.named_parameters())
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
        for name in dropout_settings(part):
            setattr(part, name, 0.0)


def dropout_settings(config: PretrainedConfig) -> list[str]:
    """Return the names of the dropout probabilities of a configuration."""
    return [name for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float)]


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
    """Return the id with which `generate` starts an encoder-decoder's response; None for a decoder.

    Raises UserError for a model that does not say.
    """
    if not model.config.is_encoder_decoder:
        return None
    generation = model.generation_config
    ids = (generation.decoder_start_token_id, model.config.to_dict().get("decoder_start_token_id"))
    for first in (*ids, generation.bos_token_id):
        if first is not None:
            return int(first)
    raise UserError(
        f"{model.name_or_path or model.config.model_type}: its config.json has no decoder_start_token_id, with which "
        "every response starts; add it (T5 starts with the id of its padding token, 0)"
    )


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
    sort_lists(folder / "adapter_config.json")


def sort_lists(file: Path) -> None:
    """Write a JSON file anew with its lists of names in order: peft's are sets, in another order in every process."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    ordered = {
        key: sorted(value) if isinstance(value, list) and all(isinstance(name, str) for name in value) else value
        for key, value in settings.items()
    }
    file.write_text(json.dumps(ordered, indent=2, sort_keys=True), encoding="utf-8")
