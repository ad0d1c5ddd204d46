"""Compare algorithms, each with several seeds: one table per policy.

Shapes: N rows of a prompt set, S seeds of a row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean

import numpy as np

from workbench.comparison.budgets import mean_budget, unequal_budgets
from workbench.comparison.comparability import EvaluatedRun, differently_measured
from workbench.comparison.doubts import policy_doubts, seed_settings
from workbench.comparison.intervals import difference_over_seeds
from workbench.comparison.ranking import ranking_sentence
from workbench.comparison.reading import SAME_EVERYWHERE, differing_settings
from workbench.comparison.results import AlgorithmComparison, AlgorithmRow, Column, PolicyTable, RowDifference, Value
from workbench.comparison.rows import ReadRow
from workbench.comparison.run_comparison import common_clusters, common_examples, set_of, value_of
from workbench.comparison.training_curves import common_kl, kl_range, mean_points, operating_point, values_at_kl
from workbench.data.templates import normalize
from workbench.errors import UserError
from workbench.evaluation.results import (
    KL,
    PERPLEXITY,
    REWARD,
    ROUGE_L,
    SCORE,
    TEXT_NLL,
    TEXT_PERPLEXITY,
    TOXICITY,
    Metric,
    Verdict,
)
from workbench.evaluation.statistics import seed_std
from workbench.evaluation.verdicts import verdict_of

GOALS = (TOXICITY, SCORE, REWARD, KL, ROUGE_L)
NEUTRAL = (ROUGE_L, PERPLEXITY, TEXT_NLL, TEXT_PERPLEXITY)
"""Metrics of a neutral set, in the order of the columns."""
MAIN_REFERENCE = "ppo"
OPPOSITE: dict[Verdict, Verdict] = {
    "better": "worse",
    "worse": "better",
    "no detectable change": "no detectable change",
}


def compare_rows(policies: Mapping[str, Sequence[ReadRow]], broken: Sequence[str] = ()) -> AlgorithmComparison:
    """Return the comparison of the rows of each policy; `broken` names runs that are missing from it.

    Raises UserError where the runs of a policy have no prompt in common.
    """
    warnings = [f"{name}: broken, so it is not in the tables" for name in broken]
    return AlgorithmComparison([policy_table(policy, rows) for policy, rows in policies.items()], warnings)


def policy_table(policy: str, rows: Sequence[ReadRow]) -> PolicyTable:
    """Return the table of one policy; raises UserError where its runs have no prompt in common."""
    runs = {f"{row.title}, seed {each.cell.seed}": each.run for row in rows for each in row.cells}
    values, prompts, clusters = read_values(rows, runs)
    if not prompts:
        raise UserError(f"{policy}: its runs have no prompt in common; evaluate them on the same evaluation.data")
    columns, groups = list(values), prompts | clusters
    titles, baseline = [row.title for row in rows], rows[0].title
    trained = [row for row in rows if row.trained and not row.is_decoding]
    reference = next((row.title for row in trained if row.title.casefold() == MAIN_REFERENCE), None)
    reference = reference or next((row.title for row in trained), None)
    comparisons = max(1, math.comb(len(rows), 2))
    pairs = [(baseline, title) for title in titles[1:]]
    pairs += [(reference, title) for title in titles if reference and title not in (baseline, reference)]
    differences = []
    for index, column in enumerate(columns):
        every = combinations(titles, 2) if index == 0 else ()
        for before, after in dict.fromkeys([*pairs, *every]):
            if not column.metric.pooled:
                arrays = values[column]
                differences += row_difference(arrays, before, after, index, column, groups[column.set], comparisons)
    kl = common_kl([[kl_range(each.points) for each in row.cells] for row in trained])
    table = PolicyTable(
        policy=policy,
        columns=columns,
        sets={name: len(set(labels)) for name, labels in prompts.items()},
        rows=[
            algorithm_row(row, [row_value(values[column].get(row.title), column, row) for column in columns], kl)
            for row in rows
        ],
        baseline=baseline,
        reference=reference if reference != baseline else None,
        comparisons=comparisons,
        differences=differences,
        kl=kl,
        sentence="",
        warnings=[],
        differing_settings=settings_by_row(trained),
        settings=rows[0].cells[0].run.results.settings,
        provenance=rows[0].cells[0].run.results.provenance,
        clusters={name: len(set(labels)) for name, labels in clusters.items()},
    )
    budgets = unequal_budgets({row.title: row.budget for row in table.trained})
    return dataclasses.replace(
        table, sentence=sentence_of(table), warnings=[*policy_doubts(table, runs), *budgets, *seed_settings(rows)]
    )


def read_values(
    rows: Sequence[ReadRow], runs: Mapping[str, EvaluatedRun]
) -> tuple[dict[Column, dict[str, np.ndarray]], dict[str, list[str]], dict[str, list[str]]]:
    """Return the values (N, S) of each column by row, each set's prompts (N,) by its name, and clusters (N,) if any.

    A pooled metric has one value per seed (1, S). A metric that the runs measured differently has no column.
    """
    different = differently_measured(runs)
    values: dict[Column, dict[str, np.ndarray]] = {}
    prompts: dict[str, list[str]] = {}
    clusters: dict[str, list[str]] = {}
    for result in next(iter(runs.values())).results.sets:
        if not all(any(each.name == result.name for each in run.results.sets) for run in runs.values()):
            continue
        common = common_examples(runs, result.name)
        if not common:
            continue
        prompts[result.name] = [normalize(row[0].prompt) for row in common]
        if (labels := common_clusters(common)) is not None:
            clusters[result.name] = labels
        for metric in (summary.metric for summary in result.summaries):
            names = NEUTRAL if result.neutral else GOALS
            if metric.name not in names or metric in different:
                continue
            by_run = [
                pooled_value(run, result.name, metric, len(common))
                if metric.pooled
                else [value_of(examples[index], metric, run.results.after) for examples in common]
                for index, run in enumerate(runs.values())
            ]
            seeds = iter(by_run)
            values[Column(result.name, result.neutral, metric)] = {
                row.title: np.array([next(seeds) for _ in row.cells], dtype=np.float64).T for row in rows
            }
    return {column: values[column] for column in sorted(values, key=column_order)}, prompts, clusters


def column_order(column: Column) -> tuple[bool, int, bool]:
    """Return the key of the columns' order: goals first, of these toxicity by judges that were not the reward."""
    names = NEUTRAL if column.neutral else GOALS
    return column.neutral, names.index(column.metric.name), column.metric.judge == REWARD


