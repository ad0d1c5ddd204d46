"""Text metrics as `evaluate` modules that load from this folder, without network access."""

from __future__ import annotations

import functools
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.data.words import separate_characters

if TYPE_CHECKING:
    from evaluate import EvaluationModule

    from workbench.rewards.contract import Judge

CLASSES = {
    "bleu": "Bleu",
    "embedding_similarity": "EmbeddingSimilarity",
    "rouge": "Rouge",
    "toxicity": "Toxicity",
}


def load(name: str) -> EvaluationModule:
    """Return a new instance of a local `evaluate` module; an instance that failed would keep its buffered rows.

    `evaluate.load` would copy its file to the user's cache, which may not be writable, and import the copy.
    """
    with tempfile.TemporaryDirectory() as cache:  # `evaluate` creates a folder for rows, which stay in memory
        return _module_class(name)(keep_in_memory=True, cache_dir=cache)


@functools.cache
def _module_class(name: str) -> Any:
    """Return the class in a module's file, under a name of its own: as a submodule it would hide a function here."""
    spec = spec_from_file_location(f"local_metric_{name}", Path(__file__).parent / name / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)  # imports what takes seconds, which would delay `--help`
    return vars(module)[CLASSES[name]]


def rouge(predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, list[float]]:
    """Return F-measures in [0, 1] per row under rouge1, rouge2, rougeL and rougeLsum; words are stemmed.

    For a row with several references, the best one counts. Words are those of workbench.data.words.
    Raise ValueError if there are no rows or their numbers differ.
    """
    require_rows(predictions)
    scores = load("rouge").compute(
        predictions=predictions, references=references, use_stemmer=True, use_aggregator=False
    )
    return dict(scores)


def bleu(predictions: list[str], references: list[str] | list[list[str]]) -> float:
    """Return corpus BLEU in [0, 100] as sacrebleu computes it; rows may differ in their number of references.

    A character of a script without spaces is a token, as in sacrebleu's own `zh`.
    Raise ValueError if there are no rows, their numbers differ, or a row has no reference.
    """
    require_rows(predictions)
    return float(load("bleu").compute(**_separated(predictions, references))["score"])


def bleu_counts(predictions: list[str], references: list[str] | list[list[str]]) -> np.ndarray:
    """Return for each row (N, 10) what BLEU sums: matches and n-grams of orders 1 to 4, tokens, reference tokens.

    Raise ValueError as `bleu` does.
    """
    require_rows(predictions)
    counts = load("bleu").compute(**_separated(predictions, references), use_aggregator=False)
    lengths = [[row] for row in counts["sys_len"]], [[row] for row in counts["ref_len"]]
    return np.hstack((counts["counts"], counts["totals"], *lengths))


def bleu_of_counts(counts: np.ndarray) -> float:
    """Return corpus BLEU in [0, 100] from the summed counts (10,) of rows."""
    from sacrebleu.metrics import BLEU

    *ngrams, length, closest = counts.tolist()
    score = BLEU.compute_bleu(ngrams[:4], ngrams[4:], length, closest, smooth_method="exp")  # as corpus_score does
    return float(score.score)


def toxicity(predictions: list[str], judge: Judge) -> list[float]:
    """Return the toxicity in [0, 1] that `judge` gives each text; raise ValueError without texts."""
    return list(load("toxicity").compute(predictions=predictions, judge=judge)["toxicity"])


def _separated(predictions: list[str], references: list[str] | list[list[str]]) -> dict[str, Any]:
    """Return the texts for sacrebleu, whose 13a tokenizer takes a sentence without spaces for one token."""
    rows = [
        separate_characters(row) if isinstance(row, str) else [separate_characters(text) for text in row]
        for row in references
    ]
    return {"predictions": [separate_characters(text) for text in predictions], "references": rows}


def require_rows(predictions: list[str]) -> None:
    """Raise ValueError where there is nothing to score."""
    if not predictions:
        raise ValueError("there are no predictions to score")
