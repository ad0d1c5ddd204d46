"""Examples with a class of every sample by every judge, and the results that belong to them."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
from random_results import MODELS, random_examples, random_results, with_set

from workbench.evaluation.reliability import judge_agreements, judge_flips, metric_variances
from workbench.evaluation.results import Example, Metric, Results, Scores

JUDGES = ("reward", "lexicon", "a & b")


def judged_examples(count: int, *, name: str = "dialogues", samples: int = 2) -> list[Example]:
    """Return examples whose samples have random probabilities of toxicity by every judge."""
    chance = random.Random(count)
    return [
        dataclasses.replace(
            example,
            completions={model: (texts * samples)[:samples] for model, texts in example.completions.items()},
            toxicity={
                judge: {model: [chance.random() for _ in range(samples)] for model in MODELS} for judge in JUDGES
            },
        )
        for example in random_examples(count, name=name)
    ]


def judged_results(examples: list[Example], threshold: float = 0.5) -> Results:
    """Return the results of these examples with agreement, flips and variances, as of one seed."""
    results = random_results(examples, threshold=threshold, judges=list(JUDGES))
    for number, result in enumerate(results.sets):
        scores = scores_of([example for example in examples if example.set == result.name])
        results = with_set(
            results,
            number,
            agreement=judge_agreements(scores, threshold),
            flips=judge_flips(scores, results.before, results.after, threshold),
            variances=metric_variances(scores, results.before, results.after),
        )
    return results


def scores_of(examples: list[Example]) -> Scores:
    """Return the probabilities (N, 1, K) of every judge and model."""
    return {
        Metric("toxicity", "lower", judge): {
            model: np.array([example.toxicity[judge][model] for example in examples])[:, None] for model in MODELS
        }
        for judge in JUDGES
    }


def is_toxic(example: Example, judge: str, model: str, sample: int, threshold: float = 0.5) -> bool:
    """Return whether a judge calls a sample toxic."""
    return example.toxicity[judge][model][sample] >= threshold
