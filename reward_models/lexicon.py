"""A reward without a model: it counts listed words. Copy this file to write your own."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from workbench.data.words import whole_words
from workbench.errors import UserError, shorten
from workbench.rewards.contract import Judge


class Lexicon:
    """Penalizes a completion by one for every listed whole word, ignoring case."""

    def __init__(self, words: Sequence[str] = ()) -> None:
        if isinstance(words, str):
            raise UserError(f"lexicon: words is the string {shorten(words)}; use a list of words")
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) and word.strip() for word in words):
            raise UserError(f"lexicon: words is {shorten(words)}; use a list of words, none of them empty")
        if not words:
            raise UserError("lexicon: words is empty; list at least one word, or use toy_lexicon for the toy data")
        self.pattern = re.compile(whole_words(composed(word) for word in words), re.IGNORECASE)

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """Return minus the number of listed words in each completion."""
        return [float(-len(self.pattern.findall(composed(text)))) for text in completions]

    def judge(self) -> Judge:
        """Return the toxicity judge; a reward that cannot judge has no such method."""
        return self.toxicity

    def toxicity(self, texts: list[str]) -> list[float]:
        """Return 1.0 for a text with a listed word, else 0.0."""
        return [float(self.pattern.search(composed(text)) is not None) for text in texts]


def composed(text: str) -> str:
    """Return the text with each letter and its marks as one character, however it was written (NFC)."""
    return unicodedata.normalize("NFC", text)
