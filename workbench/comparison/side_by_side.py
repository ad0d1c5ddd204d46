"""The completions of every row to the same prompts, as the results of one evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from workbench.comparison.comparability import EvaluatedRun, differently_measured
from workbench.comparison.run_comparison import common_examples, common_scores, merged_examples, set_of
from workbench.data.templates import normalize
from workbench.evaluation.results import Example, Results
from workbench.evaluation.scoring import summarize


def side_by_side(runs: Mapping[str, EvaluatedRun], after: str) -> tuple[Results, list[Example]]:
    """Return the completions of each run's last model to the prompts that all have.

    The sets are those of the first run, without those that have no common prompt. Examples can be sorted by how `after`
    changed from the first run.
    """
    different, titles = differently_measured(runs), list(runs)
    first = runs[titles[0]].results
    sets, examples = [], []
    for result in first.sets:
        if not all(any(each.name == result.name for each in run.results.sets) for run in runs.values()):
            continue
        common = common_examples(runs, result.name)
        if not common:
            continue
        prompts = len({normalize(row[0].prompt) for row in common})
        merged = dataclasses.replace(
            result,
            prompts=prompts,
            repeated_rows=len(common) - prompts,
            seen_in_training=min(max(set_of(run, result.name).seen_in_training for run in runs.values()), prompts),
            summaries=summarize(common_scores(runs, common, different)),
            comparisons=[],
            clusters=None,
            agreement=[],
            flips=[],
            variances=[],
        )
        sets.append(merged)
        examples += merged_examples(titles, runs, common, merged)
    return dataclasses.replace(first, models=titles, before=titles[0], after=after, sets=sets, guards=[]), examples
