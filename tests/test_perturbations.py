"""Variants of texts: what is left as it is, how many are varied, and that no text is too odd."""

from __future__ import annotations

import random
import re
import string

import pytest

from workbench.rewards.training.perturbations import LOOKALIKES, VARIANTS, vary, without_punctuation

PLAIN = "The quick brown fox, who is not at all lazy, jumps over seven sleeping dogs in the yard!"
ODD = [
    *("", " ", "a", "a b c", "ab", "abc", "abcd", "...", "?!", "\n\n", "\t", "  two  spaces  ", "'", "****"),
    *(
        "你好世界 这是一个测试",
        "Это просто предложение",
        "مرحبا بالعالم",
        "สวัสดีชาวโลก",
        "🙂🙂🙂🙂 👩‍👩‍👧‍👦",
        "ﬁnal ßtraße İstanbul",
    ),
    *("a" * 10_000, "word " * 2_000, "\u202eabcd\x00efgh", "e\u0301" * 20, "http://a.b/c?d=e&f=g"),
]


@pytest.mark.parametrize("name", VARIANTS)
def test_no_text_is_too_odd_and_none_that_says_something_is_emptied(name):
    for text in ODD:
        for seed in range(5):
            varied = VARIANTS[name](text, random.Random(seed))
            assert bool(varied.strip()) == bool(text.strip()), text


@pytest.mark.parametrize("name", VARIANTS)
def test_a_seed_decides_what_a_variant_is(name):
    first, again = (VARIANTS[name](PLAIN, random.Random(3)) for _ in range(2))
    assert first == again
    assert first != PLAIN


def ways(word: str) -> dict[str, str]:
    """Regular expressions for all that a word of four or more characters may become, by the group's name."""
    inner = range(1, len(word) - 1)
    made = {
        "misspelled": [
            *(word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in inner[:-1]),
            *(word[:i] + 2 * word[i] + word[i + 1 :] for i in inner),
            *(word[:i] + word[i + 1 :] for i in inner),
        ],
        "obfuscated": [
            word.translate(LOOKALIKES),
            " ".join(word),
            *(word[:i] + "*" + word[i + 1 :] for i in inner),
        ],
    }
    return {name: f"({'|'.join(map(re.escape, [word, *some]))})" for name, some in made.items()}


@pytest.mark.parametrize("name", ["misspelled", "obfuscated"])
def test_a_third_of_the_words_of_four_characters_changes_and_nothing_else(name):
    text = "to be\nor it\tthis  will work \r\n that long \x85 last a b"
    parts = re.split(r"(\s+)", text)
    expected = "".join(ways(part)[name] if len(part) >= 4 and part.strip() else re.escape(part) for part in parts)
    seen = set()
    for seed in range(300):
        varied = VARIANTS[name](text, random.Random(seed))
        found = re.fullmatch(expected, varied)
        assert found is not None, varied
        words = zip(found.groups(), re.findall(r"\w{4,}", text), strict=True)
        changed = [after for after, before in words if after != before]
        assert len(changed) == 2  # of six
        seen |= set(changed)
    assert len(seen) >= 6 * 3  # in three ways


def test_case_and_punctuation_change_nothing_else():
    chance = random.Random(0)
    assert VARIANTS["lower case"](PLAIN, chance) == PLAIN.lower()
    assert VARIANTS["upper case"](PLAIN, chance) == PLAIN.upper()
    letters = "".join(character for character in PLAIN if character not in string.punctuation)
    assert without_punctuation(PLAIN, chance) == letters
    assert without_punctuation(" ?! ", chance) == " ?! "  # it would be empty


def test_vary_keeps_the_order_and_varies_the_share_it_is_told():
    # Every kind changes such a text, and its number survives every kind.
    texts = [f"Good, PLAIN, honest sentence 1{number:03}." for number in range(200)]
    for share in (0.0, 0.125, 0.5, 1.0):
        varied = vary(texts, share, seed=1)
        assert len(varied) == len(texts)
        assert sum(a != b for a, b in zip(texts, varied, strict=True)) == pytest.approx(share * 200, abs=share * 12)
    assert vary(texts, 0.0, seed=1) == texts
    assert vary([], 1.0, seed=1) == []
    assert sorted(map(bool, vary(ODD, 1.0, seed=1))) == sorted(map(bool, ODD))


def test_vary_draws_exactly_its_share_and_every_kind(monkeypatch):
    calls = []
    for name in list(VARIANTS):
        monkeypatch.setitem(VARIANTS, name, lambda text, _, name=name: calls.append(name) or f"{text} {name}")
    texts = [str(number) for number in range(101)]
    varied = vary(texts, 0.6, seed=5)
    assert len(calls) == 61 == sum(" " in text for text in varied)
    assert [text.split()[0] for text in varied] == texts
    assert set(calls) == set(VARIANTS)
    assert vary(texts, 0.6, seed=5) == varied != vary(texts, 0.6, seed=6)
