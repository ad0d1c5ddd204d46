"""What export changes in a model: its generation settings, and an adapter merged into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.config.schema import PolicyConfig
from workbench.errors import UserError
from workbench.models.adapters import load_adapters
from workbench.models.loading import auto_class, from_pretrained, load_config, reset_generation_config, stop_ids
from workbench.models.precision import DTYPES

PROBE_TOKENS = 16
MAX_RELATIVE_DIFFERENCE = 1e-3  # of logits, relative to the largest; fp32 rounding is far below


def set_generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the generation config of training: its stop ids, without the base's sampling options."""
    reset_generation_config(model)
    model.generation_config.eos_token_id = stop_ids(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.use_cache = True  # config.json may disable it, because training does not use it


def merge_adapter(policy: PolicyConfig, adapter: Path) -> PreTrainedModel:
    """Return the unquantized base with the adapter merged into it in fp32, then rounded to the policy's precision.

    Raises UserError if the merged model's logits differ from those of base and adapter.
    """
    config = load_config(policy.model)
    if "quantization_config" in config.to_dict():
        raise UserError(
            f"--merge: {policy.model} is stored quantized, and merging into quantized weights loses precision; "
            "export the adapter without --merge"
        )
    base = from_pretrained(auto_class(config), policy.model, dtype=torch.float32)
    adapted = load_adapters(base, {"policy": adapter})
    expected = probe_logits(adapted)
    model = adapted.merge_and_unload()
    difference = float((probe_logits(model) - expected).abs().max() / expected.abs().max())
    if not difference <= MAX_RELATIVE_DIFFERENCE:
        raise UserError(
            f"--merge: the merged model's logits differ by {difference:.1%} from those of base and adapter, "
            "because the adapter targets shared weights such as tied embeddings; export the adapter without --merge"
        )
    return model.to(DTYPES[policy.precision])


@torch.no_grad()
def probe_logits(model: Any) -> torch.Tensor:
    """Return the logits (1, T, V) of a few tokens."""
    ids = torch.arange(min(PROBE_TOKENS, model.config.get_text_config(decoder=True).vocab_size)).unsqueeze(0)
    options = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **options).logits
