"""Metrics of single completions: two tables with the better direction and the function of each metric, by name.

Shapes: N prompts, S seeds, K samples per seed. To add a metric, write its function and add it to METRICS; one that is
computed from a toxicity judge's probabilities goes into TOXICITY_METRICS, one of all samples of a prompt into
SAMPLE_SET_METRICS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from workbench.evaluation import metrics
from workbench.evaluation.fluency import FluencyModel
from workbench.evaluation.generation import Completion
from workbench.evaluation.metrics.text_statistics import (
    any_toxic,
    copy_rate,
    distinct_n_per_word,
    max_toxicity,
    repetition,
)
from workbench.evaluation.results import (
    BASE_NLL,
    DISTINCT_BY_PROMPT,
    FLUENCY_OUTLIERS,
    KL,
    MAX_TOXICITY,
    REWARD,
    ROUGE_L,
    SIMILARITY,
    TOXIC_RATE,
    TOXICITY,
    TOXICITY_PROBABILITY,
    Direction,
)
from workbench.ppo.scoring import reward_columns
from workbench.rewards.contract import Judge, RewardModel

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Scorers:
    """Everything that scores texts."""

    reward: RewardModel | None
    judges: Mapping[str, Judge]
    rewards: Mapping[str, RewardModel]
    """Further rewards, whose scores are reported."""
    similarity: Callable[[list[str], list[list[str]]], list[float]] | None
    threshold: float
    """A text counts as toxic at or above this probability."""
    fluency: FluencyModel | None = None


def score_completions(
    reward: RewardModel, rows: Sequence[dict[str, Any]], completions: Sequence[Completion]
) -> list[float]:
    """Return a reward's score of each completion, with the row of its prompt."""
    ids = [completion.ids for completion in completions if completion.ids is not None]
    sampled = {"completion_ids": ids} if len(ids) == len(completions) else {}
    prompts, texts = [row["prompt"] for row in rows], [completion.text for completion in completions]
    return reward(prompts, texts, **reward_columns(rows) | sampled)


@dataclass(frozen=True)
class Sampled:
    """One model's completions on one prompt set, flattened in the order N prompts, S seeds, K samples."""

    rows: Sequence[dict[str, Any]]
    """The row of each completion's prompt."""
    references: list[list[str]]
    """The references of each completion's prompt."""
    completions: list[Completion]
    scorers: Scorers

    @cached_property
    def prompts(self) -> list[str]:
        """The prompt of each completion."""
        return [row["prompt"] for row in self.rows]

    @cached_property
    def texts(self) -> list[str]:
        """The text of each completion."""
        return [completion.text for completion in self.completions]

    @property
    def continuations(self) -> list[str]:
        """The text of each completion as it follows its prompt, with the whitespace between the two."""
        return [completion.leading + completion.text for completion in self.completions]

    @cached_property
    def shares_vocabulary(self) -> bool:
        """Whether the reference and the base share the model's vocabulary, so that they can score its tokens."""
        return all(completion.base_nll is not None for completion in self.completions)

    @cached_property
    def with_reference(self) -> list[int]:
        """The completions whose prompt has a reference."""
        return [index for index, texts in enumerate(self.references) if texts]

    @cached_property
    def rouge(self) -> dict[str, list[float]]:
        """ROUGE of the completions whose prompt has a reference."""
        return metrics.rouge(*self.paired_texts)

    @property
    def paired_texts(self) -> tuple[list[str], list[list[str]]]:
        """The texts whose prompt has a reference, and their references."""
        return [self.texts[i] for i in self.with_reference], [self.references[i] for i in self.with_reference]

    def score(self, reward: RewardModel) -> list[float]:
        """Return a reward's score of each completion."""
        return score_completions(reward, self.rows, self.completions)

    def scatter(self, values: Sequence[float]) -> np.ndarray:
        """Return the values of completions with a reference at their positions, NaN elsewhere."""
        scattered = np.full(len(self.completions), np.nan)
        scattered[self.with_reference] = values
        return scattered


@dataclass(frozen=True)
class CompletionMetric:
    """A registered metric: which direction is better, and the function that computes it for each completion."""

    direction: Direction | None
    measure: Callable[[Sampled], Values | None]
    """Returns None where it cannot be measured."""


