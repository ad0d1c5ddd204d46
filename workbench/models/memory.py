"""Estimate the memory that a run needs from shapes alone, without loading weights."""

from __future__ import annotations

import psutil
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from workbench.config.schema import Config
from workbench.errors import UserError
from workbench.models.adapters import add_lora
from workbench.models.loading import meta_model, policy_precision
from workbench.models.precision import DTYPES, machine_device, precision_lines

BYTES_PER_QUANTIZED = {"nf4": 0.55, "int8": 1.05}
# fp32 weight, gradient and two moments of Adam.
BYTES_PER_TRAINED = 16


def model_plan(config: Config, key: str, rows: int, tokens: int) -> list[str]:
    """Return lines on the parameters, how many are trained, and the memory for `rows` rows of `tokens` tokens.

    `key` sets the number of rows; a line names it where the machine has too little memory. Raises UserError for an
    adapter of a higher rank than every layer.
    """
    model: PreTrainedModel | PeftModel = meta_model(config.policy.model)
    model_config, base = model.config, model.num_parameters()
    device = machine_device()
    precision = policy_precision(config.policy, device, model_config)
    if config.policy.lora:
        full_rank = max(min(weight.shape) for weight in model.parameters() if weight.dim() == 2)
        if config.policy.lora.r > full_rank:
            raise UserError(
                f"policy.lora.r: {config.policy.lora.r} is above {full_rank}, the rank of the largest weight of "
                f"{config.policy.model}; an adapter of a higher rank cannot express more; lower it"
            )
        model.requires_grad_(False)
        with torch.device("meta"):
            model = add_lora(model, config.policy.lora, "policy")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    text = model_config.get_text_config(decoder=True)
    per_weight = BYTES_PER_QUANTIZED.get(config.policy.quantization or "", DTYPES[precision].itemsize)
    if config.policy.lora is None:
        per_weight = 4
    weights = base * per_weight * (1 if config.policy.lora else 2)
    # Per token: about 34 activations of hidden size per layer (arXiv 2205.05198), and logits, gradient and softmax.
    per_token = 34 * text.num_hidden_layers * text.hidden_size + 12 * text.vocab_size
    total = weights + BYTES_PER_TRAINED * trained + rows * tokens * per_token
    lines = [
        f"{config.policy.model}: {base / 1e6:.1f} M parameters, {trained / 1e6:.2f} M trained "
        f"({100 * trained / base:.2f} %), {config.policy.quantization or precision}",
        f"memory about {total / 2**30:.1f} GiB (weights {weights / 2**30:.1f}) at {rows} rows of {tokens} tokens",
    ]
    lines += precision_lines("policy.precision", config.policy.precision, device, model_config)
    if total > machine_memory():
        lines.append(
            f"warning: this machine has {machine_memory() / 2**30:.1f} GiB of memory; lower {key}, or shorten the texts"
        )
    return lines


def machine_memory() -> int:
    """Return the bytes of memory of the first GPU, or of the machine where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().total
