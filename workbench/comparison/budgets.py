"""What a row cost: generated tokens, reward calls, minutes and memory of the PPO stage, and samples at decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

from workbench.config.derived import normalizing_responses, sampled_responses, scores_prefixes, strategies
from workbench.config.names import ALIGNED
from workbench.config.schema import Config

MAX_CALL_DIFFERENCE, MAX_TOKEN_DIFFERENCE = 0.01, 0.2
"""Trained rows whose reward calls or generated tokens differ by a larger fraction are named: of as many responses, the
tokens are what each algorithm made of them."""
SCORE, SAMPLED, LENGTH = "objective/score_mean", "objective/kl", "response/length_mean"


@dataclass(frozen=True)
class Budget:
    """The costs of one row, as means over its seeds; None where a run does not say them."""

    training_tokens: float | None
    """Generated in all rollouts: responses times their mean length."""
    reward_calls: float | None
    """Texts that the reward scored for training, with those that normalize scores and unfinished ones."""
    unlogged_responses: float | None
    """Responses that normalize scores, whose lengths are not logged; no part of `training_tokens`."""
    validations: float | None
    """How often training was validated."""
    validation_responses: float | None
    """At most so many responses were generated and scored for validation; None without a limit of prompts."""
    minutes: float | None
    """To load, train and save in the PPO stage."""
    peak_memory_mib: float | None
    """The most that the PPO stage held."""
    samples_per_completion: int = 1
    """Samples, and calls of the reward to choose among them, for each completion at decoding time."""


def sampled_model(config: Config, title: str) -> str:
    """Return the title of the model that a row samples from: its own, or the one that it decodes in another way."""
    strategy = strategies(config.evaluation).get(title)
    return title if strategy is None else strategy.model


def is_trained(config: Config, title: str) -> bool:
    """Return whether PPO's stage trained the model that a row samples from."""
    return sampled_model(config, title) == ALIGNED


def budget(config: Config, title: str, log: Sequence[Mapping[str, Any]], record: Mapping[str, Any] | None) -> Budget:
    """Return the costs of a model of one run, from the PPO stage's metrics.jsonl and its stage.json."""
    best_of = config.evaluation.best_of.get(title)
    samples = 1 if best_of is None else best_of.n
    if config.ppo is None or record is None or not is_trained(config, title):
        return Budget(0.0, 0.0, 0.0, 0.0, 0.0, None, None, samples)
    ppo, validated = config.ppo, sum("validation/score_mean" in line for line in log)
    is_complete = sum(SCORE in line for line in log) == ppo.steps
    # Only what the policy sampled has a KL; pairs from data are neither generated nor scored.
    lengths = [line.get(LENGTH) for line in log if SCORE in line and SAMPLED in line]
    known = [length for length in lengths if length is not None]
    has_lengths = is_complete and len(known) == len(lengths)
    normalizing = normalizing_responses(ppo)
    calls = sampled_responses(ppo) * len(lengths) if is_complete else None
    if calls is not None and scores_prefixes(ppo):
        calls = round(calls + ppo.batch_size * (sum(known) - len(known))) if has_lengths else None
    limit = ppo.validation.limit if ppo.validation is not None else 0
    peak = record.get("metrics", {}).get("peak_memory_bytes")
    return Budget(
        training_tokens=float(sampled_responses(ppo) * sum(known)) if has_lengths else None,
        reward_calls=None if calls is None else float(calls + normalizing),
        unlogged_responses=float(normalizing),
        validations=float(validated),
        validation_responses=None if limit is None else float(validated * limit),
        minutes=record.get("minutes"),
        peak_memory_mib=None if peak is None else peak / 2**20,
        samples_per_completion=samples,
    )


def mean_budget(budgets: Sequence[Budget]) -> Budget:
    """Return the mean over seeds of every cost; None where a seed lacks it."""
    names = [field.name for field in fields(Budget) if field.name != "samples_per_completion"]
    means = {name: [vars(each)[name] for each in budgets] for name in names}
    return Budget(
        **{name: None if None in values else fmean(values) for name, values in means.items()},
        samples_per_completion=max(each.samples_per_completion for each in budgets),
    )


def unequal_budgets(trained: Mapping[str, Budget]) -> list[str]:
    """Return a sentence for each budget that differs between trained rows, by title, by more than the limit."""
    sentences = []
    limits = (
        ("training_tokens", "generated tokens", MAX_TOKEN_DIFFERENCE),
        ("reward_calls", "reward calls", MAX_CALL_DIFFERENCE),
    )
    for name, unit, limit in limits:
        values = {title: value for title, each in trained.items() if (value := vars(each)[name]) is not None}
        fewest, most = min(values.values(), default=0), max(values.values(), default=0)
        if most > (1 + limit) * fewest:
            excess = f" by up to {most / fewest - 1:.1%} of the fewest" if fewest else ""
            listed = ", ".join(f"{title} {value:,.0f}" for title, value in values.items())
            sentences.append(f"unequal budgets: {unit} differ{excess}: {listed}")
    return sentences
