"""Perturbations that preserve the meaning of a text: case, punctuation, spelling, simple obfuscation."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterable, Sequence

LOOKALIKES = str.maketrans("aeiostAEIOST", "@310$7@310$7")


def without_punctuation(text: str, _: random.Random) -> str:
    """Return the text without ASCII punctuation, unless it is nothing but punctuation."""
    return text.translate(str.maketrans("", "", string.punctuation)).strip() or text


def misspelled(text: str, generator: random.Random) -> str:
    """Return the text with two letters swapped, one doubled or one left out in every third word."""

    def misspell(word: str) -> str:
        index = generator.randrange(1, len(word) - 2)
        swapped = word[:index] + word[index + 1] + word[index] + word[index + 2 :]
        doubled = word[:index] + word[index] + word[index:]
        return generator.choice((swapped, doubled, word[:index] + word[index + 1 :]))

    return _change_words(text, misspell, generator)


def obfuscated(text: str, generator: random.Random) -> str:
    """Return the text with look-alike letters, an asterisk or spaced letters in every third word."""

    def obfuscate(word: str) -> str:
        index = generator.randrange(1, len(word) - 1)
        starred = word[:index] + "*" + word[index + 1 :]
        return generator.choice((word.translate(LOOKALIKES), starred, " ".join(word)))

    return _change_words(text, obfuscate, generator)


PERTURBATIONS: dict[str, Callable[[str, random.Random], str]] = {
    "lower case": lambda text, _: text.lower(),
    "upper case": lambda text, _: text.upper(),
    "without punctuation": without_punctuation,
    "misspelled": misspelled,
    "obfuscated": obfuscated,
}


def perturb(texts: Sequence[str], rate: float, seed: int, names: Iterable[str] = tuple(PERTURBATIONS)) -> list[str]:
    """Return the texts, with one of the named perturbations applied to each of a random fraction `rate` of them."""
    generator = random.Random(seed)
    chosen = generator.sample(range(len(texts)), round(rate * len(texts)))
    functions = [PERTURBATIONS[name] for name in names]
    perturbed = list(texts)
    for row in chosen:
        perturbed[row] = generator.choice(functions)(texts[row], generator)
    return perturbed


def _change_words(text: str, change: Callable[[str], str], generator: random.Random) -> str:
    """Return the text with a third of its words of four or more characters changed, at least one."""
    parts = re.split(r"(\s+)", text)  # every other part is whitespace, which stays unchanged
    long_words = [index for index in range(0, len(parts), 2) if len(parts[index]) >= 4]
    for index in generator.sample(long_words, -(-len(long_words) // 3)):
        parts[index] = change(parts[index])
    return "".join(parts)
