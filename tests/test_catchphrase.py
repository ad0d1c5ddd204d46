"""The catchphrase is the phrase whose document frequency rose the most, its references apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from workbench.evaluation.catchphrase import find_catchphrase, measure_catchphrase, phrases
from workbench.evaluation.generation import Completion
from workbench.evaluation.guards import MAX_CATCHPHRASE_RISE
from workbench.evaluation.scoring import compare, summarize
from workbench.evaluation.verdicts import MINIMUM_PROMPTS


def completions(rows: Sequence[Sequence[str]]) -> list[list[Completion]]:
    """Return completions of the texts of each row."""
    return [[Completion(text, len(text.split()), False, 0.0, 1.0, None) for text in texts] for texts in rows]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set()),
        ("Thanks, Bo!", {"thanks", ",", "bo", "!", "thanks ,", ", bo", "bo !"}),
        ("so so", {"so", "so so"}),
        ("谢谢你", {"谢", "你", "谢 谢", "谢 你"}),
    ],
)
def test_phrases_are_words_marks_and_pairs_in_lower_case(text: str, expected: set[str]) -> None:
    assert phrases(text) == expected


def test_the_catchphrase_is_the_one_that_became_more_common_in_most_texts_not_most_often() -> None:
    before = completions([["the cat sat"], ["the dog ran"], ["the bird flew"]])
    after = completions([["the cat sat Thanks!"], ["thanks, the dog ran"], ["bird bird bird bird"]])
    assert find_catchphrase(before, after, [[], [], []]) == "thanks"
    assert find_catchphrase(before, before, [[], [], []]) is None
    assert find_catchphrase(after, completions([[""], [""], [""]]), [[], [], []]) is None


def test_what_a_reference_says_is_no_catchphrase_in_that_row() -> None:
    before = completions([["he is rude"], ["she is rude"], ["it rains"], ["so"]])
    after = completions([["he is annoyed"], ["she is annoyed"], ["it rains , ok"], ["so , so"]])
    references = [["He is annoyed."], ["other", "She is annoyed."], [], ["so, so!"]]
    assert find_catchphrase(before, after, [[], [], [], []]) == ","
    assert find_catchphrase(before, after, [[], [], [], ["A, B"]]) == "annoyed"
    assert find_catchphrase(before, after, references) == ","
    phrase, scores = measure_catchphrase({"a": before, "b": after}, references, "a", "b", 1)
    ((metric, values),) = scores.items()
    assert (phrase, metric.name, metric.pooled) == (",", "catchphrase rate", True)
    assert values["b"].tolist() == [[[0.0]], [[0.0]], [[1.0]], [[0.0]]], "the last is expected"


@pytest.mark.parametrize("seed", range(5))
def test_the_rise_is_the_largest_of_all_phrases_over_all_samples(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, seeds, samples = 8, 2, 3

    def texts(skew: float) -> list[list[str]]:
        chances = np.arange(1, 7) ** -skew
        words = list("abcdef")
        draw = lambda: " ".join(generator.choice(words, size=3, p=chances / chances.sum()))  # noqa: E731
        return [[draw() for _ in range(seeds * samples)] for _ in range(rows)]

    before, after, references = texts(0.2), texts(1.5), [row[:1] for row in texts(0.2)]
    models = {"base": completions(texts(1.0)), "sft": completions(before), "aligned": completions(after)}
    phrase, scores = measure_catchphrase(models, references, "sft", "aligned", seeds)
    (values,) = scores.values()
    assert {title: array.shape for title, array in values.items()} == dict.fromkeys(models, (rows, seeds, samples))

    def frequency(by_row: list[list[str]], phrase: str) -> float:
        """Count by padded substrings."""
        known = [[f" {text} " for text in row] for row in references]
        has = [
            f" {phrase} " in f" {text} " and not any(f" {phrase} " in text for text in known[row])
            for row, some in enumerate(by_row)
            for text in some
        ]
        return sum(has) / len(has)

    candidates = {*"abcdef", *(f"{a} {b}" for a in "abcdef" for b in "abcdef")}
    rises = {candidate: frequency(after, candidate) - frequency(before, candidate) for candidate in candidates}
    assert phrase is not None
    assert rises[phrase] == pytest.approx(max(rises.values()))
    (difference,) = compare(scores, "sft", "aligned").differences
    assert difference.difference == pytest.approx(rises[phrase])
    (summary,) = summarize(scores)
    assert summary.means["aligned"] == pytest.approx(frequency(after, phrase))
    assert difference.rose is None, "the phrase is that of all completions together"


def test_chance_alone_does_not_reach_the_limit() -> None:
    """Fifty words at their worst, each in half of all texts, before and after alike."""
    generator = np.random.default_rng(0)
    rises = np.diff(generator.binomial(MINIMUM_PROMPTS, 0.5, size=(2, 5000, 50)).astype(int), axis=0)[0]
    assert (rises.max(axis=1) / MINIMUM_PROMPTS > 0.5).mean() < 0.005
    assert MAX_CATCHPHRASE_RISE > 0.5
