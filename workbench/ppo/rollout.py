"""Sample responses, score them, and record what the update needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.models.policy import Batch, Policy
from workbench.models.sampling import is_truncated
from workbench.ppo.micro_batches import RowLimits, sample_in_parts
from workbench.ppo.prefix_values import score_prefixes
from workbench.ppo.scoring import UNTRAINED, sampled_ids, score_responses
from workbench.rewards.arguments import RewardLog, TrainerState
from workbench.rewards.contract import CheckedReward


@dataclass(frozen=True)
class Responses:
    """Responses to B prompts, and their scores."""

    batch: Batch  # prompts, responses and masks as token ids
    prompts: list[str]  # B
    completions: list[str]  # B, the responses as the reward reads them
    terms: dict[str, Tensor]  # (B,) float32 each: the reward's terms by name, NaN where one does not apply
    weights: dict[str, float]  # by what the reward has multiplied each term, by name
    scores: Tensor  # (B,) float32, the reward's scores: the sums of the terms that apply
    log: RewardLog  # what the reward logged about them
    truncated: Tensor  # (B,) bool, cut at the token limit: no stop token
    sampled_scores: Tensor  # float32, of all sampled responses, of which these may be a part
    prefix_scores: Tensor | None  # (B, T) float32, of the text up to and including each token, where asked for
    seconds: dict[str, float]  # time spent on generate and score


Choice = Callable[[Responses, Sequence[dict[str, Any]]], tuple[Responses, Sequence[dict[str, Any]]]]


class ResponseTokens(NamedTuple):
    """What the models compute for every response token."""

    logprobs: Tensor  # (B, T) float32, of the policy that sampled
    ref_logprobs: Tensor  # (B, T) float32, of the reference
    entropies: Tensor  # (B, T) float32, nats, of the distribution that each token was sampled from
    values: Tensor | None  # (B, T) float32, read before each token; None without a value head


@dataclass(frozen=True)
class Rollout:
    """Responses of the policy to B prompts, as sampled before any update."""

    batch: Batch
    prompts: list[str]
    completions: list[str]
    terms: dict[str, Tensor]
    weights: dict[str, float]
    scores: Tensor
    log: RewardLog
    truncated: Tensor
    sampled_scores: Tensor
    prefix_scores: Tensor | None
    logprobs: Tensor
    ref_logprobs: Tensor
    entropies: Tensor
    values: Tensor | None
    seconds: dict[str, float]  # time spent on generate, score and forward

    def __len__(self) -> int:
        return len(self.completions)


def respond(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    reward: CheckedReward,
    rows: Sequence[dict[str, Any]],
    *,
    max_new_tokens: int,
    temperature: float,
    limits: RowLimits,
    seeds: list[int] | None = None,
    trainer_state: TrainerState = UNTRAINED,
) -> Responses:
    """Sample a response to each of `rows` (prompt, prompt_ids and the reward's columns) and score it.

    With `seeds`, one per row, a response depends on nothing but its prompt and its seed. `limits` say how many rows are
    sampled together.
    """
    start = time.perf_counter()
    batch = sample_in_parts(policy, rows, max_new_tokens, temperature, limits.sampled, seeds)
    generated = time.perf_counter()
    completions = decode(tokenizer, batch)
    scored = score_responses(reward, rows, completions, batch, trainer_state)
    return Responses(
        batch=batch,
        prompts=[row["prompt"] for row in rows],
        completions=completions,
        **vars(scored),
        truncated=is_truncated(batch.response_ids, batch.response_mask, policy.stop_ids),
        sampled_scores=scored.scores,
        prefix_scores=None,
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
    limits: RowLimits,
    seeds: list[int] | None = None,
    trainer_state: TrainerState = UNTRAINED,
    choose: Choice | None = None,
    with_prefixes: bool = False,
) -> Rollout:
    """Sample and score a response to each of `rows`, as `respond` does, and run the models over the response tokens.

    `choose` returns the responses to go on with, and their rows; `with_prefixes` scores every prefix of these.
    """
    responses = respond(
        policy,
        tokenizer,
        reward,
        rows,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        limits=limits,
        seeds=seeds,
        trainer_state=trainer_state,
    )
    start = time.perf_counter()
    if choose is not None:
        responses, rows = choose(responses, rows)
    if with_prefixes:
        of_prefixes = score_prefixes(reward, tokenizer, rows, responses.batch, responses.scores, trainer_state)
        responses = replace(responses, prefix_scores=of_prefixes)
    responses.seconds["score"] += time.perf_counter() - start
    return with_tokens(responses, policy, temperature, limits)


def with_tokens(responses: Responses, policy: Policy, temperature: float, limits: RowLimits) -> Rollout:
    """Run the models over the response tokens."""
    start, batch = time.perf_counter(), responses.batch
    tokens = limits.computed.run(lambda size: score_tokens(policy, batch, temperature, size))
    return Rollout(
        **vars(responses) | {"seconds": responses.seconds | {"forward": time.perf_counter() - start}},
        **tokens._asdict(),
    )


@torch.no_grad()
def score_tokens(policy: Policy, batch: Batch, temperature: float, micro_batch_size: int) -> ResponseTokens:
    """Return what policy, reference and value head compute for the response tokens of `batch`.

    Old log-probabilities come from here and not from the sampler: the update runs the same code on as many rows, so
    that its first ratio is 1. Rows of about one length go together, without the padding that longer ones need.
    """
    lengths = batch.prompt_mask.sum(dim=1) + batch.response_mask.sum(dim=1)
    zeros = [torch.zeros(batch.response_mask.shape, device=policy.device) for _ in range(4)]
    scored = ResponseTokens(zeros[0], zeros[1], zeros[2], None if policy.value_head is None else zeros[3])
    for rows in lengths.argsort(descending=True, stable=True).split(micro_batch_size):
        part = policy.trim(batch.rows(rows))
        scores = policy(part, temperature, entropy=True)
        ref_logprobs = policy.logprobs("reference", part, temperature)
        columns = (scores.logprobs, ref_logprobs, scores.entropies, scores.values)
        for whole, values in zip(scored, columns, strict=True):
            if whole is not None and values is not None:
                whole[rows, : values.shape[1]] = values
    return scored


def decode(tokenizer: PreTrainedTokenizerBase, batch: Batch) -> list[str]:
    """Return the texts of the B responses, without special tokens and surrounding whitespace."""
    return [text.strip() for text in tokenizer.batch_decode(sampled_ids(batch), skip_special_tokens=True)]
