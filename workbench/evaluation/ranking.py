"""The best of several rows that are compared with the first, by the first metric that ranks them."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.evaluation.results import (
    REWARD,
    ROUGE_L,
    SCORE,
    SIMILARITY,
    TOXICITY,
    Results,
    SetResult,
    Summary,
)

RANKING = (ROUGE_L, SIMILARITY, TOXICITY, REWARD, SCORE)
"""Metrics by which rows are ranked: the first that was measured decides."""


def ranking_summaries(sets: Sequence[SetResult], titles: Sequence[str]) -> list[Summary]:
    """Return the summaries that rank the rows after the first, on the sets that are not neutral if there are any.

    Empty where nothing ranks them. Several judges of toxicity count alike; of several scores, the first decides.
    """
    measured = [result for result in sets if not result.neutral] or list(sets)
    for name in RANKING:
        ranking = [
            summary
            for result in measured
            for summary in result.summaries
            if summary.metric.name == name and any(summary.means.get(title) is not None for title in titles[1:])
        ]
        if ranking:
            return [s for s in ranking if name != SCORE or s.metric == ranking[0].metric]
    return []


def best_title(sets: Sequence[SetResult], titles: Sequence[str]) -> str | None:
    """Return the best row after the first; None where nothing ranks them."""
    summaries = ranking_summaries(sets, titles)
    if not summaries:
        return None
    sign = -1 if summaries[0].metric.direction == "lower" else 1
    # A row without a value on one of the sets is not compared with those that have one.
    complete = [title for title in titles[1:] if all(s.means.get(title) is not None for s in summaries)]
    return max(complete or titles[1:], key=lambda title: sign * sum(s.means.get(title) or 0.0 for s in summaries))


def best_sentence(results: Results) -> str:
    """Return which row is best and by what, or that none is."""
    summaries = ranking_summaries(results.sets, results.models)
    if not summaries:
        return "no row is best: no metric that ranks rows was measured"
    first, best = (mean_of(summaries, title) for title in (results.before, results.after))
    compared = "" if first is None else f"; {results.before} has {first:.3f}"
    return f"best after the first row by {summaries[0].metric.name}: {results.after} with {best:.3f}{compared}"


def mean_of(summaries: Sequence[Summary], title: str) -> float | None:
    """Return the mean of a row over the sets that have it; None where none has."""
    means = [mean for summary in summaries if (mean := summary.means.get(title)) is not None]
    return sum(means) / len(means) if means else None


def best_mean(results: Results) -> str:
    """Return the best row with its mean of the metric that ranks it, or that none is best."""
    summaries = ranking_summaries(results.sets, results.models)
    mean = mean_of(summaries, results.after)
    return "no row is best" if mean is None else f"{results.after}: {summaries[0].metric.name} {mean:.3f}"
