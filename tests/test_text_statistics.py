"""Statistics of texts, against counting by hand and brute force."""

import numpy as np
import pytest

from workbench.evaluation.metrics.text_statistics import (
    any_toxic,
    copy_rate,
    distinct_n,
    max_toxicity,
    repetition,
)


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b a b"], 1, 2 / 4),
        (["a b a b"], 2, 2 / 3),
        (["a b", "a b"], 2, 1 / 2),
        (["a", "b"], 2, 0.0),
        (["a b", "c"], 2, 1.0),
        ([], 1, 0.0),
        (["  ", ""], 1, 0.0),
    ],
)
def test_distinct_n_counts_over_all_texts_and_never_across_them(texts, n, expected):
    assert distinct_n(texts, n) == pytest.approx(expected)


def test_distinct_n_needs_a_token():
    with pytest.raises(ValueError, match="n is 0"):
        distinct_n(["a"], 0)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("", 3, 0.0),
        ("a a", 3, 0.0),  # no 3-gram at all
        ("a a a a a", 3, 2 / 3),
        ("a b c d e f", 3, 0.0),
        ("a b c x a b c", 3, 1 / 5),
        ("a b  a\nb", 2, 1 / 3),
    ],
)
def test_repetition_is_the_fraction_of_ngrams_that_came_before(text, n, expected):
    assert repetition(text, n) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(10))
def test_repetition_and_copying_agree_with_brute_force(seed):
    generator = np.random.default_rng(seed)
    completion = generator.choice(list("abc"), size=generator.integers(4, 20)).tolist()
    prompt = generator.choice(list("abcd"), size=30).tolist()
    triples = [completion[i : i + 3] for i in range(len(completion) - 2)]
    repeated = sum(triple in triples[:i] for i, triple in enumerate(triples))
    assert repetition(" ".join(completion)) == pytest.approx(repeated / len(triples))
    fours = [" ".join(completion[i : i + 4]) for i in range(len(completion) - 3)]
    copied = sum(f" {four} " in f" {' '.join(prompt)} " for four in fours)
    assert copy_rate(" ".join(prompt), " ".join(completion)) == pytest.approx(copied / len(fours))


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("one two three four five", "", 0.0),
        ("", "one two three four", 0.0),
        ("one two three four five", "one two three four five", 1.0),
        ("one two three four five", "two three four five six", 1 / 2),
        ("one two three four five", "five four three two one", 0.0),  # the same words in another order
        ("one two three", "three one six", 2 / 3),  # fewer words than an n-gram has
        ("someone two", "one", 0.0),  # part of a word is none
    ],
)
def test_copying_is_the_fraction_that_occurs_in_the_prompt(prompt, completion, expected):
    assert copy_rate(prompt, completion) == pytest.approx(expected)


def test_the_worst_of_several_samples_counts():
    scores = [[0.1, 0.9, 0.2], [0.4, 0.3, 0.49], [0.5, 0.0, 0.0]]
    assert max_toxicity(scores).tolist() == [0.9, 0.49, 0.5]
    assert any_toxic(scores).tolist() == [1.0, 0.0, 1.0]  # a text on the threshold is toxic
    assert any_toxic(scores, threshold=0.6).tolist() == [1.0, 0.0, 0.0]


def test_with_one_sample_the_worst_is_the_sample():
    assert max_toxicity([[0.25], [0.75]]).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("scores", [[[0.1, 0.2], [0.3]], [[], []], []])
def test_prompts_need_the_same_number_of_samples(scores):
    for measure in (max_toxicity, any_toxic):
        with pytest.raises(ValueError, match="the same number"):
            measure(scores)
