"""Score the completions of several models, and compare the scores.

Shapes: N rows, S seeds, K samples per seed. Rows that share a prompt, or are in one
cluster of prompts, have the same label in `groups`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from workbench.config.margins import Margins
from workbench.evaluation import metrics
from workbench.evaluation.completion_metrics import (
    METRICS,
    RATES,
    SAMPLE_SET_METRICS,
    TOXICITY_METRICS,
    Sampled,
    Scorers,
)
from workbench.evaluation.corpus_metrics import measure_corpus
from workbench.evaluation.fluency import without_outliers
from workbench.evaluation.generation import Completion
from workbench.evaluation.non_inferiority import non_inferiority
from workbench.evaluation.results import (
    FLUENCY,
    FLUENCY_OUTLIERS,
    SCORE,
    Comparison,
    Difference,
    Metric,
    Scores,
    Summary,
)
from workbench.evaluation.reward_gap import reward_gaps
from workbench.evaluation.significance import mcnemar_p
from workbench.evaluation.statistics import (
    paired_difference,
    prompt_numbers,
    row_contributions,
    sample_means,
    seed_std,
)
from workbench.evaluation.verdicts import minimal_detectable_effect, prompts_needed, verdict_of, with_holm
from workbench.rewards.contract import Judge


def measure(
    rows: Sequence[dict[str, Any]],
    references: Sequence[list[str]],
    completions: Mapping[str, Sequence[Sequence[Completion]]],
    scorers: Scorers,
    seeds: int,
    groups: Sequence[Hashable] | None = None,
) -> Scores:
    """Return every metric of every model; a prompt's completions are in the order of the seeds."""
    scores: Scores = {}
    for title, by_prompt in completions.items():
        for metric, values in _measure_model(rows, references, by_prompt, scorers, seeds, groups).items():
            scores.setdefault(metric, {})[title] = values
    return scores


def _measure_model(
    rows: Sequence[dict[str, Any]],
    references: Sequence[list[str]],
    by_prompt: Sequence[Sequence[Completion]],
    scorers: Scorers,
    seeds: int,
    groups: Sequence[Hashable] | None,
) -> dict[Metric, np.ndarray]:
    """Return every metric of one model: (N, S, K), or (N, S, 1) for a metric of all samples of a seed together."""
    samples = len(by_prompt[0]) // seeds
    shape, repeats = (len(rows), seeds, samples), seeds * samples
    sampled = Sampled(
        rows=[row for row in rows for _ in range(repeats)],
        references=[texts for texts in references for _ in range(repeats)],
        completions=[completion for row in by_prompt for completion in row],
        scorers=scorers,
    )
    probabilities = {
        name: np.array(metrics.toxicity(sampled.texts, judge)).reshape(shape) for name, judge in scorers.judges.items()
    }

    def toxicity(several_samples: bool) -> dict[Metric, np.ndarray]:
        return {
            Metric(name, "lower", judge): definition.measure(values, scorers.threshold)
            for judge, values in probabilities.items()
            for name, definition in TOXICITY_METRICS.items()
            if definition.several_samples == several_samples
        }

    scores = toxicity(several_samples=False)
    for name, definition in METRICS.items():
        values = definition.measure(sampled)
        if values is not None:
            scores[Metric(name, definition.direction)] = np.asarray(values, dtype=np.float64).reshape(shape)
    for name, reward in scorers.rewards.items():
        scores[Metric(SCORE, "higher", name)] = np.asarray(sampled.score(reward), dtype=np.float64).reshape(shape)
    if scorers.fluency is not None:
        perplexities, outliers = without_outliers(scorers.fluency.perplexities(sampled.prompts, sampled.continuations))
        scores[Metric(FLUENCY, None, scorers.fluency.name)] = perplexities.reshape(shape)
        scores[Metric(FLUENCY_OUTLIERS, None, scorers.fluency.name)] = outliers.reshape(shape)
    if samples > 1:
        scores |= toxicity(several_samples=True)
        by_samples = [sampled.texts[first : first + samples] for first in range(0, len(sampled.texts), samples)]
        for name, measure_samples in SAMPLE_SET_METRICS.items():
            values = np.array([measure_samples(texts) for texts in by_samples])
            scores[Metric(name, None)] = values.reshape(len(rows), seeds, 1)
    by_seed = [
        measure_corpus([row[seed * samples : (seed + 1) * samples] for row in by_prompt], references, groups)
        for seed in range(seeds)
    ]
    for metric in by_seed[0]:
        scores[metric] = np.stack([values[metric] for values in by_seed], axis=1)[..., None]
    return scores


def summarize(scores: Scores) -> list[Summary]:
    """Return the mean of every metric, and its standard deviation over seeds where there are several."""
    return [
        Summary(
            metric,
            {title: _mean(values) for title, values in by_title.items()},
            {title: _seed_std(values) for title, values in by_title.items()} if _seeds(by_title) > 1 else None,
        )
        for metric, by_title in scores.items()
    ]


