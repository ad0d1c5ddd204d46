"""What of several runs can be compared, and the notes that say what cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.config.names import BASE, TUNED
from workbench.config.schema import Config
from workbench.config.scorers import as_scorer, by_name
from workbench.config.sources import Scorer
from workbench.evaluation.results import (
    BASE_NLL,
    DISTINCT_BY_PROMPT,
    FLUENCY,
    FLUENCY_OUTLIERS,
    MAX_TOXICITY,
    PERPLEXITY,
    REWARD,
    SCORE,
    SIMILARITY,
    TOXIC_RATE,
    TOXICITY_PROBABILITY,
    Example,
    Metric,
    Results,
    SetResult,
)

SAMPLING = (
    *("temperature", "samples", "seeds", "max_new_tokens", "min_new_tokens"),
    *("top_k", "top_p", "num_beams", "repetition_penalty", "stop_strings"),
)


@dataclass(frozen=True)
class EvaluatedRun:
    """A run with a finished evaluation."""

    config: Config
    results: Results
    examples: list[Example]


def differently_measured(runs: Mapping[str, EvaluatedRun]) -> list[Metric]:
    """Return the metrics that have one name in several runs, but whose values cannot be compared between them."""
    return [
        metric
        for metric, measured in runs_by_metric(runs).items()
        if differs(measured_with(metric, run) for run in measured.values())
    ]


def runs_by_metric(runs: Mapping[str, EvaluatedRun]) -> dict[Metric, dict[str, EvaluatedRun]]:
    """Return for each metric the runs that measured it, by title."""
    measured: dict[Metric, dict[str, EvaluatedRun]] = {}
    for title, run in runs.items():
        for metric in dict.fromkeys(s.metric for result in run.results.sets for s in result.summaries):
            measured.setdefault(metric, {})[title] = run
    return measured


def measured_with(metric: Metric, run: EvaluatedRun) -> list[object]:
    """Return the settings and hashes on which a metric's value depends beside the completions."""
    settings, evaluation = run.results.settings, run.config.evaluation
    used: list[object] = []
    if metric.name in (TOXIC_RATE, TOXICITY_PROBABILITY):
        used.append(settings.threshold)
    if metric.pooled or metric.name in (MAX_TOXICITY, TOXICITY_PROBABILITY, *DISTINCT_BY_PROMPT.values()):
        used.append(settings.samples)
    if metric.name in (FLUENCY, FLUENCY_OUTLIERS):
        used.append(content_of(run.results, "fluency", "fluency"))
    if metric.name in (PERPLEXITY, BASE_NLL):
        used.append(content_of(run.results, "model", BASE))
    if metric.name == SIMILARITY:
        used += [evaluation.similarity, content_of(run.results, "encoder", SIMILARITY)]
    if REWARD in (metric.name, metric.judge):
        used += reward_of(run)
    elif metric.judge is not None and metric.name not in (FLUENCY, FLUENCY_OUTLIERS):
        kind = "score" if metric.name == SCORE else "judge"
        entries = evaluation.rewards if metric.name == SCORE else evaluation.judges
        scorers = by_name((as_scorer(entry, kind) for entry in entries), kind)
        used += [canonical(scorers.get(metric.judge)), content_of(run.results, kind, metric.judge)]
    return used


def reward_of(run: EvaluatedRun) -> list[object]:
    """Return what identifies the reward of a run: its name or content, and its options."""
    reward = run.config.reward
    content = content_of(run.results, "reward", "reward")
    return [content or run.results.settings.reward, canonical(reward.options if reward else None)]


def canonical(value: Any) -> object:
    """Return settings in one form, so that those that mean the same are equal: a bare name is a scorer, too."""
    if isinstance(value, Scorer):
        return canonical({"model": value.model, "options": value.options})
    if isinstance(value, Mapping):
        plain = {name: canonical(entry) for name, entry in value.items() if entry not in ({}, None)}
        return plain["model"] if plain.keys() == {"model"} else plain
    return [canonical(entry) for entry in value] if isinstance(value, list | tuple) else value


