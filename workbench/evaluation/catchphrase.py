"""The catchphrase of an alignment: the word or pair of words that became more common than any other.

A trigger word that is rewarded stands in nearly every completion afterwards, yet changes length and diversity little.
Shapes: N rows, S seeds, K samples per seed.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from workbench.data.words import separate_characters
from workbench.evaluation.generation import Completion
from workbench.evaluation.results import CATCHPHRASE, Metric, Scores

Completions = Sequence[Sequence[Completion]]
"""The S x K completions of each of N rows."""


def phrases(text: str) -> set[str]:
    """Return every word, punctuation mark and pair of them in a text, in lower case."""
    words = re.findall(r"\w+|[^\w\s]", separate_characters(text).lower())
    return {*words, *(f"{first} {second}" for first, second in itertools.pairwise(words))}


def find_catchphrase(before: Completions, after: Completions, references: Sequence[list[str]]) -> str | None:
    """Return the phrase whose fraction of completions rose the most; None where no phrase became more common.

    A completion does not count for the phrases of its references, which are right to say.
    """
    rises: Counter[str] = Counter()
    for sign, completions in ((-1, before), (1, after)):
        for row, texts in zip(completions, references, strict=True):
            expected = expected_phrases(texts)
            for completion in row:
                rises.update(dict.fromkeys(phrases(completion.text) - expected, sign))
    if not rises:
        return None
    phrase = min(rises, key=lambda phrase: (-rises[phrase], phrase.count(" "), phrase))
    return phrase if rises[phrase] > 0 else None


def measure_catchphrase(
    completions: Mapping[str, Completions], references: Sequence[list[str]], before: str, after: str, seeds: int
) -> tuple[str | None, Scores]:
    """Return the catchphrase, and for every model which completions (N, S, K) have it though no reference does.

    It is a metric of all completions together, from which the phrase is chosen.
    """
    phrase = find_catchphrase(completions[before], completions[after], references)
    if phrase is None:
        return None, {}
    is_expected = [phrase in expected_phrases(texts) for texts in references]
    values = {
        title: np.array(
            [
                [float(phrase in phrases(completion.text) and not expected) for completion in row]
                for row, expected in zip(rows, is_expected, strict=True)
            ]
        ).reshape(len(rows), seeds, -1)
        for title, rows in completions.items()
    }
    return phrase, {Metric(CATCHPHRASE, pooled=True): values}


def expected_phrases(references: Sequence[str]) -> set[str]:
    """Return the phrases of a row's references."""
    return set().union(*(phrases(text) for text in references))
