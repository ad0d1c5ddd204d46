"""Other ways to write a text that leave what it says as it is: case, punctuation, spelling, simple obfuscation."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence

LOOKALIKES = str.maketrans("aeiostAEIOST", "@310$7@310$7")


def without_punctuation(text: str, _: random.Random) -> str:
    """The text without ASCII punctuation, unless it is nothing else."""
    return text.translate(str.maketrans("", "", string.punctuation)).strip() or text


def misspelled(text: str, chance: random.Random) -> str:
    """One word in three with two inner letters swapped, one doubled or one left out."""

    def misspell(word: str) -> str:
        place = chance.randrange(1, len(word) - 2)
        swapped = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        doubled = word[:place] + word[place] + word[place:]
        return chance.choice((swapped, doubled, word[:place] + word[place + 1 :]))

    return _some_words(text, misspell, chance)


def obfuscated(text: str, chance: random.Random) -> str:
    """One word in three with letters that look alike, an inner letter starred out, or its letters apart."""

    def hide(word: str) -> str:
        place = chance.randrange(1, len(word) - 1)
        return chance.choice((word.translate(LOOKALIKES), word[:place] + "*" + word[place + 1 :], " ".join(word)))

    return _some_words(text, hide, chance)


VARIANTS: dict[str, Callable[[str, random.Random], str]] = {
    "lower case": lambda text, _: text.lower(),
    "upper case": lambda text, _: text.upper(),
    "without punctuation": without_punctuation,
    "misspelled": misspelled,
    "obfuscated": obfuscated,
}


def vary(texts: Sequence[str], share: float, seed: int) -> list[str]:
    """The texts, a random `share` in [0, 1] of them as variants of random kinds."""
    chance = random.Random(seed)
    chosen = chance.sample(range(len(texts)), round(share * len(texts)))
    kinds = list(VARIANTS.values())
    varied = list(texts)
    for row in chosen:
        varied[row] = chance.choice(kinds)(texts[row], chance)
    return varied


def _some_words(text: str, change: Callable[[str], str], chance: random.Random) -> str:
    """The text with a third of its words of four or more characters changed, at least one."""
    parts = re.split(r"(\s+)", text)  # every other one is white space, which stays as it is
    long = [place for place in range(0, len(parts), 2) if len(parts[place]) >= 4]
    for place in chance.sample(long, -(-len(long) // 3)):
        parts[place] = change(parts[place])
    return "".join(parts)