def comparison_notes(runs: Mapping[str, EvaluatedRun], results: Results, different: Sequence[Metric]) -> list[str]:
    """Return why some of the comparison is left out, or has to be read with care."""
    notes = []
    with_reward = runs_by_metric(runs).get(Metric(REWARD, "higher"), {})
    has_other_rewards = differs(reward_of(run) for run in with_reward.values())
    if has_other_rewards:
        notes.append("the runs have different rewards, so the reward and what it says of toxicity are left out")
    others = [m.label for m in different if not (has_other_rewards and REWARD in (m.name, m.judge))]
    if others:
        notes.append(f"measured with different settings or weights, so left out: {', '.join(others)}")
    partial = {
        metric.label: ", ".join(measured)
        for metric, measured in runs_by_metric(runs).items()
        if len(measured) < len(runs) and metric not in different
    }
    notes += [f"measured only in {titles}: {labels}" for titles, labels in grouped(partial).items()]
    notes += [*judge_notes(runs, results), *setting_notes(runs), *set_notes(runs, results)]
    if differs([content_of(run.results, "model", title) for title in (BASE, TUNED)] for run in runs.values()):
        notes.append("the runs start from different policies, so each KL is to another reference")
    return notes


def grouped(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the keys by value, each group as a list in words."""
    groups: dict[str, list[str]] = {}
    for label, value in labels.items():
        groups.setdefault(value, []).append(label)
    return {value: ", ".join(names) for value, names in groups.items()}


def judge_notes(runs: Mapping[str, EvaluatedRun], results: Results) -> list[str]:
    """Return which judges the table shows and the verdict leaves out, since they repeat the reward of some run."""
    in_tables = {d.metric.judge for r in results.sets for c in r.comparisons for d in c.differences if d.metric.judge}
    counted = {judge for run in runs.values() for judge in run.results.settings.judges}
    left_out = [judge for judge in sorted(in_tables & counted) if judge not in results.settings.judges]
    return [f"{judge} is a judge only in some of the runs, so the verdict leaves it out" for judge in left_out]


def setting_notes(runs: Mapping[str, EvaluatedRun]) -> list[str]:
    """Return how the runs differ in what was sampled and what counts as toxic."""
    notes = []
    for name in ("threshold", *SAMPLING):
        values = {title: vars(run.results.settings)[name] for title, run in runs.items()}
        if differs(values.values()):
            by_run = ", ".join(f"{title} {value}" for title, value in values.items())
            notes.append(f"the runs differ in evaluation.{name}: {by_run}")
    return notes


def sampled_differently(runs: Mapping[str, EvaluatedRun]) -> bool:
    """Return whether the runs differ in how their completions were sampled."""
    return differs([vars(run.results.settings)[name] for name in SAMPLING] for run in runs.values())


def set_notes(runs: Mapping[str, EvaluatedRun], results: Results) -> list[str]:
    """Return which prompt sets and prompts only some runs have, and where they differ in what is neutral."""
    notes = []
    by_name = {name: sets_called(name, runs) for run in runs.values() for name in (r.name for r in run.results.sets)}
    for name, sets in by_name.items():
        common = next((result for result in results.sets if result.name == name), None)
        if not all(result.has_completions for result in sets.values()):
            notes.append(f"{name}: left out, since results hold no value of each fixed text")
        elif len(sets) < len(runs):
            notes.append(f"{name}: left out, since only {', '.join(sets)} evaluated it")
        elif common is None:
            notes.append(f"{name}: left out, since the runs have no prompt with the same references in common")
        elif any(result.rows != common.rows for result in sets.values()):
            largest = max(sets.values(), key=lambda result: result.rows)
            total = largest.size if largest.repeated_rows else largest.prompts
            notes.append(f"{name}: {common.size} that all runs have with the same references, of {total}")
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
    first, *others = [*values] or [None]
    return any(value != first for value in others)


def content_of(results: Results, kind: str, name: str) -> str | None:
    """Return the hash of one of the run's sources, or its origin where it has none; None without such a source."""
    sources = (source for source in results.provenance.sources if (source.kind, source.name) == (kind, name))
    return next((source.sha256 or source.origin for source in sources), None)
