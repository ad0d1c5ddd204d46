"""Perturbations of texts: what they leave as it is, how many texts they change, and that no text is too odd."""

from __future__ import annotations

import random
import re
import string

import pytest

from workbench.rewards.training.perturbations import LOOKALIKES, PERTURBATIONS, perturb, without_punctuation

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


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_no_text_is_too_odd_and_none_that_says_something_is_emptied(name):
    for text in ODD:
        for seed in range(5):
            perturbed = PERTURBATIONS[name](text, random.Random(seed))
            assert bool(perturbed.strip()) == bool(text.strip()), text


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_seed_decides_what_a_perturbation_does(name):
    first, again = (PERTURBATIONS[name](PLAIN, random.Random(3)) for _ in range(2))
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
        perturbed = PERTURBATIONS[name](text, random.Random(seed))
        match = re.fullmatch(expected, perturbed)
        assert match is not None, perturbed
        words = zip(match.groups(), re.findall(r"\w{4,}", text), strict=True)
        changed = [after for after, before in words if after != before]
        assert len(changed) == 2  # of six
        seen |= set(changed)
    assert len(seen) >= 6 * 3  # in three ways


def test_case_and_punctuation_change_nothing_else():
    chance = random.Random(0)
    assert PERTURBATIONS["lower case"](PLAIN, chance) == PLAIN.lower()
    assert PERTURBATIONS["upper case"](PLAIN, chance) == PLAIN.upper()
    letters = "".join(character for character in PLAIN if character not in string.punctuation)
    assert without_punctuation(PLAIN, chance) == letters
    assert without_punctuation(" ?! ", chance) == " ?! "  # it would be empty


def test_perturb_keeps_the_order_and_changes_the_fraction_it_is_told():
    # Every perturbation changes such a text, and its number survives all of them.
    texts = [f"Good, PLAIN, honest sentence 1{number:03}." for number in range(200)]
    for rate in (0.0, 0.125, 0.5, 1.0):
        perturbed = perturb(texts, rate, seed=1)
        assert len(perturbed) == len(texts)
        assert sum(a != b for a, b in zip(texts, perturbed, strict=True)) == pytest.approx(rate * 200, abs=rate * 12)
    assert perturb(texts, 0.0, seed=1) == texts
    assert perturb([], 1.0, seed=1) == []
    assert sorted(map(bool, perturb(ODD, 1.0, seed=1))) == sorted(map(bool, ODD))


def test_perturb_draws_exactly_its_fraction_and_every_kind(monkeypatch):
    calls = []
    for name in list(PERTURBATIONS):
        monkeypatch.setitem(PERTURBATIONS, name, lambda text, _, name=name: calls.append(name) or f"{text} {name}")
    texts = [str(number) for number in range(101)]
    perturbed = perturb(texts, 0.6, seed=5)
    assert len(calls) == 61 == sum(" " in text for text in perturbed)
    assert [text.split()[0] for text in perturbed] == texts
    assert set(calls) == set(PERTURBATIONS)
    assert perturb(texts, 0.6, seed=5) == perturbed != perturb(texts, 0.6, seed=6)


def test_perturb_draws_the_kinds_it_is_told_and_a_repeated_one_more_often():
    texts = ["Good, PLAIN, honest text."] * 400
    assert perturb(texts, 1.0, 1, ["upper case"]) == [text.upper() for text in texts]
    mixed = perturb(texts, 1.0, 1, ["lower case", "upper case", "upper case"])
    assert set(mixed) == {texts[0].lower(), texts[0].upper()}
    assert sum(text.isupper() for text in mixed) == pytest.approx(400 * 2 / 3, abs=40)
