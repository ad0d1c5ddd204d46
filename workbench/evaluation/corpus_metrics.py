"""Corpus metrics over all completions of a seed, as one jackknife pseudovalue per row.

What is left out for it is a prompt with all its rows: rows that share a prompt are not independent.

A plain bootstrap over prompts is wrong for distinct-n: a prompt that is drawn twice adds no distinct n-grams, and the
95 % interval covers the truth in fewer than half of the cases (tests/test_corpus_metrics.py).

To add a metric, write its function and add it to CORPUS_METRICS with its direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from workbench.evaluation import metrics
from workbench.evaluation.generation import Completion, perplexity
from workbench.evaluation.metrics.text_statistics import distinct_n, distinct_n_without
from workbench.evaluation.results import PERPLEXITY, Direction, Metric
from workbench.evaluation.statistics import jackknife_pseudovalues, prompt_numbers

Completions = Sequence[Sequence[Completion]]
"""One seed's K completions of each of N rows."""
References = Sequence[list[str]]
"""The references of each of N rows."""


@dataclass(frozen=True)
class CorpusMetric:
    """A registered metric: which direction is better, and the function that computes its pseudovalues (N,)."""

    direction: Direction | None
    measure: Callable[[Completions, References, np.ndarray], np.ndarray | None]
    """Takes the number of each row's prompt (N,), too.

    NaN for a row that the metric does not count; None where it cannot be measured at all.
    """


def measure_corpus(
    completions: Completions, references: References, groups: Iterable[Hashable] | None = None
) -> dict[Metric, np.ndarray]:
    """Return the pseudovalues (N,) of every metric that can be measured; `groups` labels the prompt of each row."""
    numbers, values = prompt_numbers(groups, len(completions)), {}
    for name, metric in CORPUS_METRICS.items():
        measured = metric.measure(completions, references, numbers)
        if measured is not None:
            values[Metric(name, metric.direction, pooled=True)] = measured
    return values


def distinct(completions: Completions, references: References, numbers: np.ndarray, n: int) -> np.ndarray:
    """Return the pseudovalues of distinct-n, the mean over samples of that of one completion per row.

    Over all samples together it would fall with their number, most of all where each is the same.
    """
    values = []
    for texts in zip(*_texts(completions), strict=True):
        by_prompt: list[list[str]] = [[] for _ in range(numbers.max() + 1)]
        for number, text in zip(numbers, texts, strict=True):
            by_prompt[number].append(text)
        values.append(jackknife_pseudovalues(distinct_n(texts, n), distinct_n_without(by_prompt, n), numbers))
    return np.mean(values, axis=0)


def bleu(completions: Completions, references: References, numbers: np.ndarray) -> np.ndarray | None:
    """Return the pseudovalues of corpus BLEU; NaN for rows without a reference."""
    rows = [row for row, texts in enumerate(references) if texts]
    if not rows:
        return None
    numbers = prompt_numbers(numbers[rows], len(rows))
    texts = [row for row, known in zip(_texts(completions), references, strict=True) if known]
    flat = [text for row in texts for text in row]
    counts = metrics.bleu_counts(flat, [references[rows[i]] for i, row in enumerate(texts) for _ in row])
    by_prompt = _sums(counts, np.repeat(numbers, [len(row) for row in texts]))
    total = by_prompt.sum(axis=0)
    without = [metrics.bleu_of_counts(total - count) for count in by_prompt]
    values = np.full(len(references), math.nan)
    values[rows] = jackknife_pseudovalues(metrics.bleu_of_counts(total), without, numbers)
    return values


def base_perplexity(completions: Completions, references: References, numbers: np.ndarray) -> np.ndarray | None:
    """Return the pseudovalues of the perplexity under the base; None for a model with another vocabulary."""
    if any(completion.base_nll is None for row in completions for completion in row):
        return None
    by_row = np.array([[sum(c.base_nll or 0.0 for c in row), sum(c.tokens for c in row)] for row in completions])
    return corpus_perplexity(by_row[:, 0], by_row[:, 1], numbers)


def corpus_perplexity(nats: np.ndarray, tokens: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the pseudovalues (N,) of the perplexity of all rows together, from the nats and tokens (N,) of each.

    `numbers` (N,) are those of the rows' prompts.
    """
    by_prompt = _sums(np.stack([nats, tokens], axis=1), numbers)
    total = by_prompt.sum(axis=0)
    return jackknife_pseudovalues(perplexity(*total), [perplexity(*rest) for rest in total - by_prompt], numbers)


def _sums(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the sums (P, F) of values (M, F) with the same number (M,)."""
    sums = np.zeros((numbers.max() + 1, values.shape[1]), values.dtype)
    np.add.at(sums, numbers, values)
    return sums


def _texts(completions: Completions) -> list[list[str]]:
    return [[completion.text for completion in row] for row in completions]


CORPUS_METRICS: dict[str, CorpusMetric] = {
    "distinct-1": CorpusMetric(None, partial(distinct, n=1)),
    "distinct-2": CorpusMetric(None, partial(distinct, n=2)),
    "distinct-3": CorpusMetric(None, partial(distinct, n=3)),
    "BLEU": CorpusMetric("higher", bleu),
    PERPLEXITY: CorpusMetric(None, base_perplexity),
}
