"""Compare the results of several runs: one Results whose models are what each run trained last.

Shapes: N rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.comparison.comparability import EvaluatedRun, comparison_notes, differently_measured, sampled_differently
from workbench.data.templates import normalize
from workbench.errors import UserError
from workbench.evaluation.clusters import joined_clusters
from workbench.evaluation.results import (
    TOXICITY,
    Example,
    Metric,
    Results,
    Scores,
    SetResult,
    Summary,
)
from workbench.evaluation.scoring import compare, summarize
from workbench.evaluation.verdicts import run_verdicts


@dataclass(frozen=True)
class RunComparison:
    """What several runs have in common, as the results of one evaluation."""

    results: Results
    """Its models are the runs."""
    examples: list[Example]
    notes: list[str]
    """Why some of it cannot be compared, or only with care."""
    sampling: str | None
    """How the completions were sampled, where the runs differ in that; else the settings of the results say it."""


def compare_runs(runs: Mapping[str, EvaluatedRun]) -> RunComparison:
    """Return the comparison of the runs, by title, on the prompts that all of them evaluated.

    Raises UserError where they have no prompt in common.
    """
    titles, every = list(runs), [run.results for run in runs.values()]
    different = differently_measured(runs)
    sets, examples = [], []
    for result in every[0].sets:
        common = common_examples(runs, result.name)
        if common:
            merged = merged_set(result, runs, common, different)
            sets.append(merged)
            examples += merged_examples(titles, runs, common, merged)
    if not sets:
        names = "; ".join(f"{title}: {', '.join(r.name for r in run.results.sets)}" for title, run in runs.items())
        raise UserError(f"the runs have no prompt in common ({names}); evaluate them on the same evaluation.data")
    results = dataclasses.replace(
        every[-1],
        name=" / ".join(titles),
        models=titles,
        before=titles[0],
        after=titles[-1],
        settings=dataclasses.replace(every[0].settings, judges=[], strategies={}, comparisons=math.comb(len(runs), 2)),
        sets=sets,
        guards=[],
    )
    compared = [comparison for neutral in (False, True) for _, comparison in results.compared(neutral=neutral)]
    shared = [judge for judge in every[0].settings.judges if all(judge in r.settings.judges for r in every)]
    judges = [judge for judge in shared if all(comparison.find(TOXICITY, judge) for comparison in compared)]
    results = dataclasses.replace(results, settings=dataclasses.replace(results.settings, judges=judges))
    questions = {each.verdict.question for each in every}
    verdict, *others = run_verdicts(results, trained_by=None, asked=questions.pop() if len(questions) == 1 else None)
    results = dataclasses.replace(results, verdict=verdict, other_verdicts=others)
    sampling = "sampled with different settings" if sampled_differently(runs) else None
    return RunComparison(results, examples, comparison_notes(runs, results, different), sampling)


def common_examples(runs: Mapping[str, EvaluatedRun], name: str) -> list[list[Example]]:
    """Return the examples of a set (N, runs) whose prompt and references every run has, in the order of the first."""
    by_run = [by_prompt([e for e in run.examples if e.set == name]) for run in runs.values()]
    return [[examples[key] for examples in by_run] for key in by_run[0] if all(key in examples for examples in by_run)]


def by_prompt(examples: Sequence[Example]) -> dict[tuple[str, ...], Example]:
    """Return the examples by prompt and references; those of a repeated row are told apart by their order."""
    seen: Counter[tuple[str, ...]] = Counter()
    keyed = {}
    for example in examples:
        content = (example.prompt, *example.references)
        keyed[*content, str(seen[content])] = example
        seen[content] += 1
    return keyed


def merged_set(
    result: SetResult,
    runs: Mapping[str, EvaluatedRun],
    common: Sequence[Sequence[Example]],
    different: Sequence[Metric],
) -> SetResult:
    """Return the results of one set: each run's last model on the common rows, and the difference of every two."""
    scores = common_scores(runs, common, different)
    # One template made all prompts of the set, so that rows share a prompt where the texts are the same.
    groups, pairs = [normalize(row[0].prompt) for row in common], list(itertools.combinations(runs, 2))
    prompts, clusters = len(set(groups)), common_clusters(common)
    samples = max(run.results.settings.samples * len(run.results.settings.seeds) for run in runs.values())
    comparisons = [compare(scores, *pair, groups, len(pairs), clusters=clusters, samples=samples) for pair in pairs]
    first_and_last = (next(iter(runs)), list(runs)[-1])
    comparisons.sort(key=lambda comparison: (comparison.before, comparison.after) != first_and_last)
    return dataclasses.replace(
        result,
        prompts=prompts,
        repeated_rows=len(common) - prompts,
        seen_in_training=min(max(set_of(r, result.name).seen_in_training for r in runs.values()), prompts),
        reference_perplexity=common_value([set_of(r, result.name).reference_perplexity for r in runs.values()]),
        summaries=[*summarize(scores), *pooled_summaries(result, runs, len(common), different)],
        comparisons=comparisons,
        clusters=None if clusters is None else len(set(clusters)),
        agreement=[],
        flips=[],
        variances=[],
    )


