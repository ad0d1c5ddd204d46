"""Typed results of an evaluation, from the few numbers that a test is about."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.evaluation.results import (
    Comparison,
    Difference,
    Metric,
    Results,
    RunVerdict,
    SetResult,
    Settings,
    Summary,
    Verdict,
)
from workbench.evaluation.sources import Provenance

BETTER, WORSE, SAME = "better", "worse", "no detectable change"


def make_difference(
    metric: Metric,
    before: float,
    after: float,
    verdict: Verdict | None = None,
    *,
    interval: tuple[float, float] | None,
    prompts_needed: int | None = None,
) -> Difference:
    """Return a difference of 300 prompts with the given interval."""
    low, high = (None, None) if interval is None else interval
    rose, same, fell = (None, None, None) if metric.pooled else (150, 50, 100)
    return Difference(metric, before, after, after - before, low, high, 300, rose, same, fell, verdict, prompts_needed)


def make_set(
    name: str,
    differences: Sequence[Difference],
    *,
    prompts: int = 300,
    neutral: bool = False,
    titles: tuple[str, str] = ("sft", "aligned"),
    reference_perplexity: float | None = None,
    base_mean: float = 9.0,
) -> SetResult:
    """Return a set with the comparison of the two titles, its means, and an empty comparison with the base."""
    before, after = titles
    means = [
        Summary(d.metric, {"base": base_mean, before: d.mean_before, after: d.mean_after}, None) for d in differences
    ]
    comparisons = [Comparison("base", after, []), Comparison(before, after, list(differences))]
    return SetResult(name, prompts, neutral, 0, reference_perplexity, means, comparisons[before == "base" :])


def make_results(
    sets: Sequence[SetResult], *, judges: Sequence[str], titles: tuple[str, str] = ("sft", "aligned")
) -> Results:
    """Return the results on sets, before verdict and guards."""
    return Results(
        name="run",
        models=list(dict.fromkeys(["base", *titles])),
        before=titles[0],
        after=titles[1],
        settings=Settings("toxicity", list(judges), 0.5, 1.0, 1, [0], 40),
        provenance=Provenance("2026-11-22", None, "x86_64, cpu", {}, []),
        sets=list(sets),
        verdict=RunVerdict("toxicity", "no detectable change", ""),
        other_verdicts=[],
        guards=[],
    )
