"""A reward without a model: count the words of a list. Copy this file to write your own."""

from __future__ import annotations

import re

from workbench.errors import UserError
from workbench.toy import RUDE_WORDS


class Lexicon:
    """Pays minus one for every whole word of the list, in any case; default: the embedded rude words."""

    def __init__(self, words: list[str] | None = None) -> None:
        chosen = list(RUDE_WORDS) if words is None else words
        if isinstance(words, str):
            raise UserError(f"lexicon: words is the text {words!r}; give a list of words")
        if not chosen:
            raise UserError("lexicon: words is empty; list at least one word")
        self.pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, chosen))})(?!\w)", re.IGNORECASE)

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """Minus the number of listed words in each completion."""
        return [float(-len(self.pattern.findall(text))) for text in completions]

    def toxicity(self, texts: list[str]) -> list[float]:
        """1.0 for a text with a listed word, else 0.0."""
        return [float(self.pattern.search(text) is not None) for text in texts]
