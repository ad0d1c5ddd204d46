"""Compare the results of several runs: one Results whose models are what each run trained last.

Shapes: N prompts.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import UserError
from workbench.evaluation.results import REWARD, Example, Metric, Results, Scores, SetResult, Source, Summary
from workbench.evaluation.scoring import compare, summarize
from workbench.evaluation.verdicts import run_verdicts


@dataclass(frozen=True)
class EvaluatedRun:
    """A run with a finished evaluation."""

    results: Results
    examples: list[Example]


@dataclass(frozen=True)
class RunComparison:
    """What several runs have in common, as the results of one evaluation."""

    results: Results
    """Its models are the runs."""
    examples: list[Example]
    notes: list[str]
    """Why some of it cannot be compared, or only with care."""


def compare_runs(runs: Mapping[str, EvaluatedRun]) -> RunComparison:
    """Return the comparison of the runs, by title, on the prompts that all of them evaluated.

    Raises UserError where they have no prompt in common.
    """
    titles, every = list(runs), [run.results for run in runs.values()]
    shares_reward = len({reward_source(results) for results in every}) == 1
    judges = [judge for judge in every[0].settings.judges if all(judge in r.settings.judges for r in every)]
    if not shares_reward:
        judges = [judge for judge in judges if judge != REWARD]
    sets, examples = [], []
    for result in every[0].sets:
        common = common_examples(runs, result.name)
        if common:
            merged = merged_set(result, runs, common, shares_reward)
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
        settings=dataclasses.replace(every[0].settings, judges=judges),
        sets=sets,
        guards=[],
    )
    verdict, *others = run_verdicts(results)
    results = dataclasses.replace(results, verdict=verdict, other_verdicts=others)
    return RunComparison(results, examples, comparison_notes(runs, results, shares_reward))


def reward_source(results: Results) -> tuple[str | None, ...]:
    """Return what identifies the reward of a run: its name, its origin and its content hash."""
    sources = [source for source in results.provenance.sources if source.kind == "reward"]
    return (results.settings.reward, *(value for source in sources for value in (source.origin, source.sha256)))


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
    result: SetResult, runs: Mapping[str, EvaluatedRun], common: Sequence[Sequence[Example]], shares_reward: bool
) -> SetResult:
    """Return the results of one set: each run's last model on the common prompts, and the difference of every two."""
    scores: Scores = {}
    for column, (title, run) in enumerate(runs.items()):
        examples = [row[column] for row in common]
        for metric in dict.fromkeys(s.metric for example in examples for s in example.scores):
            if shares_reward or REWARD not in (metric.name, metric.judge):
                values = np.array([value_of(example, metric, run.results.after) for example in examples])
                scores.setdefault(metric, {})[title] = values[:, None, None]
    comparisons = [compare(scores, *pair) for pair in itertools.combinations(runs, 2)]
    first_and_last = (next(iter(runs)), list(runs)[-1])
    comparisons.sort(key=lambda comparison: (comparison.before, comparison.after) != first_and_last)
    return dataclasses.replace(
        result,
        prompts=len(common),
        seen_in_training=max(set_of(run, result.name).seen_in_training for run in runs.values()),
        summaries=[*summarize(scores), *pooled_summaries(result, runs, len(common))],
        comparisons=comparisons,
    )


def pooled_summaries(result: SetResult, runs: Mapping[str, EvaluatedRun], prompts: int) -> list[Summary]:
    """Return the metrics of all completions together, where every run measured them on the same prompts."""
    sets = {title: set_of(run, result.name) for title, run in runs.items()}
    if any(each.prompts != prompts for each in sets.values()):
        return []
    summaries = []
    for summary in result.summaries:
        if summary.metric.pooled:
            pooled = {title: sets[title].summary(summary.metric.name) for title in runs}
            means = {t: s.means.get(runs[t].results.after) for t, s in pooled.items() if s is not None}
            summaries.append(Summary(summary.metric, means, None))
    return summaries


def merged_examples(
    titles: Sequence[str], runs: Mapping[str, EvaluatedRun], common: Sequence[Sequence[Example]], merged: SetResult
) -> list[Example]:
    """Return the common examples with the completions of every run's last model."""
    lasts = [run.results.after for run in runs.values()]
    metrics = [summary.metric for summary in merged.summaries if not summary.metric.pooled]
    return [
        dataclasses.replace(
            row[0],
            completions={t: e.completions[last] for t, e, last in zip(titles, row, lasts, strict=True)},
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
        )
        for row in common
    ]


def comparison_notes(runs: Mapping[str, EvaluatedRun], results: Results, shares_reward: bool) -> list[str]:
    """Return why some of the comparison is left out, or has to be read with care."""
    notes = []
    if not shares_reward:
        notes.append("the runs have different rewards, so the reward and what it says of toxicity are left out")
    every = [run.results for run in runs.values()]
    for name in ("threshold", "temperature", "samples", "seeds", "max_new_tokens"):
        values = [vars(each.settings)[name] for each in every]
        if any(value != values[0] for value in values):
            by_run = ", ".join(f"{title} {value}" for title, value in zip(runs, values, strict=True))
            notes.append(f"the runs differ in evaluation.{name}: {by_run}")
    for set_result in results.sets:
        counts = [set_of(run, set_result.name).prompts for run in runs.values()]
        if any(count != set_result.prompts for count in counts):
            notes.append(f"{set_result.name}: {set_result.prompts} prompts that all runs have, of {max(counts)}")
    references = {tuple(source_hash(each, title) for title in ("base", "sft")) for each in every}
    if len(references) > 1:
        notes.append("the runs start from different policies, so each KL is to another reference")
    return notes


def source_hash(results: Results, name: str) -> tuple[str, str | None] | None:
    """Return origin and hash of one of the run's sources; None if it has none of that name."""
    return next(((s.origin, s.sha256) for s in results.provenance.sources if is_named(s, name)), None)


def is_named(source: Source, name: str) -> bool:
    """Return whether a source is the model of that title."""
    return source.kind == "model" and source.name == name


def set_of(run: EvaluatedRun, name: str) -> SetResult:
    """Return a set of a run by its name."""
    return next(result for result in run.results.sets if result.name == name)


def value_of(example: Example, metric: Metric, title: str) -> float:
    """Return an example's value of a metric; NaN where it has none."""
    means = next((summary.means for summary in example.scores if summary.metric == metric), {})
    value = means.get(title)
    return float("nan") if value is None else value
