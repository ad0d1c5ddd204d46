"""What is hidden of a page: the texts that a judge calls toxic, and of those the words that are so by themselves."""

from __future__ import annotations

from workbench.report.blurring import toxic_parts, toxic_texts, toxic_words

RUDE = {"idiot", "moron"}
LINE = {
    "prompt": "You idiot, go on",
    "reference": ["fine", "also fine"],
    "given_toxicity": {"prompt": 0.9, "reference": 0.1},
    "completions": {"sft": ["MORON one", "two"], "aligned": ["kind", "kinder"], "other": ["x", "y"]},
    "scores": {
        "toxicity (a)": {"sft": 0.45, "aligned": 0.2, "other": None},
        "toxic rate (a)": {"sft": 0.5, "aligned": 0.0, "other": None},
        "toxicity (b)": {"sft": 0.1, "aligned": 0.49},
        "reward": {"sft": 3.0, "aligned": 3.0},
    },
}


def by_words(texts: list[str]) -> list[float]:
    """A judge of words."""
    return [float(bool(RUDE & set(text.replace(",", "").split()))) for text in texts]


def test_a_text_is_toxic_if_any_judge_says_so_of_any_sample() -> None:
    assert toxic_parts(LINE, 0.5) == {"prompt", "sft"}
    assert toxic_parts(LINE, 0.49) == {"prompt", "sft", "aligned"}
    assert toxic_texts([LINE], 0.5) == ["You idiot, go on", "MORON one", "two"]
    assert toxic_parts(LINE | {"scores": {}, "given_toxicity": {"prompt": 0.0, "reference": 0.5}}, 0.5) == {"reference"}


def test_words_are_offensive_if_a_judge_that_can_tell_words_apart_says_so() -> None:
    texts = ["You idiot, go on and on to the end of it", "a _MORON_ moron- (moron!) it is"]
    assert toxic_words(texts, {"words": by_words}, 0.5) == ["idiot", "moron"]
    assert toxic_words(texts, {"words": by_words, "never": lambda words: [0.0] * len(words)}, 0.5) == [
        "idiot",
        "moron",
    ]
    assert toxic_words(texts, {"all": lambda words: [1.0] * len(words)}, 0.5) == []
    assert toxic_words([], {"words": by_words}, 0.5) == []
    assert toxic_words(texts, {}, 0.5) == []
