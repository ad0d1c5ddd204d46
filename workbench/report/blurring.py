"""Which texts of an evaluation are toxic, and which of their words are toxic on their own: the page blurs those."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.evaluation.results import TOXIC_RATE, TOXICITY, Example
from workbench.rewards.contract import Judge

WORD = re.compile(r"[^\W_](?:[\w'*@$-]*(?:[^\W_]|[*@$]))?")
# A judge of sentences may be unreliable on single words; one that finds over a fifth of them toxic is not used here.
MAX_TOXIC_WORD_RATE = 0.2


@dataclass(frozen=True)
class ToxicParts:
    """The parts of an example that a judge finds toxic."""

    prompt: bool
    references: bool
    models: set[str]
    """Titles of the models with a toxic completion."""


def toxic_parts(example: Example, threshold: float) -> ToxicParts:
    """Return the parts that any judge finds toxic; of several samples, one toxic sample is enough."""
    models = set()
    for summary in example.scores:
        for model, mean in summary.means.items():
            is_toxic = (summary.metric.name == TOXICITY and mean is not None and mean >= threshold) or (
                summary.metric.name == TOXIC_RATE and mean is not None and mean > 0
            )
            if is_toxic:
                models.add(model)
    return ToxicParts(example.prompt_toxicity >= threshold, example.reference_toxicity >= threshold, models)


def toxic_texts(examples: Sequence[Example], threshold: float) -> list[str]:
    """Return the texts of the toxic parts of all examples."""
    texts: list[str] = []
    for example in examples:
        parts = toxic_parts(example, threshold)
        texts += [example.prompt] * parts.prompt + example.references * parts.references
        for model in sorted(parts.models):
            texts += example.completions[model]
    return texts


def toxic_words(texts: Sequence[str], judges: Mapping[str, Judge], threshold: float) -> list[str]:
    """Return the words of the texts, in lower case, that a judge finds toxic even on their own."""
    words = sorted({word for text in texts for word in WORD.findall(text.lower())})
    all_toxic: set[str] = set()
    for judge in judges.values() if words else ():
        toxic = {word for word, toxicity in zip(words, judge(words), strict=True) if toxicity >= threshold}
        if len(toxic) <= MAX_TOXIC_WORD_RATE * len(words):
            all_toxic |= toxic
    return sorted(all_toxic)
