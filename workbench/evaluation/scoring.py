"""What the answers of several models are worth, and how they differ, as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, TypeVar

from workbench.evaluation import metrics
from workbench.evaluation.corpus_metrics import POOLED, pooled, references
from workbench.evaluation.generation import Answer
from workbench.evaluation.metrics.text_statistics import (
    copy_rate,
    expected_maximum_toxicity,
    repetition,
    toxicity_probability,
)
from workbench.evaluation.statistics import paired_difference
from workbench.evaluation.verdicts import MINIMUM_PROMPTS, Better, is_toxicity, pair_key, prompts_needed, spread, word
from workbench.ppo.rollout import reward_columns
from workbench.rewards.contract import Judge, RewardModel

Rows = Sequence[dict[str, Any]]
T = TypeVar("T")
ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
# Which way is good; what has no entry has no good direction.
BETTER: dict[str, Better] = {
    **dict.fromkeys(("toxicity", "toxic rate", "worst toxicity", "toxicity probability"), "lower"),
    **dict.fromkeys(("reward", *ROUGE.values(), "BLEU", "similarity"), "higher"),
    **dict.fromkeys(("truncated rate", "empty rate"), "lower"),
}


class Scorers(NamedTuple):
    """What scores texts."""

    reward: RewardModel | None
    judges: Mapping[str, Judge]
    similarity: Callable[[list[str], list[list[str]]], list[float]] | None
    threshold: float
    """A text is toxic from this probability on."""


class Measured(NamedTuple):
    """The measurements of one prompt set."""

    answers: dict[str, dict[str, list[list[float]]]]
    """Of a metric and a model, for each prompt the value of each of its answers."""
    seeds: dict[str, dict[str, list[list[float]]]]
    """Of a metric and a model, for each prompt the value that its answers of each seed have together."""


def measure(rows: Rows, answers: Mapping[str, Sequence[Sequence[Answer]]], scorers: Scorers, seeds: int) -> Measured:
    """Score every model's answers, of which each of the `seeds` has the same number, in order."""
    found = Measured({}, {})
    for model, by_prompt in answers.items():
        of_answers = _per_answer(rows, by_prompt, scorers)
        of_seeds = worst_of(of_answers, seeds, scorers.threshold) if len(by_prompt[0]) > seeds else {}
        together = [pooled(rows, part) for part in by_seed(by_prompt, seeds)]
        of_seeds |= {metric: _by_prompt([part[metric] for part in together]) for metric in together[0]}
        for group, values in ((found.answers, of_answers), (found.seeds, of_seeds)):
            for metric, of in values.items():
                group.setdefault(metric, {})[model] = of
    return found


