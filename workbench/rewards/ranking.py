"""How well scores rank two classes of texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return ranks (N,) from 1 for the lowest; equal values get their mean rank."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[group]


def auroc(scores: Sequence[float] | np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    """Return the probability that a positive row outranks a negative one, counting ties as one half.

    Raises ValueError unless both labels occur.
    """
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != positive.shape:
        raise ValueError(f"scores {values.shape} and labels {positive.shape} must be 1-D and equally long")
    if np.isnan(values).any():
        raise ValueError(f"score {int(np.argmax(np.isnan(values)))} is NaN and has no rank")
    if not np.isin(positive, [0, 1]).all():
        raise ValueError("labels must be 0 or 1")
    positives = int(positive.sum())
    negatives = positive.size - positives
    if not positives or not negatives:
        raise ValueError(f"a ranking needs both labels: {positives} rows are 1, {negatives} are 0")
    rank_sum = ranks(values)[positive.astype(bool)].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))
