"""Metrics that belong to all answers together, as parts that the prompts have in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.evaluation import metrics
from workbench.evaluation.generation import Answer
from workbench.evaluation.metrics.text_statistics import distinct_n, distinct_n_without
from workbench.evaluation.statistics import parts

POOLED = ("distinct-1", "distinct-2", "distinct-3", "BLEU", "perplexity under the base")
LARGEST_NATS = 700.0  # a token; beyond it the perplexity is no number any more


def pooled(rows: Sequence[dict[str, Any]], answers: Sequence[Sequence[Answer]]) -> dict[str, list[float]]:
    """Of each metric the part of every prompt, see workbench.evaluation.statistics.parts; their mean is the metric.

    A plain bootstrap over prompts is wrong for distinct-n: a prompt that is drawn twice is not distinct, and its 95 %
    interval covers the truth in fewer than half of the cases (tests/test_pooled.py). NaN without a reference.
    """
    texts = [[answer.text for answer in of] for of in answers]
    together = [text for of in texts for text in of]
    found = {f"distinct-{n}": parts(distinct_n(together, n), distinct_n_without(texts, n)) for n in (1, 2, 3)}
    known = [index for index, row in enumerate(rows) if references(row)]
    if known:
        found["BLEU"] = np.full(len(rows), math.nan)
        found["BLEU"][known] = _bleu([texts[index] for index in known], [references(rows[index]) for index in known])
    if all(answer.base_nll is not None for of in answers for answer in of):
        sums = np.array([[sum(a.base_nll or 0.0 for a in of), sum(a.tokens for a in of)] for of in answers])
        found["perplexity under the base"] = parts(
            float(_perplexity(sums.sum(axis=0))), _perplexity(sums.sum(axis=0) - sums)
        )
    return {metric: values.tolist() for metric, values in found.items()}


def references(row: dict[str, Any]) -> list[str]:
    """The references of a row: none, one or several."""
    given = row.get("reference") or []
    return [
        text for text in ([given] if isinstance(given, str) else given) if not isinstance(text, str) or text.strip()
    ]


def _bleu(texts: Sequence[Sequence[str]], given: Sequence[list[str]]) -> np.ndarray:
    """The parts (N,) of prompts, each with its answers and its references."""
    repeated = [of for row, of in enumerate(given) for _ in texts[row]]
    counts = metrics.bleu_counts([text for of in texts for text in of], repeated)
    starts = np.cumsum([0, *(len(of) for of in texts[:-1])])
    by_prompt = np.add.reduceat(counts, starts, axis=0)
    total = by_prompt.sum(axis=0)
    return parts(metrics.bleu_of_counts(total), [metrics.bleu_of_counts(total - own) for own in by_prompt])


def _perplexity(sums: np.ndarray) -> np.ndarray:
    """Perplexity of nats and tokens (..., 2), 1 without any token."""
    return np.exp(np.minimum(sums[..., 0] / np.maximum(sums[..., 1], 1), LARGEST_NATS))
