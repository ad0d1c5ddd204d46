"""The model that is published: its generation settings, and an adapter merged into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workbench.config.schema import PolicyConfig
from workbench.errors import UserError
from workbench.models.adapters import load_adapters
from workbench.models.loading import DTYPES, auto_class, from_pretrained, load_config, reset_generation_config, stop_ids

PROBE_TOKENS = 16
LARGEST_DIFFERENCE = 1e-3  # of logits, as a share of the largest; rounding in fp32 is far below


def state_stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Leave in the generation_config what training used: the ids that end a text, and no sampling options."""
    reset_generation_config(model)
    model.generation_config.eos_token_id = stop_ids(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.use_cache = True  # config.json may say no, because training had no use for it


def merged(policy: PolicyConfig, adapter: Path) -> PreTrainedModel:
    """The unquantized base with the adapter in its weights, summed in fp32 and kept in the policy's precision.

    Raises UserError where the sum is another function than base and adapter are.
    """
    config = load_config(policy.model)
    if "quantization_config" in config.to_dict():
        raise UserError(
            f"--merge: {policy.model} is stored quantized, where a merge loses what was learned; "
            "export the adapter without --merge"
        )
    base = from_pretrained(auto_class(config), policy.model, dtype=torch.float32)
    both = load_adapters(base, {"policy": adapter})
    expected = probe(both)
    model = both.merge_and_unload()
    difference = float((probe(model) - expected).abs().max() / expected.abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(
            f"--merge: merged, the logits differ by {difference:.1%} from those of base and adapter: the adapter is on "
            "weights that the model uses twice, as tied embeddings are; export the adapter without --merge"
        )
    return model.to(DTYPES[policy.precision])


@torch.no_grad()
def probe(model: Any) -> torch.Tensor:
    """Logits (1, T, V) of a few tokens."""
    ids = torch.arange(min(PROBE_TOKENS, model.config.get_text_config(decoder=True).vocab_size)).unsqueeze(0)
    options = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **options).logits
