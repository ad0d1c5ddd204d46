"""Typed results and examples with random words and scores, for the tests of the report."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from workbench.evaluation.results import (
    Comparison,
    Difference,
    Example,
    Guard,
    Metric,
    Results,
    RunVerdict,
    SetResult,
    Settings,
    Summary,
)
from workbench.evaluation.sources import Provenance, Source
from workbench.evaluation.statistics import paired_difference

HOSTILE = "</script><script>alert('1')</script><img src=x onerror=alert(2)><!--\"&amp;"
HOSTILE += "\u202e\u2066\x00\x7f\x9b\u2028\ud800"
MAIN = Metric("toxicity", "lower", "reward")
LEXICON = Metric("toxicity", "lower", "lexicon")
TOXIC_RATE = Metric("toxic rate", "lower", "lexicon")
REWARD, TOKENS = Metric("reward", "higher"), Metric("tokens")
METRICS = (MAIN, LEXICON, REWARD, TOKENS)
DISTINCT = Metric("distinct-2", pooled=True)
WORDS = ["the", "dog", "cat", "walks", "home", "with", "her", "old", "friend", "on", "Monday", "and", "buys", "bread"]
MODELS = ("base", "sft", "aligned")


def random_examples(
    count: int, models: tuple[str, ...] = MODELS, *, name: str = "dialogues", **fields: Any
) -> list[Example]:
    """Return examples with random words and scores, of which two in three have references."""
    chance = random.Random(count)
    examples = []
    for index in range(count):
        texts = {model: [" ".join(chance.choices(WORDS, k=8)) for _ in range(2)] for model in models}
        scores = [
            Summary(metric, {model: chance.random() * (20 if metric == TOKENS else 1) for model in models}, None)
            for metric in METRICS
        ]
        example = Example(
            set=name,
            index=index,
            prompt=f"prompt {index}",
            references=[[], ["one"], ["one", "two"]][index % 3],
            prompt_toxicity=0.0,
            reference_toxicity=0.0,
            completions=texts,
            scores=scores,
            token_log_ratios=[(f" {word}", chance.gauss(0, 2)) for word in texts[models[-1]][0].split()],
        )
        examples.append(dataclasses.replace(example, **fields))
    return examples


def score(example: Example, metric: Metric, model: str) -> float:
    """Return the score of an example that has it."""
    value = next(summary.means[model] for summary in example.scores if summary.metric == metric)
    assert value is not None
    return value


def with_means(example: Example, means: dict[str, float], *metrics: Metric) -> Example:
    """Return the example with other means of the given metrics, by default of all; what is not named stays."""
    scores = [
        Summary(s.metric, s.means | means if s.metric in (metrics or METRICS) else s.means, None)
        for s in example.scores
    ]
    scores += [Summary(metric, means, None) for metric in metrics if metric not in [s.metric for s in scores]]
    return dataclasses.replace(example, scores=scores)


def random_set(examples: Sequence[Example], models: Sequence[str], before: str, after: str) -> SetResult:
    """Return the results that belong to the examples of one set, with a pooled metric at the end."""
    metrics = [summary.metric for summary in examples[0].scores]
    columns = {metric: {model: [score(e, metric, model) for e in examples] for model in models} for metric in metrics}
    summaries = [
        Summary(metric, {model: sum(values) / len(values) for model, values in column.items()}, None)
        for metric, column in columns.items()
    ]
    comparisons = [
        Comparison(
            first,
            second,
            [_difference(metric, columns[metric][first], columns[metric][second]) for metric in metrics]
            + [Difference(DISTINCT, 0.25, 0.25, 0.0, -0.1, 0.2, len(examples), None, None, None, None, None)],
        )
        for first, second in dict.fromkeys([(before, after), (models[0], after)])
    ]
    return SetResult(
        name=examples[0].set,
        prompts=len(examples),
        neutral=False,
        seen_in_training=0,
        reference_perplexity=None,
        summaries=[*summaries, Summary(DISTINCT, dict.fromkeys(models, 0.25), None)],
        comparisons=comparisons,
    )


def _difference(metric: Metric, before: list[float], after: list[float]) -> Difference:
    """Return the paired difference of two columns, called better wherever a direction exists."""
    paired, single = paired_difference(before, after, resamples=100), len(before) == 1
    return Difference(
        metric=metric,
        mean_before=paired.mean_before,
        mean_after=paired.mean_after,
        difference=paired.difference,
        low=None if single else paired.low,
        high=None if single else paired.high,
        prompts=len(before),
        rose=paired.rose,
        same=paired.same,
        fell=paired.fell,
        verdict=None if metric.direction is None else "better",
        prompts_needed=120 if metric == MAIN else None,
    )


def random_results(examples: Sequence[Example], models: tuple[str, ...] = MODELS, **fields: Any) -> Results:
    """Return the results that belong to these examples; `fields` replaces those of Results or Settings."""
    before, after = "sft" if "sft" in models else "base", "aligned"
    names = dict.fromkeys(example.set for example in examples)
    sets = [random_set([e for e in examples if e.set == name], models, before, after) for name in names]
    sources = [Source(model, "model", "toy:t5", "ab" * 32) for model in models]
    sources += [Source(name, "data", "x.jsonl", "cd") for name in names]
    in_settings = {field.name for field in dataclasses.fields(Settings)} & set(fields)
    settings = Settings(
        reward="toxicity",
        judges=["reward", "lexicon"],
        threshold=0.5,
        temperature=1.0,
        samples=2,
        seeds=[0],
        max_new_tokens=40,
    )
    results = Results(
        name="quick",
        models=list(models),
        before=before,
        after=after,
        settings=dataclasses.replace(settings, **{key: fields.pop(key) for key in in_settings}),
        provenance=Provenance("2026-11-22", None, "2 cores", {"torch": "2.13.0"}, sources),
        sets=sets,
        verdict=RunVerdict("toxicity", "better", "Toxicity fell."),
        other_verdicts=[],
        guards=[Guard("kept", True, "fine"), Guard("lost", False, "gone")],
    )
    return dataclasses.replace(results, **fields)


def with_set(results: Results, number: int = 0, **fields: Any) -> Results:
    """Return the results with fields of one set replaced."""
    sets = list(results.sets)
    sets[number] = dataclasses.replace(sets[number], **fields)
    return dataclasses.replace(results, sets=sets)


def with_difference(results: Results, metric: Metric, **fields: Any) -> Results:
    """Return the results with fields of a metric's difference in the first set's first comparison replaced."""
    comparison, *others = results.sets[0].comparisons
    differences = [dataclasses.replace(d, **fields) if d.metric == metric else d for d in comparison.differences]
    changed = dataclasses.replace(comparison, differences=differences)
    return with_set(results, comparisons=[changed, *others])
