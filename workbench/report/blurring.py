"""Which texts of an evaluation are offensive, and by which of their words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation.verdicts import is_toxicity
from workbench.rewards.contract import Judge

WORD = re.compile(r"[^\W_](?:[\w'*@$-]*(?:[^\W_]|[*@$]))?")
# A judge of texts may know nothing of single words; one that calls a fifth of all words toxic knows nothing of them.
MAX_TOXIC_WORD_SHARE = 0.2


def toxic_parts(line: Mapping[str, Any], threshold: float) -> set[str]:
    """The parts of a line of completions.jsonl that some judge calls toxic: "prompt", "reference", and models."""
    parts = {part for part, toxicity in line["given_toxicity"].items() if toxicity >= threshold}
    for metric, of in line["scores"].items():
        if is_toxicity(metric):
            parts |= {model for model, mean in of.items() if mean is not None and mean >= threshold}
        elif metric.startswith("toxic rate ("):  # one of several samples is enough
            parts |= {model for model, share in of.items() if share is not None and share > 0}
    return parts


def toxic_texts(lines: Sequence[Mapping[str, Any]], threshold: float) -> list[str]:
    """The texts of the toxic parts of the lines."""
    found: list[str] = []
    for line in lines:
        texts = {"prompt": [line["prompt"]], "reference": line["reference"] or []} | line["completions"]
        for part in sorted(toxic_parts(line, threshold)):
            found += texts[part]
    return found


def toxic_words(texts: Sequence[str], judges: Mapping[str, Judge], threshold: float) -> list[str]:
    """The words of the texts, in lower case, that a judge calls toxic even alone."""
    words = sorted({word for text in texts for word in WORD.findall(text.lower())})
    found: set[str] = set()
    for judge in judges.values() if words else ():
        toxic = {word for word, toxicity in zip(words, judge(words), strict=True) if toxicity >= threshold}
        if len(toxic) <= MAX_TOXIC_WORD_SHARE * len(words):
            found |= toxic
    return sorted(found)