def pooled_value(run: EvaluatedRun, name: str, metric: Metric, rows: int) -> list[float]:
    """Return a run's value of a metric over all completions together, NaN unless it is of the same rows."""
    result = set_of(run, name)
    summary = result.summary(metric.name, metric.judge)
    value = summary.means.get(run.results.after) if summary is not None and result.rows == rows else None
    return [math.nan if value is None else value]


def row_difference(
    values: Mapping[str, np.ndarray],
    before: str,
    after: str,
    index: int,
    column: Column,
    groups: Sequence[str],
    comparisons: int,
) -> list[RowDifference]:
    """Return the difference of two rows in a column, none where no prompt has the metric in both."""
    first, second = values[before], values[after]
    in_both = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
    if not in_both.any():
        return []
    labels = [label for label, is_in in zip(groups, in_both, strict=True) if is_in]
    result = difference_over_seeds(first[in_both], second[in_both], groups=labels, comparisons=comparisons)
    over = result.over_prompts
    low, high, low_over_prompts, high_over_prompts = (
        None if math.isnan(end) else end for end in (result.low, result.high, over.low, over.high)
    )
    verdict = verdict_of(dataclasses.replace(over, low=result.low, high=result.high), column.metric.direction)
    return [
        RowDifference(
            before=before,
            after=after,
            column=index,
            difference=over.difference,
            low=low,
            high=high,
            low_over_prompts=low_over_prompts,
            high_over_prompts=high_over_prompts,
            prompts=over.prompts,
            verdict=verdict,
        )
    ]


def row_value(values: np.ndarray | None, column: Column, row: ReadRow) -> Value:
    """Return the mean and the deviation over seeds of the values (N, S) of a row."""
    known = np.empty((0, 0)) if values is None else values[np.isfinite(values).all(axis=1)]
    if not known.size:
        return Value(None, None)
    by_seed, chooses = known.mean(axis=0).tolist(), row.cells[0].budget.samples_per_completion > 1
    return Value(fmean(by_seed), seed_std(by_seed), is_upper_bound=column.metric.name == KL and chooses)


def algorithm_row(row: ReadRow, values: list[Value], kl: float | None) -> AlgorithmRow:
    """Return the row of the table."""
    points = [each.points for each in row.cells]
    at_kl = values_at_kl(points, kl) if kl is not None else None
    best = operating_point(points)
    return AlgorithmRow(
        title=row.title,
        model=row.model,
        is_trained=row.trained,
        is_decoding=row.is_decoding,
        seeds=[each.cell.seed for each in row.cells],
        folders=[str(each.cell.folder) for each in row.cells],
        values=values,
        budget=mean_budget([each.budget for each in row.cells]),
        curve=mean_points(points),
        at_kl=at_kl,
        operating_point=None if isinstance(best, str) else best,
        no_operating_point=best if isinstance(best, str) else None,
    )


def sentence_of(table: PolicyTable) -> str:
    """Return what the intervals of the first column support."""
    if not table.columns:
        return "nothing is ranked: the runs have no metric in common"
    directions = {(d.before, d.after): d.verdict for d in table.differences if d.column == 0}
    means = {row.title: mean for row in table.rows if (mean := row.values[0].mean) is not None}

    def verdict(before: str, after: str) -> Verdict | None:
        if (before, after) in directions:
            return directions[before, after]
        reverse = directions.get((after, before))
        return None if reverse is None else OPPOSITE[reverse]

    prompts = [d.prompts for d in table.differences if d.column == 0]
    return ranking_sentence(
        table.columns[0].metric,
        means,
        verdict,
        baseline=table.baseline,
        prompts=min(prompts, default=0),
        one_seed=[row.title for row in table.rows if row.is_trained and len(row.seeds) == 1],
        noun="cluster" if table.columns[0].set in table.clusters else "prompt",
    )


def settings_by_row(rows: Sequence[ReadRow]) -> dict[str, list[str]]:
    """Return the settings in which rows differ, seeds and reused stages apart, of each row's first seed."""
    differing = differing_settings({row.title: row.cells[0].run.config for row in rows}, (*SAME_EVERYWHERE, "seed"))
    return {key: values for key, values in differing.items() if not key.startswith("reuse")}
