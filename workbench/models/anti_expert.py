"""Decoding that is steered away from what an adapter was tuned to: DExperts with an anti-expert alone.

Equation 1 of arXiv 2105.03023, with the logits z of each next token and the base as expert:
    z = z_model + alpha (z_base - z_anti)
What is subtracted is what tuning changed in the anti-expert, which was tuned from the base, whichever model decodes. If
that is the base itself, this is the paper's anti-only variant.
Shapes: B prompts, P prompt tokens, T response tokens, V vocabulary, N sampled tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from workbench.models.logprobs import head_logprobs, scatter_to_mask, token_logprobs
from workbench.models.policy import Batch, Policy


@dataclass(frozen=True)
class AntiExpert:
    """The adapter that a model is steered away from."""

    variant: str
    """Its name in the policy; see Policy.variant."""
    alpha: float
    """How far; with 0 the model decodes as it does alone."""


class CachedLogits:
    """The logits of the next token under one variant, which reads each token once and has its own keys and values."""

    def __init__(self, policy: Policy, variant: str, prompt_ids: Tensor, prompt_mask: Tensor) -> None:
        """Take the prompts (B, P) that the responses belong to."""
        self.policy, self.variant = policy, variant
        self.prompt_ids, self.prompt_mask = prompt_ids, prompt_mask.long()
        self.tokens_read = 0
        self.cache: Any = None
        self.encoder_states: Tensor | None = None

    @torch.no_grad()
    def next(self, ids: Tensor) -> Tensor:
        """Return the logits (B, V) of the token after `ids`, which are those of the last call and at least one more.

        For a decoder they begin with the prompts, for an encoder-decoder with the start token.
        """
        inputs = self._decoder_inputs(ids) if self.policy.is_encoder_decoder else self._inputs(ids)
        with self.policy.variant(self.variant) as model, self.policy.autocast():
            output = model(**inputs, past_key_values=self.cache, use_cache=True)
        self.cache, self.tokens_read = output.past_key_values, ids.shape[1]
        if self.policy.is_encoder_decoder:
            self.encoder_states = output.encoder_last_hidden_state
        return output.logits[:, -1].float()

    def _decoder_inputs(self, ids: Tensor) -> dict[str, Any]:
        """Return what an encoder-decoder reads: its prompt once, then the new tokens."""
        read: dict[str, Any] = {"input_ids": self.prompt_ids}
        if self.encoder_states is not None:
            read = {"encoder_outputs": (self.encoder_states,)}
        return read | {"attention_mask": self.prompt_mask, "decoder_input_ids": ids[:, self.tokens_read :]}

    def _inputs(self, ids: Tensor) -> dict[str, Any]:
        """Return what a decoder reads: the new tokens, at positions that padding on the left does not shift."""
        later = torch.ones_like(ids[:, self.prompt_mask.shape[1] :])
        mask = torch.cat((self.prompt_mask, later), dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return {
            "input_ids": ids[:, self.tokens_read :],
            "attention_mask": mask,
            "position_ids": positions[:, self.tokens_read :],
            "logits_to_keep": 1,
        }


class SteeredLogits(LogitsProcessor):
    """Turns the logits of a variant of the policy into those of the variant and its anti-expert together."""

    def __init__(
        self,
        policy: Policy,
        variant: str,
        anti_expert: AntiExpert,
        prompts: tuple[Tensor, Tensor],
        temperature: float,
        filters: Sequence[LogitsProcessor],
    ) -> None:
        """Take ids and mask (B, P) of the prompts that `variant` completes.

        The `filters` leave the tokens that are likely under the variant alone, at its temperature, as in the paper.
        """
        self.alpha, self.temperature, self.filters = anti_expert.alpha, temperature, filters
        self.base = None if variant == "base" else CachedLogits(policy, "base", *prompts)
        self.anti_expert = CachedLogits(policy, anti_expert.variant, *prompts)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits (B, V) of both; a token that is impossible in `scores` (B, V) stays so."""
        base = scores if self.base is None else self.base.next(input_ids)
        steered = scores + self.alpha * (base - self.anti_expert.next(input_ids))
        likely = scores / self.temperature
        for filter_ in self.filters:
            likely = filter_(input_ids, likely)
        return steered.masked_fill(likely == -torch.inf, -torch.inf)


@torch.no_grad()
def steered_logprobs(policy: Policy, variant: str, anti_expert: AntiExpert, batch: Batch, temperature: float) -> Tensor:
    """Return the log-probabilities (B, T) of responses under the steered variant; 0 at masked positions.

    A plain head is linear, so the logits of the steered states are the steered logits, and the sweep over the
    vocabulary never holds them all. Under any other head it is one row at a time.
    """
    names, alpha, mask = dict.fromkeys((variant, "base", anti_expert.variant)), anti_expert.alpha, batch.response_mask
    if policy.has_plain_head:
        states = {name: policy.response_states(name, batch).float() for name in names}
        steered = states[variant] + alpha * (states["base"] - states[anti_expert.variant])
        with policy.autocast():
            head = policy.base.get_output_embeddings()
            logprobs, _ = head_logprobs(steered, head, batch.response_ids[mask], temperature, entropy=False)
        return scatter_to_mask(logprobs, mask)
    rows = []
    for index in range(len(mask)):
        row = policy.trim(batch.rows(slice(index, index + 1)))
        logits = {name: policy.response_logits(name, row)[row.response_mask] for name in names}
        steered = logits[variant] + alpha * (logits["base"] - logits[anti_expert.variant])
        rows.append(token_logprobs(steered, row.response_ids[row.response_mask], temperature))
    return scatter_to_mask(torch.cat(rows), mask)
