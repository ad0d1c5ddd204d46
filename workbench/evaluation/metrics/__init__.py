"""Text metrics as `evaluate` modules that load from this folder, without network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from evaluate import EvaluationModule

    from workbench.rewards.contract import Judge


def load(name: str) -> EvaluationModule:
    """A fresh module by the name of its folder here, through `evaluate.load`: one that failed would keep its rows."""
    import evaluate  # takes seconds, which `--help` should not pay

    # In memory: rows on disk would need a lock per process and be left behind by a killed run.
    return evaluate.load(str(Path(__file__).parent / name / f"{name}.py"), keep_in_memory=True)


def rouge(predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, list[float]]:
    """F-measures in [0, 1] per row under rouge1, rouge2, rougeL and rougeLsum; words are stemmed.

    A row with several references counts its best one. Only a-z and 0-9 count as letters, so text in another
    script scores 0. Raises ValueError without rows or with unequal numbers of them.
    """
    require_rows(predictions)
    scores = load("rouge").compute(
        predictions=predictions, references=references, use_stemmer=True, use_aggregator=False
    )
    return dict(scores)


def bleu(predictions: list[str], references: list[str] | list[list[str]]) -> float:
    """Corpus BLEU in [0, 100] of all rows together, as sacrebleu gives it; rows may differ in how many references.

    Raises ValueError without rows, with unequal numbers of them, or for a row without a reference.
    """
    require_rows(predictions)
    return float(load("bleu").compute(predictions=predictions, references=references)["score"])


def bleu_counts(predictions: list[str], references: list[str] | list[list[str]]) -> np.ndarray:
    """Of each row (N, 10) what BLEU adds up: matches and n-grams of orders 1 to 4, tokens, tokens of the reference.

    Raises ValueError as `bleu` does.
    """
    require_rows(predictions)
    found = load("bleu").compute(predictions=predictions, references=references, use_aggregator=False)
    lengths = [[row] for row in found["sys_len"]], [[row] for row in found["ref_len"]]
    return np.hstack((found["counts"], found["totals"], *lengths))


def bleu_of_counts(counts: np.ndarray) -> float:
    """Corpus BLEU in [0, 100] of the summed counts (10,) of rows."""
    from sacrebleu.metrics import BLEU

    *ngrams, length, closest = counts.tolist()
    score = BLEU.compute_bleu(ngrams[:4], ngrams[4:], length, closest, smooth_method="exp")  # as corpus_score does
    return float(score.score)


def toxicity(predictions: list[str], judge: Judge) -> list[float]:
    """Toxicity in [0, 1] per text, as `judge` sees it; raises ValueError without texts."""
    return list(load("toxicity").compute(predictions=predictions, judge=judge)["toxicity"])


def require_rows(predictions: list[str]) -> None:
    """Raise ValueError where there is nothing to score."""
    if not predictions:
        raise ValueError("there are no predictions to score")