def common_clusters(common: Sequence[Sequence[Example]]) -> list[str] | None:
    """Return the cluster of each of the common rows (N, runs), None where no run has clusters.

    Rows are in one cluster if they share a prompt, or a cluster in any run.
    """
    labelings = [[example.cluster for example in column] for column in zip(*common, strict=True)]
    known = [[label for label in labels if label is not None] for labels in labelings]
    clustered = [labels for labels in known if len(labels) == len(common)]
    if not clustered:
        return None
    return joined_clusters(*clustered, [normalize(row[0].prompt) for row in common])


def common_scores(
    runs: Mapping[str, EvaluatedRun], common: Sequence[Sequence[Example]], different: Sequence[Metric]
) -> Scores:
    """Return the values of each run's last model on the common rows (N, runs), without the `different` metrics."""
    scores: Scores = {}
    for column, (title, run) in enumerate(runs.items()):
        examples = [row[column] for row in common]
        for metric in dict.fromkeys(s.metric for example in examples for s in example.scores):
            if metric not in different:
                values = np.array([value_of(example, metric, run.results.after) for example in examples])
                scores.setdefault(metric, {})[title] = values[:, None, None]
    return scores


def common_value(values: Sequence[float | None]) -> float | None:
    """Return the value that all runs have, to 1e-6 of it; None where they differ."""
    first, *others = values
    if first is None or any(other is None or not math.isclose(first, other, rel_tol=1e-6) for other in others):
        return None
    return first


def pooled_summaries(
    result: SetResult, runs: Mapping[str, EvaluatedRun], rows: int, different: Sequence[Metric]
) -> list[Summary]:
    """Return the metrics of all completions together, where every run measured them on the same rows."""
    sets = {title: set_of(run, result.name) for title, run in runs.items()}
    if any(each.rows != rows for each in sets.values()):
        return []
    summaries = []
    for summary in result.summaries:
        if summary.metric.pooled and summary.metric not in different:
            pooled = {title: sets[title].summary(summary.metric.name) for title in runs}
            means = {t: s.means.get(runs[t].results.after) for t, s in pooled.items() if s is not None}
            summaries.append(Summary(summary.metric, means, None))
    return summaries


def merged_examples(
    titles: Sequence[str], runs: Mapping[str, EvaluatedRun], common: Sequence[Sequence[Example]], merged: SetResult
) -> list[Example]:
    """Return the common examples with the completions of every run's last model."""
    lasts = [run.results.after for run in runs.values()]
    samples = min(run.results.settings.samples * len(run.results.settings.seeds) for run in runs.values())
    metrics = [summary.metric for summary in merged.summaries if not summary.metric.pooled]
    judges = [metric.judge for metric in metrics if metric.name == TOXICITY and metric.judge is not None]
    return [
        dataclasses.replace(
            row[0],
            completions={t: e.completions[last][:samples] for t, e, last in zip(titles, row, lasts, strict=True)},
            scores=[
                Summary(
                    metric,
                    {
                        title: None if np.isnan(value := value_of(example, metric, last)) else value
                        for title, example, last in zip(titles, row, lasts, strict=True)
                    },
                    None,
                )
                for metric in metrics
            ],
            token_log_ratios=None,
            toxicity={
                judge: {t: e.toxicity[judge][last][:samples] for t, e, last in zip(titles, row, lasts, strict=True)}
                for judge in judges
                if all(judge in example.toxicity for example in row)
            },
        )
        for row in common
    ]


def set_of(run: EvaluatedRun, name: str) -> SetResult:
    """Return a set of a run by its name."""
    return next(result for result in run.results.sets if result.name == name)


def value_of(example: Example, metric: Metric, title: str) -> float:
    """Return an example's value of a metric; NaN where it has none."""
    means = next((summary.means for summary in example.scores if summary.metric == metric), {})
    value = means.get(title)
    return float("nan") if value is None else value
