"""Runs with random results, for the tests that compare them."""

from __future__ import annotations

import dataclasses
from typing import Any

from random_results import random_results

from workbench.comparison.comparability import EvaluatedRun
from workbench.config.schema import Config, EvaluationConfig, PolicyConfig, RewardConfig
from workbench.config.sources import PromptSet, Scorer
from workbench.evaluation.results import Example, Metric, Summary


def changed(examples: list[Example], metric: Metric, by: float) -> list[Example]:
    """Return the examples with another value of a metric for the aligned model."""
    return [
        dataclasses.replace(
            example,
            completions=example.completions | {"aligned": ["another text"] * 2},
            scores=[
                Summary(s.metric, s.means | {"aligned": s.means["aligned"] + by * index / 20}, None)
                if s.metric == metric
                else s
                for s in example.scores
            ],
        )
        for index, example in enumerate(examples)
    ]


def evaluated(
    examples: list[Example], reward: str = "toxicity", evaluation: dict[str, Any] | None = None, **settings: Any
) -> EvaluatedRun:
    """Return a run whose reward is of that name, with these settings of the evaluation."""
    results = random_results(examples)
    settings_of_run = dataclasses.replace(results.settings, reward=reward, **settings)
    scorers = {"judges": [Scorer("lexicon", {"words": ["rude"]})]}
    config = Config(
        "run",
        PolicyConfig("toy:t5"),
        EvaluationConfig(data={name: PromptSet("x.jsonl") for name in "ab"}, **scorers | (evaluation or {})),
        reward=RewardConfig(model=reward),
    )
    return EvaluatedRun(config, dataclasses.replace(results, settings=settings_of_run), examples)


def without_judge(run: EvaluatedRun, judge: str) -> EvaluatedRun:
    """Return the run without a judge."""
    examples = [
        dataclasses.replace(example, scores=[s for s in example.scores if s.metric.judge != judge])
        for example in run.examples
    ]
    judges = [name for name in run.results.settings.judges if name != judge]
    return evaluated(examples, judges=judges, evaluation={"judges": [Scorer(name) for name in judges]})


def with_sets(run: EvaluatedRun, **changes: Any) -> EvaluatedRun:
    """Return the run with other fields in each set of its results."""
    sets = [dataclasses.replace(result, **changes) for result in run.results.sets]
    return dataclasses.replace(run, results=dataclasses.replace(run.results, sets=sets))
