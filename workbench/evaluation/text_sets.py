"""How well each model predicts fixed texts: what the alignment cost where nothing was to be gained.

Shapes: N texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from workbench.data.texts import TextSet
from workbench.evaluation.corpus_metrics import corpus_perplexity
from workbench.evaluation.results import TEXT_NLL, TEXT_PERPLEXITY, Comparison, Metric, Scores, SetResult
from workbench.evaluation.scoring import summarize
from workbench.evaluation.statistics import prompt_numbers


def text_scores(texts: TextSet, nats: Mapping[str, Sequence[float]]) -> Scores:
    """Return nats per token of each of N texts, and the perplexity of all together, by model title.

    `nats` are the nats per token of each text; the EOS behind a text does not count.
    """
    tokens = np.array([len(row["response_ids"]) - 1 for row in texts.rows])
    numbers = prompt_numbers(texts.identities, len(tokens))
    values = {title: np.asarray(by_text, dtype=np.float64) for title, by_text in nats.items()}
    pooled = {title: corpus_perplexity(by_text * tokens, tokens, numbers) for title, by_text in values.items()}
    return {
        Metric(TEXT_NLL, "lower"): {title: by_text[:, None, None] for title, by_text in values.items()},
        Metric(TEXT_PERPLEXITY, "lower", pooled=True): {title: each[:, None, None] for title, each in pooled.items()},
    }


def text_result(texts: TextSet, scores: Scores, comparisons: list[Comparison]) -> SetResult:
    """Return the results on fixed texts, which are neutral."""
    distinct = len(set(texts.identities))
    return SetResult(
        name=texts.name,
        prompts=distinct,
        repeated_rows=len(texts.rows) - distinct,
        neutral=True,
        seen_in_training=0,
        reference_perplexity=None,
        summaries=summarize(scores),
        comparisons=comparisons,
    )