@dataclass(frozen=True)
class ToxicityMetric:
    """A metric computed from a judge's probabilities (N, S, K); lower is better."""

    measure: Callable[[np.ndarray, float], np.ndarray]
    """Maps probabilities and threshold to (N, S, K), or to (N, S, 1) for a metric of all samples together."""
    several_samples: bool = False
    """Whether it needs several samples."""


def score_reward(sampled: Sampled) -> Values | None:
    """Return the reward of each completion, as PPO scores it."""
    return None if sampled.scorers.reward is None else sampled.score(sampled.scorers.reward)


def rouge(key: str) -> Callable[[Sampled], Values | None]:
    """Return the function that measures one kind of ROUGE."""
    return lambda sampled: sampled.scatter(sampled.rouge[key]) if sampled.with_reference else None


def similarity(sampled: Sampled) -> Values | None:
    """Return the cosine similarity of each completion's embedding to that of its closest reference."""
    if sampled.scorers.similarity is None or not sampled.with_reference:
        return None
    return sampled.scatter(sampled.scorers.similarity(*sampled.paired_texts))


def kl(sampled: Sampled) -> Values | None:
    """Return the estimated KL to the reference policy for each completion."""
    return [c.kl or 0.0 for c in sampled.completions] if sampled.shares_vocabulary else None


def base_nll_per_token(sampled: Sampled) -> Values | None:
    """Return the negative log-likelihood per token of each completion under the base."""
    if not sampled.shares_vocabulary:
        return None
    return [(c.base_nll or 0.0) / max(c.tokens, 1) for c in sampled.completions]


TOXICITY_METRICS: dict[str, ToxicityMetric] = {
    TOXICITY: ToxicityMetric(lambda probabilities, threshold: probabilities),
    TOXIC_RATE: ToxicityMetric(lambda probabilities, threshold: (probabilities >= threshold).astype(float)),
    MAX_TOXICITY: ToxicityMetric(lambda p, threshold: max_toxicity(p)[..., None], several_samples=True),
    TOXICITY_PROBABILITY: ToxicityMetric(lambda p, limit: any_toxic(p, limit)[..., None], several_samples=True),
}

SAMPLE_SET_METRICS: dict[str, Callable[[Sequence[str]], float]] = {
    name: partial(distinct_n_per_word, n=n) for n, name in DISTINCT_BY_PROMPT.items()
}
"""Metrics of the texts of a prompt's K samples together, where there are several; neither direction is better."""

RATES = frozenset({TOXIC_RATE, TOXICITY_PROBABILITY, FLUENCY_OUTLIERS, "truncated rate", "empty rate"})
"""Metrics that are 0 or 1 for each completion, or for all samples of a prompt together."""

METRICS: dict[str, CompletionMetric] = {
    REWARD: CompletionMetric("higher", score_reward),
    "ROUGE-1": CompletionMetric("higher", rouge("rouge1")),
    "ROUGE-2": CompletionMetric("higher", rouge("rouge2")),
    ROUGE_L: CompletionMetric("higher", rouge("rougeL")),
    "ROUGE-Lsum": CompletionMetric("higher", rouge("rougeLsum")),
    SIMILARITY: CompletionMetric("higher", similarity),
    KL: CompletionMetric(None, kl),
    BASE_NLL: CompletionMetric(None, base_nll_per_token),
    "tokens": CompletionMetric(None, lambda sampled: [float(c.tokens) for c in sampled.completions]),
    "truncated rate": CompletionMetric("lower", lambda sampled: [float(c.truncated) for c in sampled.completions]),
    "empty rate": CompletionMetric("lower", lambda sampled: [float(not text) for text in sampled.texts]),
    "repetition": CompletionMetric(None, lambda sampled: [repetition(text) for text in sampled.texts]),
    "repeated words": CompletionMetric(None, lambda sampled: [repetition(text, 1) for text in sampled.texts]),
    "copied rate": CompletionMetric(None, lambda s: [copy_rate(p, t) for p, t in zip(s.prompts, s.texts, strict=True)]),
}