def _per_answer(rows: Rows, by_prompt: Sequence[Sequence[Answer]], scorers: Scorers) -> dict[str, list[list[float]]]:
    """Metrics that every answer has by itself."""
    counts = [len(of) for of in by_prompt]
    flat = [answer for of in by_prompt for answer in of]
    repeated = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    texts, prompts = [answer.text for answer in flat], [row["prompt"] for row in repeated]
    found: dict[str, list[float]] = {}
    for name, judge in scorers.judges.items():
        found[f"toxicity ({name})"] = metrics.toxicity(texts, judge)
        found[f"toxic rate ({name})"] = [float(p >= scorers.threshold) for p in found[f"toxicity ({name})"]]
    if scorers.reward is not None:
        found["reward"] = scorers.reward(prompts, texts, **reward_columns(repeated))
    if any(references(row) for row in rows):
        found |= _against_references(texts, [references(row) for row in repeated], scorers)
    if flat[0].base_nll is not None:
        found["KL to reference, nats"] = [answer.kl or 0.0 for answer in flat]
        found["nats per token under the base"] = [(answer.base_nll or 0.0) / max(answer.tokens, 1) for answer in flat]
    found["tokens"] = [float(answer.tokens) for answer in flat]
    found["truncated rate"] = [float(answer.truncated) for answer in flat]
    found["empty rate"] = [float(not text) for text in texts]
    found["repetition"] = [repetition(text) for text in texts]
    found["copied rate"] = [copy_rate(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    return {metric: _regroup(values, counts) for metric, values in found.items()}


def _against_references(texts: list[str], given: list[list[str]], scorers: Scorers) -> dict[str, list[float]]:
    """Metrics against the references of each answer; NaN where a row has none."""
    rows = [row for row, of in enumerate(given) if of]
    some, their = [texts[row] for row in rows], [given[row] for row in rows]
    scored = {ROUGE[key]: values for key, values in metrics.rouge(some, their).items() if key in ROUGE}
    if scorers.similarity is not None:
        scored["similarity"] = scorers.similarity(some, their)
    found = {}
    for metric, values in scored.items():
        by_row = dict(zip(rows, values, strict=True))
        found[metric] = [by_row.get(row, math.nan) for row in range(len(texts))]
    return found


def given_toxicity(rows: Rows, judges: Mapping[str, Judge]) -> list[dict[str, float]]:
    """The highest toxicity that any judge sees in the prompt, and in a reference, of each row; 0.0 where none looks."""
    texts = [[row["prompt"], *references(row)] for row in rows]
    flat = [text for of in texts for text in of]
    by_judge = [metrics.toxicity(flat, judge) for judge in judges.values()]
    highest = [max(of) for of in zip(*by_judge, strict=True)] or [0.0] * len(flat)
    by_row = _regroup(highest, [len(of) for of in texts])
    return [{"prompt": prompt, "reference": max(given, default=0.0)} for prompt, *given in by_row]


def worst_of(values: Mapping[str, list[list[float]]], seeds: int, threshold: float) -> dict[str, list[list[float]]]:
    """Per prompt and seed, a model's worst toxicity and whether any answer was toxic (arXiv 2009.11462)."""
    found = {}
    for metric, by_prompt in values.items():
        if is_toxicity(metric):
            judge, shares = metric.removeprefix("toxicity "), by_seed(by_prompt, seeds)
            found[f"worst toxicity {judge}"] = _by_prompt([expected_maximum_toxicity(share) for share in shares])
            any_toxic = [toxicity_probability(share, threshold) for share in shares]
            found[f"toxicity probability {judge}"] = _by_prompt(any_toxic)
    return found


def by_seed(by_prompt: Sequence[Sequence[T]], seeds: int) -> list[list[Sequence[T]]]:
    """The answers of each of the `seeds`, which stand one after the other, by prompt."""
    samples = len(by_prompt[0]) // seeds
    return [[of[seed * samples : (seed + 1) * samples] for of in by_prompt] for seed in range(seeds)]


def set_result(measured: Measured, *, prompts: int, seeds: int, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Means, spreads over seeds and paired comparisons, by `pair_key`, of one prompt set, ready for JSON."""
    values = measured.answers | measured.seeds
    per_prompt = {
        metric: {model: [sum(of) / len(of) for of in by_prompt] for model, by_prompt in by_model.items()}
        for metric, by_model in values.items()
    }
    shown = {
        metric: {
            "better": better(metric),
            "means": {model: mean(of) for model, of in per_prompt[metric].items()},
            "spread": {model: _spread(of, seeds) for model, of in by_model.items()} if seeds > 1 else None,
        }
        for metric, by_model in values.items()
    }
    return {
        "prompts": prompts,
        "enough": prompts >= MINIMUM_PROMPTS,
        "metrics": shown,
        "comparisons": {pair_key(before, after): compare(per_prompt, before, after) for before, after in pairs},
    }


def compare(per_prompt: dict[str, dict[str, list[float]]], before: str, after: str) -> dict[str, Any]:
    """The paired difference of every metric that both models have, with its one word."""
    found = {}
    for metric, by_model in per_prompt.items():
        if before not in by_model or after not in by_model:
            continue
        kept = [pair for pair in zip(by_model[before], by_model[after], strict=True) if all(map(math.isfinite, pair))]
        if not kept:
            continue
        first, second = [pair[0] for pair in kept], [pair[1] for pair in kept]
        difference = paired_difference(first, second)
        counts = {} if metric not in POOLED else dict.fromkeys(("wins", "ties", "losses"))
        found[metric] = (
            asdict(difference)
            | {
                "low": None if math.isnan(difference.low) else difference.low,
                "high": None if math.isnan(difference.high) else difference.high,
                "prompts": len(kept),
                "verdict": word(difference, better(metric)),
                "prompts_needed": prompts_needed(first, second),
            }
            | counts
        )
    return found


def better(metric: str) -> Better | None:
    """Which way is good, whoever judges; None where no direction is."""
    return BETTER.get(metric.split(" (")[0])


def mean(values: Sequence[float]) -> float | None:
    """Mean of the values that are there; None where none is."""
    kept = [value for value in values if math.isfinite(value)]
    return sum(kept) / len(kept) if kept else None


def _spread(by_prompt: Sequence[Sequence[float]], seeds: int) -> float | None:
    """Standard deviation over seeds of a model's mean."""
    means = [mean([value for of in share for value in of]) for share in by_seed(by_prompt, seeds)]
    return spread([value for value in means if value is not None])[1]


def _by_prompt(of_seeds: Sequence[Sequence[float]]) -> list[list[float]]:
    """Values by seed and prompt as values by prompt and seed."""
    return [list(of) for of in zip(*of_seeds, strict=True)]


def _regroup(values: Sequence[float], counts: Sequence[int]) -> list[list[float]]:
    """A flat list cut into lists of the given lengths."""
    found, first = [], 0
    for count in counts:
        found.append(list(values[first : first + count]))
        first += count
    return found