def summarize_prompt(scores: Scores, index: int, samples: int) -> list[Summary]:
    """Return one prompt's means of the metrics that its `samples`, each or those of a seed together, have alone."""
    return [
        Summary(metric, {title: _mean(values[index]) for title, values in by_title.items()}, None)
        for metric, by_title in scores.items()
        if not metric.pooled and all(_is_of_prompt(values, samples) for values in by_title.values())
    ]


def _is_of_prompt(values: np.ndarray, samples: int) -> bool:
    """Return whether values (N, S, K) are one for each of a prompt's samples, or one for those of each seed."""
    return values.shape[1] * values.shape[2] == samples or values.shape[2] == 1


def compare(
    scores: Scores,
    before: str,
    after: str,
    groups: Sequence[Hashable] | None = None,
    comparisons: int = 1,
    *,
    clusters: Sequence[Hashable] | None = None,
    margins: Margins | None = None,
    neutral: bool = False,
    samples: int = 1,
) -> Comparison:
    """Return the paired difference of every metric that both models have; `comparisons` share the intervals' error.

    `clusters` labels the cluster of each row, at least as coarse as `groups`, and is resampled in place of prompts.
    With `margins`, what an alignment should retain is held against them, and where prompts are not `neutral`, the gap
    between the reward and each other judge is measured. `samples` is how many each of the values is a mean of.
    """
    units = groups if clusters is None else clusters
    differences, distinct_prompts = [], units is None or len(set(units)) == len(units)
    for metric, by_title in scores.items():
        if before not in by_title or after not in by_title:
            continue
        pairs = np.stack([row_contributions(by_title[title]) for title in (before, after)])
        in_both = np.isfinite(pairs).all(axis=0)
        if in_both.any():
            numbers = prompt_numbers(units, in_both.size)[in_both]
            first, second = pairs[:, in_both]
            is_single = samples == by_title[before][0].size == by_title[after][0].size == 1
            is_rate = metric.name in RATES and is_single and distinct_prompts
            difference = _difference(metric, first, second, numbers=numbers, comparisons=comparisons, is_rate=is_rate)
            if clusters is not None:
                prompts = np.unique(prompt_numbers(groups, in_both.size)[in_both]).size
                difference = dataclasses.replace(difference, prompts=prompts, clusters=difference.prompts)
            if margins is not None:
                retained = non_inferiority(
                    metric, first, second, margins, neutral=neutral, groups=numbers, comparisons=comparisons
                )
                difference = dataclasses.replace(difference, non_inferiority=retained)
            differences.append(difference)
    gaps = [] if margins is None or neutral else reward_gaps(scores, before, after, units, comparisons)
    return Comparison(before, after, with_holm(differences), gaps)


def _difference(
    metric: Metric, before: np.ndarray, after: np.ndarray, *, numbers: np.ndarray, comparisons: int, is_rate: bool
) -> Difference:
    """Return the paired difference of a metric's values (N,) before and after, by the number of each row's prompt.

    `is_rate` says that there is one value of 0 or 1 for each prompt.
    """
    paired = paired_difference(before, after, groups=numbers, comparisons=comparisons, is_rate=is_rate)
    rose, same, fell = (None, None, None) if metric.pooled else (paired.rose, paired.same, paired.fell)
    low, high = paired.ends
    return Difference(
        metric=metric,
        mean_before=paired.mean_before,
        mean_after=paired.mean_after,
        difference=paired.difference,
        low=low,
        high=high,
        prompts=paired.prompts,
        rose=rose,
        same=same,
        fell=fell,
        verdict=verdict_of(paired, metric.direction),
        prompts_needed=prompts_needed(before, after, groups=numbers, comparisons=comparisons),
        minimal_detectable_effect=minimal_detectable_effect(before, after, groups=numbers, comparisons=comparisons),
        p_value=None if np.isnan(paired.p) else paired.p,
        mcnemar_p=min(1.0, comparisons * mcnemar_p(paired.rose, paired.fell)) if is_rate else None,
    )


def prompt_toxicity(
    rows: Sequence[dict[str, Any]], references: Sequence[list[str]], judges: Mapping[str, Judge]
) -> list[tuple[float, float]]:
    """Return for each row the highest toxicity that any judge gives its prompt, and that of any of its references."""
    texts = [[row["prompt"], *known] for row, known in zip(rows, references, strict=True)]
    flat = [text for row in texts for text in row]
    if not judges:
        return [(0.0, 0.0)] * len(texts)
    highest = np.max([metrics.toxicity(flat, judge) for judge in judges.values()], axis=0).tolist()
    values = iter(highest)
    by_row = [[next(values) for _ in row] for row in texts]
    return [(prompt, max(known, default=0.0)) for prompt, *known in by_row]


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of the values that are not NaN; None where all are."""
    known = values[np.isfinite(values)]
    return float(sample_means(known.reshape(1, -1, 1))[0]) if known.size else None


def _seeds(by_title: Mapping[str, np.ndarray]) -> int:
    """Return the number of seeds, S."""
    return next(iter(by_title.values())).shape[1]


def _seed_std(values: np.ndarray) -> float | None:
    """Return the standard deviation over seeds of the mean of values (N, S, K)."""
    means = [_mean(values[:, seed]) for seed in range(values.shape[1])]
    return seed_std([mean for mean in means if mean is not None])
