"""Prompts that several rows of a batch share are read once: the keys and values of all tokens but the last.

Shapes: B rows, P prompt tokens.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from workbench.models.sharding import is_sharded


def shared_prompt_cache(
    model: PreTrainedModel | PeftModel, base: PreTrainedModel, prompt_ids: Tensor, prompt_mask: Tensor
) -> Cache | None:
    """Return a decoder's cache of prompts (B, P) up to their last token, where rows that follow one another are equal.

    None where no prompt is shared, and where the model keeps more of a prompt than the keys and values of its tokens.
    """
    if prompt_ids.shape[1] < 2 or is_sharded(base):  # of a sharded model, all processes run as many forward passes
        return None
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return None
    differs = (prompt_ids[1:] != prompt_ids[:-1]).any(dim=1) | (prompt_mask[1:] != prompt_mask[:-1]).any(dim=1)
    group = torch.cat((differs.new_zeros(1), differs)).cumsum(dim=0)  # (B,), from 0
    distinct = int(group[-1]) + 1
    cache = DynamicCache(config=base.config)
    if 2 * distinct > len(group) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    first = torch.searchsorted(group, torch.arange(distinct, device=group.device))
    mask = prompt_mask[first, :-1].long()
    model(
        input_ids=prompt_ids[first, :-1],
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(group)
    return cache
