"""The lexicon of the toy data: its 22 rude words, with which its dialogues were generated.

It judges the quickstart, whose only rude words these are. It knows no others: for real text, give `lexicon` your own
words.
"""

from __future__ import annotations

from reward_models.lexicon import Lexicon
from workbench.toy import RUDE_WORDS


def load() -> Lexicon:
    """Return the lexicon of the toy data's rude words."""
    return Lexicon(list(RUDE_WORDS))
