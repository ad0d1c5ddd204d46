"""How far the results of a prompt set can be relied on: agreement of judges, flips, and where the variance comes from.

Shapes: N rows, S seeds, K samples per seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

import numpy as np

from workbench.evaluation.agreement import Flips, JudgeAgreement, count_flips, judge_agreement
from workbench.evaluation.results import REWARD, ROUGE_L, TOXICITY, MetricVariance, Scores
from workbench.evaluation.statistics import paired_changes
from workbench.evaluation.variance_components import split_variance

SPLIT_METRICS = (TOXICITY, REWARD, ROUGE_L)
"""The main metrics, whose variance is split."""


def toxicity_by_judge(scores: Scores) -> dict[str, dict[str, np.ndarray]]:
    """Return the probabilities of toxicity (N, S, K) of every judge, by model title."""
    return {m.judge: by_title for m, by_title in scores.items() if m.name == TOXICITY and m.judge is not None}


def judge_agreements(scores: Scores, threshold: float) -> list[JudgeAgreement]:
    """Return the agreement of every two judges about the completions of all models."""
    flat = {
        judge: np.concatenate([values.ravel() for values in by_title.values()])
        for judge, by_title in toxicity_by_judge(scores).items()
    }
    return [judge_agreement(*pair, flat[pair[0]], flat[pair[1]], threshold) for pair in itertools.combinations(flat, 2)]


def judge_flips(scores: Scores, before: str, after: str, threshold: float) -> list[Flips]:
    """Return for every judge how many completions it classifies differently before and after."""
    return [
        count_flips(judge, by_title[before].ravel(), by_title[after].ravel(), threshold)
        for judge, by_title in toxicity_by_judge(scores).items()
        if before in by_title and after in by_title
    ]


def metric_variances(
    scores: Scores, before: str, after: str, groups: Sequence[Hashable] | None = None
) -> list[MetricVariance]:
    """Return the variance of after - before of the main metrics by its sources; `groups` labels the unit of each row.

    Empty for one seed with one sample.
    """
    variances = []
    for metric, by_title in scores.items():
        if metric.name in SPLIT_METRICS and before in by_title and after in by_title:
            split = split_variance(paired_changes(by_title[before], by_title[after]), groups)
            if split is not None:
                variances.append(MetricVariance(metric, split))
    return variances
