"""ROUGE as an `evaluate` metric; `evaluate.load` imports a copy of this file, so it has no relative import."""

from __future__ import annotations

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer

from workbench.data.words import WordTokenizer, is_same_without_words

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")

DESCRIPTION = """ROUGE F-measures between predictions and references, by Google's rouge_score, in any script.

A prediction without a word, such as emoji, scores 1 where a reference is the same text, and 0 otherwise.
"""

CITATION = "Lin, Chin-Yew (2004). ROUGE: A Package for Automatic Evaluation of Summaries. ACL Workshop."

INPUTS = """
Args:
    predictions: texts.
    references: one text per prediction, or a list of texts; the best one counts.
    rouge_types: which scores to compute; rougeLsum takes each line as a sentence.
    use_aggregator: return the mean of each score; otherwise one score per row.
    use_stemmer: strip suffixes of English words (Porter) before matching.
"""


class Rouge(evaluate.Metric):
    """ROUGE F-measures in [0, 1]."""

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
        rouge_types: tuple[str, ...] = ROUGE_TYPES,
        use_aggregator: bool = True,
        use_stemmer: bool = False,
    ) -> dict[str, float] | dict[str, list[float]]:
        scorer = RougeScorer(list(rouge_types), tokenizer=WordTokenizer(use_stemmer))
        scored = []
        for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            choices = [reference] if isinstance(reference, str) else reference
            if not choices:
                raise ValueError(f"row {row} has no reference")
            if any(is_same_without_words(choice, prediction) for choice in choices):
                scored.append(dict.fromkeys(rouge_types, 1.0))
            else:
                best = scorer.score_multi(choices, prediction)
                scored.append({name: float(best[name].fmeasure) for name in rouge_types})
        scores = {name: [row_scores[name] for row_scores in scored] for name in rouge_types}
        if use_aggregator:
            return {name: sum(values) / len(values) for name, values in scores.items()}
        return scores
