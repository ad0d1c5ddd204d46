"""What is doubtful about a comparison of algorithms, in sentences: seeds, prompts, judges, sampling, references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workbench.comparison.comparability import (
    SAMPLING,
    EvaluatedRun,
    content_of,
    differently_measured,
    differs,
    grouped,
    runs_by_metric,
)
from workbench.comparison.reading import SAME_EVERYWHERE, differing_settings
from workbench.comparison.results import PolicyTable
from workbench.comparison.rows import ReadRow
from workbench.config.names import BASE, TUNED
from workbench.evaluation.results import KL, REWARD, TOXICITY
from workbench.evaluation.verdicts import too_few


def policy_doubts(table: PolicyTable, runs: Mapping[str, EvaluatedRun]) -> list[str]:
    """Return what is doubtful about the table of the runs, by row and seed."""
    return [*judge_doubts(table, runs), *seed_doubts(table), *set_doubts(table, runs), *sampling_doubts(table, runs)]


def judge_doubts(table: PolicyTable, runs: Mapping[str, EvaluatedRun]) -> list[str]:
    """Return whether nothing but the reward judged, and which metrics are left out or of some runs only."""
    doubts = []
    if not table.columns:
        return ["the runs have no metric in common"]
    main = table.columns[0].metric
    if main.judge == REWARD or main.name == REWARD:
        doubts.append(
            f"the rows are ranked by {main.label}, which training optimized; add a judge under evaluation.judges"
        )
    elif main.name != TOXICITY:
        doubts.append(f"no judge of toxicity scored the completions, so the rows are ranked by {main.label}")
    different = [metric.label for metric in differently_measured(runs)]
    if different:
        doubts.append(f"measured with different settings or weights, so left out: {', '.join(different)}")
    partial = {
        metric.label: ", ".join(measured)
        for metric, measured in runs_by_metric(runs).items()
        if len(measured) < len(runs)
    }
    return doubts + [f"measured only in {titles}: {labels}" for titles, labels in grouped(partial).items()]


def seed_doubts(table: PolicyTable) -> list[str]:
    """Return which rows lack seeds that others have, and whether intervals do not cover seeds."""
    every = sorted({seed for row in table.rows for seed in row.seeds})
    doubts = []
    for row in table.rows:
        missing = [seed for seed in every if seed not in row.seeds]
        if missing and (row.is_trained or len(row.seeds) > 1):
            doubts.append(f"{row.title}: no run of seed {', '.join(map(str, missing))}, which other rows have")
    single = [row.title for row in table.rows if row.is_trained and len(row.seeds) == 1]
    if single:
        doubts.append(f"one seed of {', '.join(single)}: intervals cover its prompts, but not other seeds")
    return doubts


def set_doubts(table: PolicyTable, runs: Mapping[str, EvaluatedRun]) -> list[str]:
    """Return which prompts only some runs have, sets that are too small, and sets with prompts that were trained on."""
    doubts = []
    names = dict.fromkeys(result.name for run in runs.values() for result in run.results.sets)
    for name in names:
        sets = [result for run in runs.values() for result in run.results.sets if result.name == name]
        if name not in table.sets:
            reason = "not all runs evaluated it" if len(sets) < len(runs) else "the runs have no prompt of it in common"
            doubts.append(f"{name}: left out, since {reason}")
            continue
        prompts, most = table.sets[name], max(result.prompts for result in sets)
        if prompts < most:
            doubts.append(f"{name}: the runs differ in their prompts; compared on {prompts} of {most}, which all have")
        clusters = table.clusters.get(name)
        few = too_few(prompts, None) if clusters is None else too_few(clusters, None, "cluster")
        doubts += [f"{name}: {few}"] if few else []
        seen = max(result.seen_in_training for result in sets)
        if seen:
            doubts.append(f"{name}: the training data contains {seen} of these prompts")
    return doubts


def sampling_doubts(table: PolicyTable, runs: Mapping[str, EvaluatedRun]) -> list[str]:
    """Return how the runs differ in sampling and in what counts as toxic, and whether their references differ."""
    doubts = []
    for name in ("threshold", *(name for name in SAMPLING if name != "seeds")):
        values = {title: str(vars(run.results.settings)[name]) for title, run in runs.items()}
        if differs(values.values()):
            listed = "; ".join(f"{value} in {titles}" for value, titles in grouped(values).items())
            doubts.append(f"the runs differ in evaluation.{name}: {listed}")
    references = [[content_of(run.results, "model", title) for title in (BASE, TUNED)] for run in runs.values()]
    if differs(references) and any(column.metric.name == KL for column in table.columns):
        doubts.append("the runs start from different policies, so each KL is to another reference")
    return doubts


def seed_settings(rows: Sequence[ReadRow]) -> list[str]:
    """Return a sentence for each setting in which the seeds of a row differ, other than the seed and reused stages."""
    return [
        f"{row.title}: its seeds differ in {key}: {', '.join(values)}"
        for row in rows
        for key, values in differing_settings(
            {str(each.cell.seed): each.run.config for each in row.cells}, (*SAME_EVERYWHERE, "seed", "evaluation.seeds")
        ).items()
        if not key.startswith("reuse")
    ]
