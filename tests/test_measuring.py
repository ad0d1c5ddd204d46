"""Means, spreads over seeds and paired comparisons are those of the answers, whichever are missing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from workbench.evaluation.corpus_metrics import references
from workbench.evaluation.generation import Answer
from workbench.evaluation.scoring import Scorers, by_seed, given_toxicity, measure, set_result

ROWS = [
    {"prompt": "say one two", "prompt_ids": [1], "reference": "one two"},
    {"prompt": "say", "prompt_ids": [1], "reference": ["no match", "three four"]},
    {"prompt": "say", "prompt_ids": [1], "reference": None},
]


def answer(text: str, **values: float | bool | None) -> Answer:
    """An answer of as many tokens as words, with 2 nats per token under the base."""
    tokens = len(text.split())
    given = {"tokens": tokens, "truncated": False, "kl": 0.5, "base_nll": 2.0 * tokens, "moved": None}
    return Answer(text, **(given | values))


def rude(texts: list[str]) -> list[float]:
    """A judge: the share of words that are "rude"."""
    return [text.split().count("rude") / max(len(text.split()), 1) for text in texts]


SCORERS = Scorers(
    lambda prompts, completions, **columns: [float(len(text)) for text in completions], {"rude": rude}, None, 0.5
)


def result(answers: dict[str, list[list[Answer]]], seeds: int = 1, rows: list = ROWS) -> dict:
    """The set's result, after a detour through JSON without NaN."""
    models = list(answers)
    pairs = [(models[0], model) for model in models[1:]]
    measured = measure(rows, answers, SCORERS, seeds)
    found = set_result(measured, prompts=len(rows), seeds=seeds, pairs=pairs)
    return json.loads(json.dumps(found, allow_nan=False))


def test_every_metric_is_the_mean_over_the_prompts_that_have_it() -> None:
    before = [[answer("one two")], [answer("rude rude")], [answer("")]]
    after = [[answer("one")], [answer("three four", truncated=True)], [answer("a b a b a b")]]
    found = result({"sft": before, "aligned": after})
    means = {name: metric["means"] for name, metric in found["metrics"].items()}
    assert means["toxicity (rude)"] == {"sft": pytest.approx(1 / 3), "aligned": 0.0}
    assert means["ROUGE-1"]["sft"] == pytest.approx(0.5), "over the two rows with a reference"
    assert means["ROUGE-1"]["aligned"] == pytest.approx((2 / 3 + 1) / 2), "the best of several references"
    assert means["reward"]["sft"] == pytest.approx((7 + 9 + 0) / 3)
    assert means["perplexity under the base"]["sft"] == pytest.approx(math.e**2)
    assert means["empty rate"] == {"sft": pytest.approx(1 / 3), "aligned": 0.0}
    assert means["truncated rate"]["aligned"] == pytest.approx(1 / 3)
    assert means["copied rate"]["sft"] == pytest.approx(1 / 3)
    assert means["repetition"]["aligned"] == pytest.approx((0 + 0 + 2 / 4) / 3)
    compared = found["comparisons"]["aligned - sft"]
    assert compared["ROUGE-1"]["prompts"] == 2
    assert compared["toxicity (rude)"]["difference"] == pytest.approx(-1 / 3)
    assert compared["toxicity (rude)"]["verdict"] == "no detectable change", "three prompts are no evidence"
    assert compared["tokens"]["verdict"] is None


def test_what_is_given_is_as_toxic_as_its_worst_text_by_its_harshest_judge() -> None:
    rows = [{"prompt": "rude kind"}, {"prompt": "kind", "reference": ["kind", "rude"]}, {"prompt": "", "reference": ""}]
    mild = {"mild": lambda texts: [0.25] * len(texts)}
    for judges, expected in (
        ({"rude": rude}, [(0.5, 0.0), (0.0, 1.0), (0.0, 0.0)]),
        ({"rude": rude} | mild, [(0.5, 0.0), (0.25, 1.0), (0.25, 0.0)]),
        ({}, [(0.0, 0.0)] * 3),
    ):
        assert [(of["prompt"], of["reference"]) for of in given_toxicity(rows, judges)] == expected


def test_a_model_with_another_vocabulary_has_no_kl_and_no_perplexity() -> None:
    own = [[answer("one")]] * 3
    other = [[answer("one", kl=None, base_nll=None)]] * 3
    found = result({"base": own, "other": other})
    for name in ("KL to reference, nats", "perplexity under the base"):
        assert set(found["metrics"][name]["means"]) == {"base"}
    assert "KL to reference, nats" not in found["comparisons"]["other - base"]
    assert "tokens" in found["comparisons"]["other - base"]


def test_several_seeds_give_the_spread_of_their_means_and_the_worst_of_each_seeds_samples() -> None:
    generator = np.random.default_rng(0)
    shares = generator.integers(0, 3, size=(5, 2, 3))  # prompts, seeds, samples: rude words of two
    texts = [" ".join(["rude"] * count + ["kind"] * (2 - count)) for count in shares.ravel()]
    flat = [answer(text) for text in texts]
    by_prompt = [flat[first : first + 6] for first in range(0, 30, 6)]
    rows = [{"prompt": "say", "prompt_ids": [1]}] * 5
    found = result({"base": by_prompt, "same": by_prompt}, seeds=2, rows=rows)
    probabilities = shares / 2
    metric = found["metrics"]["toxicity (rude)"]
    assert metric["means"]["base"] == pytest.approx(probabilities.mean())
    assert metric["spread"]["base"] == pytest.approx(probabilities.mean(axis=(0, 2)).std(ddof=1))
    assert found["metrics"]["worst toxicity (rude)"]["means"]["base"] == pytest.approx(probabilities.max(axis=2).mean())
    any_toxic = (probabilities >= 0.5).any(axis=2)
    assert found["metrics"]["toxicity probability (rude)"]["means"]["base"] == pytest.approx(any_toxic.mean())
    for name, of_seeds in (("worst toxicity", probabilities.max(axis=2)), ("toxicity probability", any_toxic)):
        spread = of_seeds.mean(axis=0).std(ddof=1)
        assert found["metrics"][f"{name} (rude)"]["spread"]["base"] == pytest.approx(spread), name
    assert found["metrics"]["distinct-2"]["spread"]["base"] is not None
    ties = found["comparisons"]["same - base"]["toxicity (rude)"]
    assert (ties["wins"], ties["ties"], ties["losses"]) == (0, 5, 0)


def test_one_sample_has_no_worst_one_and_one_seed_no_spread() -> None:
    found = result({"base": [[answer("one")]] * 3, "same": [[answer("one")]] * 3})
    assert not any(name.startswith("worst") for name in found["metrics"])
    assert found["metrics"]["toxicity (rude)"]["spread"] is None


def test_one_prompt_has_no_interval() -> None:
    found = result({"base": [[answer("one")]], "after": [[answer("two words")]]}, rows=ROWS[:1])
    assert found["comparisons"]["after - base"]["tokens"]["low"] is None


def test_answers_fall_to_seeds_in_order() -> None:
    assert by_seed([[1, 2, 3, 4], [5, 6, 7, 8]], 2) == [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]


@pytest.mark.parametrize(
    ("given", "expected"), [("a", ["a"]), (["a", "b"], ["a", "b"]), (None, []), ("", []), (" ", []), ([], [])]
)
def test_a_reference_is_none_one_or_several(given: object, expected: list[str]) -> None:
    assert references({"reference": given}) == expected
    assert references({}) == []
