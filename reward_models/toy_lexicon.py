"""The lexicon of the toy data: the 22 rude words that its dialogues were generated with.

It is the judge of the quickstart, which has no other rude words. For real text, give `lexicon` your own words.
"""

from __future__ import annotations

from reward_models.lexicon import Lexicon
from workbench.toy import RUDE_WORDS


def load() -> Lexicon:
    """Return the lexicon of the toy data's rude words."""
    return Lexicon(list(RUDE_WORDS))
