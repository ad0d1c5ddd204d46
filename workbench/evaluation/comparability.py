"""What of several runs can be compared, and the notes that say what cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workbench.config.names import BASE, TUNED
from workbench.config.schema import Config
from workbench.config.scorers import as_scorer, by_name
from workbench.evaluation.results import (
    BASE_NLL,
    PERPLEXITY,
    REWARD,
    SCORE,
    SIMILARITY,
    TOXIC_RATE,
    TOXICITY_PROBABILITY,
    WORST_TOXICITY,
    Example,
    Metric,
    Results,
    SetResult,
)


@dataclass(frozen=True)
class EvaluatedRun:
    """A run with a finished evaluation."""

    config: Config
    results: Results
    examples: list[Example]


def differently_measured(runs: Mapping[str, EvaluatedRun]) -> list[Metric]:
    """Return the metrics that have one name in all runs, but whose values cannot be compared between them."""
    metrics = dict.fromkeys(s.metric for run in runs.values() for result in run.results.sets for s in result.summaries)
    return [metric for metric in metrics if len({repr(measured_with(metric, run)) for run in runs.values()}) > 1]


def measured_with(metric: Metric, run: EvaluatedRun) -> list[object]:
    """Return the settings and hashes on which a metric's value depends beside the completions."""
    settings, evaluation = run.results.settings, run.config.evaluation
    used: list[object] = []
    if metric.name in (TOXIC_RATE, TOXICITY_PROBABILITY):
        used.append(settings.threshold)
    if metric.pooled or metric.name in (WORST_TOXICITY, TOXICITY_PROBABILITY):
        used.append(settings.samples)
    if metric.name in (PERPLEXITY, BASE_NLL):
        used.append(source_of(run.results, BASE))
    if metric.name == SIMILARITY:
        used.append(evaluation.similarity)
    if REWARD in (metric.name, metric.judge):
        used += [settings.reward, run.config.reward and run.config.reward.options]
        used += [(s.origin, s.sha256) for s in run.results.provenance.sources if s.kind == "reward"]
    elif metric.judge is not None:
        key = "evaluation.rewards" if metric.name == SCORE else "evaluation.judges"
        entries = evaluation.rewards if metric.name == SCORE else evaluation.judges
        used.append(by_name((as_scorer(entry, key) for entry in entries), key).get(metric.judge))
    return used


def comparison_notes(runs: Mapping[str, EvaluatedRun], results: Results, different: Sequence[Metric]) -> list[str]:
    """Return why some of the comparison is left out, or has to be read with care."""
    notes = []
    if any(REWARD in (metric.name, metric.judge) for metric in different):
        notes.append("the runs have different rewards, so the reward and what it says of toxicity are left out")
    others = [metric.label for metric in different if REWARD not in (metric.name, metric.judge)]
    if others:
        notes.append(f"measured with different settings, so left out: {', '.join(others)}")
    notes += [*judge_notes(runs, different), *setting_notes(runs), *set_notes(runs, results)]
    if differs([source_of(run.results, title) for title in (BASE, TUNED)] for run in runs.values()):
        notes.append("the runs start from different policies, so each KL is to another reference")
    return notes


def judge_notes(runs: Mapping[str, EvaluatedRun], different: Sequence[Metric]) -> list[str]:
    """Return which judges of toxicity only some runs have, so that the verdict leaves them out."""
    judged = {title: run.results.settings.judges for title, run in runs.items()}
    notes = []
    for judge in dict.fromkeys(judge for judges in judged.values() for judge in judges):
        with_judge = [title for title, judges in judged.items() if judge in judges]
        if len(with_judge) < len(runs) and not any(metric.judge == judge for metric in different):
            notes.append(f"toxicity according to {judge} was measured only in {', '.join(with_judge)}")
    return notes


def setting_notes(runs: Mapping[str, EvaluatedRun]) -> list[str]:
    """Return how the runs differ in what was sampled and what counts as toxic."""
    notes = []
    for name in ("threshold", "temperature", "samples", "seeds", "max_new_tokens"):
        values = {title: vars(run.results.settings)[name] for title, run in runs.items()}
        if differs(values.values()):
            by_run = ", ".join(f"{title} {value}" for title, value in values.items())
            notes.append(f"the runs differ in evaluation.{name}: {by_run}")
    return notes


def set_notes(runs: Mapping[str, EvaluatedRun], results: Results) -> list[str]:
    """Return which prompt sets and prompts only some runs have, and where they differ in what is neutral."""
    notes = []
    by_name = {name: sets_called(name, runs) for run in runs.values() for name in (r.name for r in run.results.sets)}
    for name, sets in by_name.items():
        common = next((result for result in results.sets if result.name == name), None)
        if len(sets) < len(runs):
            notes.append(f"{name}: left out, since only {', '.join(sets)} evaluated it")
        elif common is None:
            notes.append(f"{name}: left out, since the runs have no prompt with the same references in common")
        elif any(result.prompts != common.prompts for result in sets.values()):
            largest = max(result.prompts for result in sets.values())
            notes.append(f"{name}: {common.prompts} prompts that all runs have with the same references, of {largest}")
        if common and differs(result.neutral for result in sets.values()):
            neutral = ", ".join(title for title, result in sets.items() if result.neutral)
            is_neutral = "neutral" if common.neutral else "not neutral"
            notes.append(f"{name}: neutral only in {neutral}; here it counts as {is_neutral}, as in the first run")
    return notes


def sets_called(name: str, runs: Mapping[str, EvaluatedRun]) -> dict[str, SetResult]:
    """Return the set of that name by run, for the runs that have it."""
    return {title: result for title, run in runs.items() for result in run.results.sets if result.name == name}


def differs(values: Iterable[object]) -> bool:
    """Return whether the values are not all equal."""
    first, *others = values
    return any(value != first for value in others)


def source_of(results: Results, title: str) -> tuple[str, str | None] | None:
    """Return origin and hash of one of the run's models; None if it has none of that title."""
    sources = (s for s in results.provenance.sources if s.kind == "model" and s.name == title)
    return next(((source.origin, source.sha256) for source in sources), None)
