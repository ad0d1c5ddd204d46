"""What the answers of several models are worth, and how they differ, as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, TypeVar

from workbench import metrics
from workbench.evaluation.answers import Answer
from workbench.evaluation.verdicts import MINIMUM_PROMPTS, Better, prompts_needed, spread, word
from workbench.metrics.text_statistics import (
    copy_rate,
    distinct_n,
    expected_maximum_toxicity,
    repetition,
    toxicity_probability,
)
from workbench.ppo.rollout import columns_of
from workbench.rewards import Judge, RewardModel
from workbench.statistics import paired_difference

Rows = Sequence[dict[str, Any]]
T = TypeVar("T")
ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
# Which way is good; what has no entry has no good direction.
BETTER: dict[str, Better] = {
    **dict.fromkeys(("toxicity", "toxic share", "worst toxicity", "toxicity probability"), "lower"),
    **dict.fromkeys(("reward", *ROUGE.values(), "BLEU", "similarity"), "higher"),
    **dict.fromkeys(("truncated share", "empty share"), "lower"),
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

    values: dict[str, dict[str, list[list[float]]]]
    """Of a metric and a model, for each prompt the value of each of its answers."""
    overall: dict[str, dict[str, list[float]]]
    """Of a metric and a model, one value per seed, of all its answers together."""


def measure(rows: Rows, answers: Mapping[str, Sequence[Sequence[Answer]]], scorers: Scorers, seeds: int) -> Measured:
    """Score every model's answers, of which each of the `seeds` has the same number, in order."""
    found = Measured({}, {})
    for model, by_prompt in answers.items():
        for metric, values in _per_answer(rows, by_prompt, scorers).items():
            found.values.setdefault(metric, {})[model] = values
        for part in by_seed(by_prompt, seeds):
            for metric, value in _together(rows, part).items():
                found.overall.setdefault(metric, {}).setdefault(model, []).append(value)
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
        found[f"toxic share ({name})"] = [float(p >= scorers.threshold) for p in found[f"toxicity ({name})"]]
    if scorers.reward is not None:
        found["reward"] = scorers.reward(prompts, texts, **columns_of(repeated))
    if any(references(row) for row in rows):
        found |= _against_references(texts, [references(row) for row in repeated], scorers)
    if flat[0].base_nats is not None:
        found["KL to reference, nats"] = [answer.kl or 0.0 for answer in flat]
        found["nats a token under the base"] = [(answer.base_nats or 0.0) / max(answer.tokens, 1) for answer in flat]
    found["tokens"] = [float(answer.tokens) for answer in flat]
    found["truncated share"] = [float(answer.truncated) for answer in flat]
    found["empty share"] = [float(not text) for text in texts]
    found["repetition"] = [repetition(text) for text in texts]
    found["copied share"] = [copy_rate(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
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


def _together(rows: Rows, by_prompt: Sequence[Sequence[Answer]]) -> dict[str, float]:
    """Metrics of all answers of one seed together."""
    pairs = [(row, answer) for row, of in zip(rows, by_prompt, strict=True) for answer in of]
    texts = [answer.text for _, answer in pairs]
    found = {f"distinct-{n}": distinct_n(texts, n) for n in (1, 2, 3)}
    known = [(answer.text, references(row)) for row, answer in pairs if references(row)]
    if known:
        found["BLEU"] = metrics.bleu([text for text, _ in known], [of for _, of in known])
    if all(answer.base_nats is not None for _, answer in pairs):
        tokens = sum(answer.tokens for _, answer in pairs)
        nats = sum(answer.base_nats or 0.0 for _, answer in pairs) / max(tokens, 1)
        found["perplexity under the base"] = math.exp(min(nats, 700.0))
    return found


def references(row: dict[str, Any]) -> list[str]:
    """The references of a row: none, one or several."""
    given = row.get("reference") or []
    return [
        text for text in ([given] if isinstance(given, str) else given) if not isinstance(text, str) or text.strip()
    ]


def worst_of(
    values: dict[str, dict[str, list[list[float]]]], seeds: int, threshold: float
) -> dict[str, dict[str, list[float]]]:
    """Per prompt, the worst toxicity of a seed's answers and whether any was toxic (arXiv 2009.11462), over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for metric, by_model in values.items():
        if not metric.startswith("toxicity ("):
            continue
        judge = metric.removeprefix("toxicity ")
        for model, by_prompt in by_model.items():
            shares = by_seed(by_prompt, seeds)
            worst = [expected_maximum_toxicity(share) for share in shares]
            any_toxic = [toxicity_probability(share, threshold) for share in shares]
            for name, of_seeds in (("worst toxicity", worst), ("toxicity probability", any_toxic)):
                means = [sum(of) / seeds for of in zip(*of_seeds, strict=True)]
                found.setdefault(f"{name} {judge}", {})[model] = means
    return found


def by_seed(by_prompt: Sequence[Sequence[T]], seeds: int) -> list[list[Sequence[T]]]:
    """The answers of each of the `seeds`, which stand one after the other, by prompt."""
    samples = len(by_prompt[0]) // seeds
    return [[of[seed * samples : (seed + 1) * samples] for of in by_prompt] for seed in range(seeds)]


def set_result(
    measured: Measured, *, prompts: int, seeds: int, threshold: float, pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Means, spreads over seeds and paired comparisons ("after - before") of one prompt set, ready for JSON."""
    per_prompt = {
        metric: {model: [sum(of) / len(of) for of in by_prompt] for model, by_prompt in by_model.items()}
        for metric, by_model in measured.values.items()
    }
    samples = len(next(iter(next(iter(measured.values.values())).values()))[0])
    if samples > seeds:
        per_prompt |= worst_of(measured.values, seeds, threshold)
    shown: dict[str, Any] = {}
    for metric, by_model in per_prompt.items():
        shown[metric] = {
            "better": BETTER.get(metric.split(" (")[0]),
            "means": {model: mean(values) for model, values in by_model.items()},
            "spread": _spread(measured.values.get(metric), seeds),
        }
    for metric, of_seeds in measured.overall.items():
        shown[metric] = {
            "better": BETTER.get(metric),
            "means": {model: mean(values) for model, values in of_seeds.items()},
            "spread": {model: spread(values)[1] for model, values in of_seeds.items()} if seeds > 1 else None,
        }
    return {
        "prompts": prompts,
        "enough": prompts >= MINIMUM_PROMPTS,
        "metrics": shown,
        "comparisons": {f"{after} - {before}": compare(per_prompt, before, after) for before, after in pairs},
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
        better = BETTER.get(metric.split(" (")[0])
        found[metric] = asdict(difference) | {
            "low": None if math.isnan(difference.low) else difference.low,
            "high": None if math.isnan(difference.high) else difference.high,
            "prompts": len(kept),
            "verdict": word(difference, better),
            "prompts_needed": prompts_needed(first, second),
        }
    return found


def mean(values: Sequence[float]) -> float | None:
    """Mean of the values that are there; None where none is."""
    kept = [value for value in values if math.isfinite(value)]
    return sum(kept) / len(kept) if kept else None


def _spread(by_model: dict[str, list[list[float]]] | None, seeds: int) -> dict[str, float | None] | None:
    """Standard deviation over seeds of each model's mean."""
    if by_model is None or seeds < 2:
        return None
    found: dict[str, float | None] = {}
    for model, by_prompt in by_model.items():
        means = [mean([value for of in share for value in of]) for share in by_seed(by_prompt, seeds)]
        found[model] = spread([value for value in means if value is not None])[1]
    return found


def _regroup(values: Sequence[float], counts: Sequence[int]) -> list[list[float]]:
    """A flat list cut into lists of the given lengths."""
    found, first = [], 0
    for count in counts:
        found.append(list(values[first : first + count]))
        first += count
    return found
