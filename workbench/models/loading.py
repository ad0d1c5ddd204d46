"""Load tokenizers and language models from a hub id, a folder or the embedded defaults."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel, prepare_model_for_kbit_training
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from workbench.config.schema import PolicyConfig
from workbench.errors import UserError
from workbench.toy import model_folder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HUB_SECONDS = 5.0
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve(model: str) -> str:
    """What `from_pretrained` takes for `model`; raises UserError for a folder that does not exist."""
    if model.startswith("toy:"):
        return str(model_folder(model.removeprefix("toy:")))
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{model}: the folder has no config.json; give a folder made by save_pretrained")
        return str(path)
    if path.exists() or model.startswith((".", "/", "~")) or not HUB_ID.fullmatch(model):
        raise UserError(f"{model}: no such model folder; give a folder made by save_pretrained, or a hub id")
    return model


def from_pretrained(auto_class: Any, model: str, **options: Any) -> Any:
    """`auto_class.from_pretrained` whose failures are one line: a UserError naming the model and the cause."""
    folder = resolve(model)
    if not Path(folder).is_dir() and not hub_answers(folder):
        options["local_files_only"] = True
    try:
        return auto_class.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = lines[0] if lines else type(error).__name__
        if folder == model:
            cause += " (a hub id needs a network or a filled cache; a local folder needs neither)"
        raise UserError(f"{model}: cannot be loaded: {cause}") from error


@cache
def hub_answers(model: str) -> bool:
    """Whether the hub can be reached; without it the cache is read at once, where loading would retry for a minute."""
    try:
        HfApi().model_info(model, timeout=HUB_SECONDS)
    except HfHubHTTPError:
        return True  # an answer: loading will say what is wrong
    except Exception:  # the classes of the HTTP library below change
        return False
    return True


def load_config(model: str) -> PretrainedConfig:
    """The model's configuration, without its weights."""
    return from_pretrained(AutoConfig, model)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer; one without a padding token pads with its end of text, since masks come from lengths."""
    tokenizer = from_pretrained(AutoTokenizer, model)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise UserError(f"{model}: the tokenizer has neither pad_token nor eos_token; set one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that is to generate; raises UserError for one without an end of text."""
    tokenizer = load_tokenizer(model)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{model}: the tokenizer has no eos_token, so a response could never end; set one")
    return tokenizer


