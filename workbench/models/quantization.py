"""A frozen base in 4 or 8 bits (bitsandbytes), as in QLoRA (arXiv 2305.14314)."""

from __future__ import annotations

from typing import Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel


def quantization_config(kind: Literal["nf4", "int8"], compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the settings of bitsandbytes: 8 bits, or NF4 with double quantization and products in `compute_dtype`."""
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def disable_weight_repacking(model: PreTrainedModel) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for inference on the CPU, which has no gradient.

    It repacks at the first forward pass in eval mode, such as a rollout; no gradient passes through a layer afterwards.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False


def keep_vectors_in_fp32(model: PreTrainedModel) -> None:
    """Keep norms and biases in fp32, as peft's prepare_model_for_kbit_training does.

    That would convert embeddings and output head as well, which autocast then converts back at every token.
    """
    for parameter in model.parameters():
        if parameter.dim() == 1 and parameter.is_floating_point():
            parameter.data = parameter.data.float()
