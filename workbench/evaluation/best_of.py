"""Best-of-n at decoding time: of several samples of a model, the one that the reward scores highest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.config.sources import BestOf
from workbench.evaluation.completion_metrics import score_completions
from workbench.evaluation.generation import Completion, Sampling
from workbench.ppo.sampler import derive_seed
from workbench.rewards.contract import RewardModel

ByPrompt = list[list[Completion]]


def candidate_sampling(sampling: Sampling, n: int) -> Sampling:
    """Return how the candidates of each completion are sampled: the first is the completion itself."""
    seeds = tuple(seed if i == 0 else derive_seed(seed, i, 3) for seed in sampling.seeds for i in range(n))
    return dataclasses.replace(sampling, seeds=seeds)


def with_best(
    completions: Mapping[str, ByPrompt],
    best_of: Mapping[str, BestOf],
    rows: Sequence[dict[str, Any]],
    reward: RewardModel | None,
) -> dict[str, ByPrompt]:
    """Return the completions of every model, those of `best_of` chosen from their candidates by the reward."""
    chosen = dict(completions)
    for title, settings in best_of.items():
        assert reward is not None
        chosen[title] = best_completions(completions[title], settings.n, rows, reward)
    return chosen


def best_completions(candidates: ByPrompt, n: int, rows: Sequence[dict[str, Any]], reward: RewardModel) -> ByPrompt:
    """Return the highest-scoring of each `n` candidates in a row; of equals, the first.

    Its `kl` is an upper bound, in nats: the estimate of the model's own plus `kl_bound`.
    """
    scored_rows = [row for row, by_prompt in zip(rows, candidates, strict=True) for _ in by_prompt]
    scores = score_completions(reward, scored_rows, [each for by_prompt in candidates for each in by_prompt])
    chosen, position = [], 0
    for by_prompt in candidates:
        row_scores = scores[position : position + len(by_prompt)]
        position += len(by_prompt)
        starts = range(0, len(by_prompt), n)
        best = [max(range(start, start + n), key=row_scores.__getitem__) for start in starts]
        chosen.append([bounded(by_prompt[index], n) for index in best])
    return chosen


def bounded(completion: Completion, n: int) -> Completion:
    """Return the best of n candidates with the upper bound of its KL; its tokens have no log-ratios of their own."""
    kl = None if completion.kl is None else completion.kl + kl_bound(n)
    return dataclasses.replace(completion, kl=kl, token_log_ratios=None)


def kl_bound(n: int) -> float:
    """Return log n - (n - 1) / n, in nats: the most that choosing the best of n moves a policy (arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n
