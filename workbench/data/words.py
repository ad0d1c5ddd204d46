"""Words of texts in any script: runs of letters and digits, or single characters where a script puts no spaces."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

# Blocks of the scripts that put no spaces between words. Ideographs apart: they are many, and few marks join them.
SYLLABIC_BLOCKS = (
    *((0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F)),  # Thai, Lao, Tibetan, Myanmar
    *((0x1780, 0x17FF), (0x1950, 0x1AAF), (0x1B00, 0x1B7F)),  # Khmer, Tai, Balinese
    *((0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0xA980, 0xA9DF)),  # more Myanmar, Javanese
)
IDEOGRAPHIC_BLOCKS = (
    *((0x2E80, 0x2FDF), (0x3000, 0x312F), (0x31A0, 0x31FF)),  # radicals, punctuation, kana, Bopomofo
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA4CF), (0xF900, 0xFAFF)),  # ideographs, Yi
    *((0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF9F)),  # full-width punctuation and kana
    (0x20000, 0x323AF),
)
COMMON_MARKS = "\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"  # voicing of kana, variants of ideographs
JOINERS = "\u200c\u200d"  # inside words of Persian and of Indic scripts


def count_words(text: str) -> int:
    """Return the number of whitespace-separated words, each character of a script without spaces counting as one."""
    return len(split_words(text))


def split_words(text: str) -> list[str]:
    """Return the words of a text as it is written: separated by whitespace, or characters of a script without."""
    return separate_characters(text).split()


def separate_characters(text: str) -> str:
    """Return the text with a space on both sides of each character of a script that puts none between its words.

    Canonically equal texts (NFC and NFD) come out equal.
    """
    return text if text.isascii() else _unspaced_characters().sub(r" \g<0> ", unicodedata.normalize("NFC", text))


def is_unspaced(character: str) -> bool:
    """Return whether a character belongs to a script that puts no spaces between words."""
    return any(first <= ord(character) <= last for first, last in SYLLABIC_BLOCKS + IDEOGRAPHIC_BLOCKS)


def normalized_words(text: str) -> list[str]:
    """Return the words of a text in lower case and without punctuation: letters, digits and their combining marks."""
    if text.isascii():
        return re.findall("[a-z0-9]+", text.lower())
    separated = separate_characters(text).lower()
    return "".join(character if _is_in_word(character) else " " for character in separated).split()


def is_same_without_words(first: str, second: str) -> bool:
    """Return whether two texts, such as a row of emoji, are the same but for whitespace and have no word to compare."""
    characters, others = (unicodedata.normalize("NFC", text).split() for text in (first, second))
    return bool(characters) and characters == others and not normalized_words(first)


def whole_words(words: Iterable[str]) -> str:
    """Return the pattern of any of the words as no part of another; in a script without spaces, anywhere.

    The words and the texts have to be composed (NFC).
    """
    marks = _combining_marks()
    in_word = rf"\w{JOINERS}{marks}"
    groups: dict[tuple[bool, bool], list[str]] = {}  # the long classes once for all words that have the same
    for word in words:
        groups.setdefault((is_unspaced(word[0]), is_unspaced(word[-1])), []).append(re.escape(word))
    patterns = []
    for (is_free_before, is_free_after), alternatives in groups.items():
        start = "" if is_free_before else f"(?<![{in_word}])"
        end = f"(?![{marks}])" if is_free_after else f"(?![{in_word}])"  # a letter and its mark are one character
        patterns.append(f"{start}(?:{'|'.join(alternatives)}){end}")
    return "|".join(patterns)


class WordTokenizer:
    """The tokenizer that rouge_score takes; it equals rouge_score's own on ASCII text, and reads every other script."""

    def __init__(self, use_stemmer: bool = False) -> None:
        from rouge_score.tokenizers import DefaultTokenizer  # imports nltk, which takes a second

        self.english = DefaultTokenizer(use_stemmer)

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text, those of English stemmed if the tokenizer stems."""
        if text.isascii():
            return list(self.english.tokenize(text))
        words = normalized_words(text)
        return [part for word in words for part in (self.english.tokenize(word) if word.isascii() else [word])]


def _is_in_word(character: str) -> bool:
    return character.isalnum() or character in JOINERS or unicodedata.category(character).startswith("M")


@cache
def _combining_marks() -> str:
    """Return the marks that make another character of the one before, as ranges of a regular expression.

    Without those that only choose a variant of it, such as the color of an emoji.
    """
    marks = [code for code in range(0x300, 0x20000) if unicodedata.category(chr(code)).startswith("M")]
    marks = [code for code in marks if not 0xFE00 <= code <= 0xFE0F]
    starts = [code for code, before in zip(marks, [0, *marks], strict=False) if code != before + 1]
    ends = [code for code, after in zip(marks, [*marks[1:], 0], strict=True) if code != after - 1]
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in zip(starts, ends, strict=True))


@cache
def _unspaced_characters() -> re.Pattern[str]:
    """Return the pattern of one character of a script without spaces, with its combining marks."""
    codes = [code for first, last in SYLLABIC_BLOCKS for code in range(first, last + 1)]
    marks = "".join(chr(code) for code in codes if unicodedata.category(chr(code)).startswith("M"))
    others = "".join(chr(code) for code in codes if not unicodedata.category(chr(code)).startswith("M"))
    ideographs = "".join(f"{chr(first)}-{chr(last)}" for first, last in IDEOGRAPHIC_BLOCKS)
    return re.compile(f"[{re.escape(others)}{ideographs}][{re.escape(marks)}{COMMON_MARKS}]*")
