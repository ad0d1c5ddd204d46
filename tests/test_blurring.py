"""Which texts and words the page blurs: the texts that a judge finds toxic, and the words that are toxic even alone."""

from __future__ import annotations

import dataclasses

from workbench.evaluation.results import Example, Metric, Summary
from workbench.report.blurring import ToxicParts, toxic_parts, toxic_texts, toxic_words

RUDE = {"idiot", "moron"}
EXAMPLE = Example(
    set="dialogues",
    index=0,
    prompt="You idiot, go on",
    references=["fine", "also fine"],
    prompt_toxicity=0.9,
    reference_toxicity=0.1,
    completions={"sft": ["MORON one", "two"], "aligned": ["kind", "kinder"], "other": ["x", "y"]},
    scores=[
        Summary(Metric("toxicity", "lower", "a"), {"sft": 0.45, "aligned": 0.2, "other": None}, None),
        Summary(Metric("toxic rate", "lower", "a"), {"sft": 0.5, "aligned": 0.0, "other": None}, None),
        Summary(Metric("toxicity", "lower", "b"), {"sft": 0.1, "aligned": 0.49}, None),
        Summary(Metric("reward", "higher"), {"sft": 3.0, "aligned": 3.0}, None),
    ],
    token_log_ratios=None,
)


def by_words(texts: list[str]) -> list[float]:
    """Judge a text by its words."""
    return [float(bool(RUDE & set(text.replace(",", "").split()))) for text in texts]


def test_a_text_is_toxic_if_any_judge_finds_any_sample_toxic() -> None:
    assert toxic_parts(EXAMPLE, 0.5) == ToxicParts(prompt=True, references=False, models={"sft"})
    assert toxic_parts(EXAMPLE, 0.49).models == {"sft", "aligned"}
    assert toxic_texts([EXAMPLE], 0.5) == ["You idiot, go on", "MORON one", "two"]
    reference = dataclasses.replace(EXAMPLE, scores=[], prompt_toxicity=0.0, reference_toxicity=0.5)
    assert toxic_parts(reference, 0.5) == ToxicParts(prompt=False, references=True, models=set())
    assert toxic_texts([reference], 0.5) == ["fine", "also fine"]


def test_words_are_toxic_if_a_judge_that_can_tell_words_apart_says_so() -> None:
    texts = ["You idiot, go on and on to the end of it", "a _MORON_ moron- (moron!) it is"]
    assert toxic_words(texts, {"words": by_words}, 0.5) == ["idiot", "moron"]
    assert toxic_words(texts, {"words": by_words, "never": lambda words: [0.0] * len(words)}, 0.5) == [
        "idiot",
        "moron",
    ]
    assert toxic_words(texts, {"all": lambda words: [1.0] * len(words)}, 0.5) == []
    assert toxic_words([], {"words": by_words}, 0.5) == []
    assert toxic_words(texts, {}, 0.5) == []
