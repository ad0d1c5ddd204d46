"""Semantic similarity as an `evaluate` metric; `evaluate.load` imports a copy of this file, so it stands alone."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import evaluate
from torch import Tensor

DESCRIPTION = "Cosine of the sentence embeddings of predictions and references, by an encoder that the caller passes."

CITATION = "Reimers and Gurevych (2019). Sentence-BERT. arXiv 1908.10084."

INPUTS = """
Args:
    predictions: texts.
    references: one text per prediction, or a list of texts; the closest one counts.
    encoder: a function from N texts to N embeddings (N, D) of length 1.

Returns:
    similarity: the cosine of each row, in [-1, 1].
    similarity_mean: their mean.
"""


class EmbeddingSimilarity(evaluate.Metric):
    """Cosines of sentence embeddings."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=[
                datasets.Features({"predictions": text, "references": datasets.List(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str] | list[list[str]],
        encoder: Callable[[list[str]], Tensor],
    ) -> dict[str, float | list[float]]:
        rows = [[reference] if isinstance(reference, str) else reference for reference in references]
        if not all(rows):
            raise ValueError(f"row {rows.index([])} has no reference")
        texts = list(dict.fromkeys([*predictions, *(text for row in rows for text in row)]))
        positions = {text: index for index, text in enumerate(texts)}
        embeddings = encoder(texts)
        scores = []
        for prediction, row in zip(predictions, rows, strict=True):
            cosines = embeddings[[positions[text] for text in row]] @ embeddings[positions[prediction]]
            scores.append(float(cosines.max().clamp(-1.0, 1.0)))
        return {"similarity": scores, "similarity_mean": sum(scores) / len(scores)}
