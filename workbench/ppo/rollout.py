"""Sample responses and record everything the update needs of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.models.policy import Batch, Policy
from workbench.models.sampling import is_truncated
from workbench.rewards.contract import CheckedReward

# What a row holds beside the columns that a reward gets by name; a reward's own arguments are no columns.
ROW_FIELDS = frozenset({"prompt", "prompt_ids", "response", "response_ids", "prompts", "completions"})


@dataclass(frozen=True)
class Rollout:
    """Responses of the policy to B prompts, as sampled before any update."""

    batch: Batch
    logprobs: Tensor  # (B, T) float32, of the policy that sampled
    ref_logprobs: Tensor  # (B, T) float32, of the reference
    values: Tensor  # (B, T) float32, read before each token
    entropies: Tensor  # (B, T) float32, nats, of the distribution that each token was sampled from
    scores: Tensor  # (B,) float32, raw scores of the reward
    terms: dict[str, Tensor]  # (B,) float32 each: what the scores are the sum of, by name
    truncated: Tensor  # (B,) bool, cut at the token limit: no stop token
    prompts: list[str]  # B
    completions: list[str]  # B
    seconds: dict[str, float]  # time spent on generate, score and forward

    def __len__(self) -> int:
        return len(self.completions)


# A forward pass that keeps no activations for a backward one takes this many times the rows.
NO_GRADIENT_FACTOR = 4


class Responses(NamedTuple):
    """Answers to B prompts, scored as texts; shapes as in Rollout."""

    batch: Batch
    scores: Tensor
    terms: dict[str, Tensor]
    prompts: list[str]
    completions: list[str]
    seconds: dict[str, float]


def respond(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    reward: CheckedReward,
    rows: Sequence[dict[str, Any]],
    *,
    max_new_tokens: int,
    temperature: float,
    seeds: list[int] | None = None,
) -> Responses:
    """Answer `rows` (with prompt, prompt_ids and the reward's columns) and score the answers.

    With `seeds`, one per row, a row's answer depends on nothing but its prompt and its seed.
    """
    start = time.perf_counter()
    prompt_ids, prompt_mask = policy.pad_prompts([row["prompt_ids"] for row in rows])
    batch = policy.generate(
        prompt_ids, prompt_mask, max_new_tokens=max_new_tokens, temperature=temperature, seeds=seeds
    )
    generated = time.perf_counter()
    prompts = [row["prompt"] for row in rows]
    completions = decode(tokenizer, batch)
    terms = {
        name: torch.tensor(values, device=policy.device)
        for name, values in reward.terms(prompts, completions, **reward_columns(rows)).items()
    }
    return Responses(
        batch=batch,
        scores=torch.stack(list(terms.values())).sum(dim=0),
        terms=terms,
        prompts=prompts,
        completions=completions,
        seconds={"generate": generated - start, "score": time.perf_counter() - generated},
    )


def collect(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    reward: CheckedReward,
    rows: Sequence[dict[str, Any]],
    *,
    max_new_tokens: int,
    temperature: float,
    micro_batch_size: int,
    seeds: list[int] | None = None,
) -> Rollout:
    """Answer `rows` as `respond` does, and score the tokens of the answers.

    Old log-probabilities are recomputed by the code that the update runs, not taken from the sampler, so that
    the first ratio is 1.
    """
    found = respond(
        policy, tokenizer, reward, rows, max_new_tokens=max_new_tokens, temperature=temperature, seeds=seeds
    )
    start = time.perf_counter()
    logprobs, ref_logprobs, values, entropies = score_tokens(policy, found.batch, temperature, micro_batch_size)
    seconds = found.seconds | {"forward": time.perf_counter() - start}
    return Rollout(
        **found._asdict() | {"seconds": seconds},
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        entropies=entropies,
        truncated=is_truncated(found.batch.response_ids, found.batch.response_mask, policy.stop_ids),
    )


def reward_columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The columns of the rows that a reward is handed by name."""
    return {name: [row[name] for row in rows] for name in rows[0] if name not in ROW_FIELDS}


def decode(tokenizer: PreTrainedTokenizerBase, batch: Batch) -> list[str]:
    """Texts of the B responses, without special tokens and outer white space."""
    sampled = [ids[mask].tolist() for ids, mask in zip(batch.response_ids, batch.response_mask, strict=True)]
    return [text.strip() for text in tokenizer.batch_decode(sampled, skip_special_tokens=True)]


@torch.no_grad()
def score_tokens(
    policy: Policy, batch: Batch, temperature: float, micro_batch_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities of policy and reference, values, and the policy's entropies, each (B, T)."""
    columns: tuple[list[Tensor], ...] = ([], [], [], [])
    size = NO_GRADIENT_FACTOR * micro_batch_size
    for first in range(0, len(batch.prompt_ids), size):
        part = batch.rows(slice(first, first + size))
        scores = policy(part, temperature, entropy=True)
        ref_logprobs = policy.logprobs("reference", part, temperature)
        for column, values in zip(
            columns, (scores.logprobs, ref_logprobs, scores.values, scores.entropies), strict=True
        ):
            column.append(values)
    logprobs, ref_logprobs, values, entropies = (torch.cat(column) for column in columns)
    return logprobs, ref_logprobs, values, entropies
