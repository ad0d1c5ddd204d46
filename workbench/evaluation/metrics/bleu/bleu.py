"""Corpus BLEU as an `evaluate` metric; `evaluate.load` imports a copy of this file, so it stands alone."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import datasets
import evaluate
from sacrebleu.metrics import BLEU

DESCRIPTION = "Corpus BLEU in [0, 100] by sacrebleu, equal to evaluate's own `sacrebleu`."

CITATION = "Post, Matt (2018). A Call for Clarity in Reporting BLEU Scores. WMT."

INPUTS = """
Args:
    predictions: texts.
    references: one text per prediction, or a list of texts, whose number may differ between predictions.
    lowercase: ignore case.
    tokenize: sacrebleu's tokenizer, 13a unless another is named.
    use_aggregator: False returns counts, totals, sys_len and ref_len of every row, as lists.

Returns:
    score: BLEU of all rows together, in [0, 100].
    counts, totals, precisions: matches, n-grams and their ratio in percent, for 1- to 4-grams.
    bp: the brevity penalty.
    sys_len, ref_len: tokens of the predictions, and of the references closest to them in length.
    signature: sacrebleu's, to quote with the score.
"""


class Bleu(evaluate.Metric):
    """Corpus BLEU."""

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
        lowercase: bool = False,
        tokenize: str = "13a",
        use_aggregator: bool = True,
    ) -> dict[str, Any]:
        rows = [[reference] if isinstance(reference, str) else reference for reference in references]
        if not all(rows):
            raise ValueError(f"row {rows.index([])} has no reference")
        if not use_aggregator:
            # effective_order changes only a row's score, which is not returned, not its counts.
            row_bleu = BLEU(lowercase=lowercase, tokenize=tokenize, effective_order=True)
            scored = [vars(row_bleu.sentence_score(text, row)) for text, row in zip(predictions, rows, strict=True)]
            return {name: [row[name] for row in scored] for name in ("counts", "totals", "sys_len", "ref_len")}
        metric = BLEU(lowercase=lowercase, tokenize=tokenize)
        # One stream per position in the rows, None where a row has fewer references.
        result = metric.corpus_score(predictions, list(zip_longest(*rows)))
        names = ("score", "counts", "totals", "precisions", "bp", "sys_len", "ref_len")
        return {name: vars(result)[name] for name in names} | {"signature": str(metric.get_signature())}