def window(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The most tokens the model reads at once (prompt and response for a decoder), or None without a limit.

    T5 has relative positions and no limit of its own; its tokenizer states the length it was trained on.
    """
    text_config = config.get_text_config(decoder=not config.is_encoder_decoder)
    limits = [tokenizer.model_max_length]
    positions = {"max_position_embeddings", "n_positions"} & set(text_config.to_dict())
    if positions and not config.is_encoder_decoder:
        limits.append(text_config.max_position_embeddings)
    limit = min(limits)
    return None if limit > 10_000_000 else limit


def check_precision(policy: PolicyConfig, config: PretrainedConfig) -> None:
    """Raises UserError for a precision that is known to fail with this architecture."""
    if policy.precision == "fp16" and config.model_type in ("t5", "mt5", "umt5"):
        raise UserError("policy.precision: fp16 overflows in T5 (loss 0.0 or NaN); use bf16 or fp32")
    if policy.precision == "fp16":
        raise UserError("policy.precision: fp16 needs loss scaling, which PPO here does not do; use bf16 or fp32")


def load_model(policy: PolicyConfig, *, device: torch.device) -> PreTrainedModel:
    """The base model on `device`, dropout off, sampling options neutral; frozen where the policy uses LoRA.

    Raises UserError for a precision that is known to fail.
    """
    config = load_config(policy.model)
    check_precision(policy, config)
    # A frozen base is kept in the precision it computes in; weights that are trained stay in fp32.
    dtype = DTYPES[policy.precision] if policy.lora else torch.float32
    disable_dropout(config)
    options: dict[str, Any] = {"dtype": dtype, "config": config} | attention(policy.precision, device)
    if policy.quantization:
        options |= {"quantization_config": quantization_config(policy), "device_map": {"": device}}
    model = from_pretrained(auto_class(config), policy.model, **options)
    if policy.quantization:
        disable_weight_repacking(model)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    else:
        model.to(device)
    if policy.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    fuse_kernels(model)
    model.requires_grad_(policy.lora is None)
    reset_generation_config(model)
    return model


def meta_model(model: str) -> PreTrainedModel:
    """The model at a hub id, folder or toy:NAME without its weights, on the device "meta"."""
    config = load_config(model)
    with torch.device("meta"):
        shapes: PreTrainedModel = auto_class(config).from_config(config)
    with suppress(UserError):  # a model without that file says in config.json what ends a text
        shapes.generation_config = from_pretrained(GenerationConfig, model)
    return shapes


def auto_class(config: PretrainedConfig) -> Any:
    """The transformers class that loads a language model of this configuration."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def attention(precision: str, device: torch.device) -> dict[str, str]:
    """Options of `from_pretrained`: in bf16 on a CPU, fused attention's backward pass is three to six times slower."""
    return {"attn_implementation": "eager"} if device.type == "cpu" and precision == "bf16" else {}


def fuse_kernels(model: PreTrainedModel) -> None:
    """Put torch's one kernel in the place of the same function written as five to eight; weights keep their names."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
            elif isinstance(child, T5LayerNorm | LlamaRMSNorm):
                fused = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                fused.weight = child.weight
                setattr(module, name, fused)


def disable_weight_repacking(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for inference on the CPU, which has no gradient.

    It does so at the first forward pass in eval mode, as a rollout is, and gradients then end at every layer.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False


def quantization_config(policy: PolicyConfig) -> BitsAndBytesConfig:
    """The bitsandbytes settings of QLoRA (arXiv 2305.14314): NF4, double quantisation, bf16 products."""
    if policy.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[policy.precision],
    )


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

    `generate` fills what a caller leaves unset from the model's own generation_config (top_k, repetition
    penalty, ...), so that it would sample from another distribution than the one that is scored.
    """
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    options = model.generation_config.to_dict()
    model.generation_config = GenerationConfig(**{name: options.get(name) for name in kept})


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a response: the tokenizer's eos and those of the model's generation_config."""
    eos = model.generation_config.eos_token_id
    listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return sorted({tokenizer.eos_token_id, *listed})


def save_model(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Write an ordinary transformers model, or PEFT adapter, into `folder`.

    The active adapter's files stand in `folder` itself, where `PeftModel.from_pretrained(base, folder)` looks.
    """
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder)
        return
    name = model.active_adapter
    # Without the flag peft looks up the base on the hub, and may save the frozen embeddings with the adapter.
    model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
    for file in (folder / name).iterdir() if (folder / name).is_dir() else ():
        file.replace(folder / file.name)
    if (folder / name).is_dir():
        (folder / name).rmdir()


def use_paged_optimizer(policy: PolicyConfig, device: torch.device) -> bool:
    """Whether the optimizer's state shall move to the host when a GPU is full (arXiv 2305.14314 section 3)."""
    return policy.quantization is not None and device.type == "cuda"


def make_optimizer(groups: list[dict[str, Any]], *, paged: bool) -> torch.optim.Optimizer:
    """AdamW without weight decay on parameter groups, each with its lr; bitsandbytes' paged one if asked for."""
    if not paged:
        return torch.optim.AdamW(groups, eps=1e-5, weight_decay=0.0)
    from bitsandbytes.optim import PagedAdamW32bit

    return PagedAdamW32bit(groups, eps=1e-5, weight_decay=0.0)


def autocast_dtype(policy: PolicyConfig) -> torch.dtype | None:
    """The dtype of matrix products under autocast, or None for plain fp32."""
    return None if policy.precision == "fp32" else DTYPES[policy.precision]
