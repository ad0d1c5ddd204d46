"""Metrics of all answers together: their parts are the jackknife's, their intervals cover, whatever the metric."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from workbench.evaluation import metrics
from workbench.evaluation.corpus_metrics import POOLED, pooled
from workbench.evaluation.generation import Answer
from workbench.evaluation.metrics.text_statistics import distinct_n, distinct_n_without
from workbench.evaluation.scoring import Scorers, measure, set_result
from workbench.evaluation.statistics import paired_difference, parts

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "slept", "all", "day"]


def texts(generator: np.random.Generator, rows: int, skew: float = 1.0) -> list[str]:
    """Texts of up to 12 words; the greater the skew, the fewer different ones."""
    chances = np.arange(1, len(WORDS) + 1) ** -skew
    return [
        " ".join(generator.choice(WORDS, size=generator.integers(0, 13), p=chances / chances.sum()))
        for _ in range(rows)
    ]


def answer(text: str, nats: float = 1.0) -> Answer:
    """An answer of as many tokens as words."""
    return Answer(text, len(text.split()), False, 0.0, nats, None)


def test_a_mean_falls_into_its_rows() -> None:
    rows = np.random.default_rng(0).normal(size=20)
    without = (rows.sum() - rows) / 19
    np.testing.assert_allclose(parts(rows.mean(), without), rows)


def test_parts_have_the_statistic_as_mean_and_the_jackknifes_standard_error() -> None:
    rows = np.random.default_rng(1).exponential(size=50)
    without = np.array([np.log(np.delete(rows, row).mean()) for row in range(50)])
    found = parts(np.log(rows.mean()), without)
    assert found.mean() == pytest.approx(np.log(rows.mean()))
    jackknife = 49 / 50 * ((without - without.mean()) ** 2).sum()
    assert found.var(ddof=1) / 50 == pytest.approx(jackknife)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_without_each_row_is_that_of_the_others(n: int) -> None:
    generator = np.random.default_rng(n)
    rows = [texts(generator, 2) for _ in range(6)] + [["", ""], ["a b c a b c", "a b c"], ["never seen before", ""]]
    expected = [distinct_n([text for other in rows[:i] + rows[i + 1 :] for text in other], n) for i in range(len(rows))]
    assert distinct_n_without(rows, n) == pytest.approx(expected)
    assert distinct_n_without([["a b c"]], n) == [0.0]


def test_bleu_of_summed_counts_is_sacrebleus_of_the_same_rows() -> None:
    generator = np.random.default_rng(4)
    answers = [*texts(generator, 12), "", "the cat sat on a mat"]
    given = [[text or "none" for text in texts(generator, 1 + row % 3)] for row in range(14)]
    counts = metrics.bleu_counts(answers, given)
    assert metrics.bleu_of_counts(counts.sum(axis=0)) == pytest.approx(metrics.bleu(answers, given))
    for row in range(14):
        some = [text for index, text in enumerate(answers) if index != row]
        streams = [
            [of[place] if place < len(of) else None for of in given[:row] + given[row + 1 :]] for place in (0, 1, 2)
        ]
        expected = BLEU().corpus_score(some, streams).score
        assert metrics.bleu_of_counts(counts.sum(axis=0) - counts[row]) == pytest.approx(expected), row


def test_perplexity_and_bleu_are_those_of_all_samples_of_a_prompt_together() -> None:
    generator = np.random.default_rng(5)
    rows = [{"prompt": "say", "reference": of} for of in [None, "the cat sat on a mat", ["a mat", "the day"]] * 3]
    nats = (1.0, 4.0, 9.0)
    answers = [[answer(text, of) for text, of in zip(texts(generator, 3), nats, strict=True)] for _ in rows]
    found = pooled(rows, answers)
    assert set(found) == set(POOLED)

    def perplexity(some: list[list[Answer]]) -> float:
        every = [answer for of in some for answer in of]
        return math.exp(sum(a.base_nll for a in every) / sum(a.tokens for a in every))

    whole, rest = perplexity(answers), [perplexity(answers[:i] + answers[i + 1 :]) for i in range(9)]
    assert found["perplexity under the base"] == pytest.approx(parts(whole, rest).tolist())
    assert [math.isnan(value) for value in found["BLEU"]] == [True, False, False] * 3
    as_list = [[row["reference"]] if isinstance(row["reference"], str) else row["reference"] for row in rows]
    known = [(a.text, as_list[prompt], prompt) for prompt in range(9) for a in answers[prompt] if as_list[prompt]]
    expected = metrics.bleu([text for text, _, _ in known], [of for _, of, _ in known])
    assert np.nanmean(found["BLEU"]) == pytest.approx(expected)
    others = [[pair for pair in known if pair[2] != prompt] for prompt in range(9) if rows[prompt]["reference"]]
    rest = [metrics.bleu([text for text, _, _ in some], [of for _, of, _ in some]) for some in others]
    assert [value for value in found["BLEU"] if not math.isnan(value)] == pytest.approx(parts(expected, rest).tolist())


def test_the_interval_of_bleu_is_that_of_koehns_paired_bootstrap() -> None:
    generator = np.random.default_rng(6)
    references = [text or "none" for text in texts(generator, 120)]
    models = []
    for keep in (0.5, 0.7):
        kept = [[w for w in text.split() if generator.random() < keep] for text in references]
        models.append([" ".join(words) for words in kept])
    rows = [{"prompt": "say", "reference": text} for text in references]
    first, second = (np.array(pooled(rows, [[answer(text)] for text in model])["BLEU"]) for model in models)
    found = paired_difference(first, second)
    counts = [metrics.bleu_counts(model, references) for model in models]
    drawn = generator.integers(120, size=(1000, 120))
    scores = np.array([[metrics.bleu_of_counts(of[row].sum(axis=0)) for of in counts] for row in drawn])
    low, high = np.quantile(scores[:, 1] - scores[:, 0], [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.high == pytest.approx(high, abs=0.15 * (high - low))


def test_the_interval_of_distinct_1_covers_the_expected_difference_where_a_plain_bootstrap_does_not() -> None:
    generator = np.random.default_rng(7)
    cumulated = [np.cumsum(np.arange(1, 2001) ** -skew) for skew in (1.0, 1.15)]

    def sampled() -> list[list[np.ndarray]]:
        lengths = generator.integers(10, 30, size=60)
        return [[np.searchsorted(of, generator.random(size) * of[-1]) for size in lengths] for of in cumulated]

    def distinct(model: list[np.ndarray]) -> float:
        together = np.concatenate(model)
        return len(np.unique(together)) / len(together)

    def parts_of(model: list[np.ndarray]) -> np.ndarray:
        return parts(distinct(model), distinct_n_without([[" ".join(map(str, words))] for words in model], 1))

    expected = np.mean([distinct(after) - distinct(before) for before, after in (sampled() for _ in range(300))])
    covered, covered_plainly = 0, 0
    for trial in range(100):
        before, after = sampled()
        found = paired_difference(parts_of(before), parts_of(after), seed=trial, resamples=500)
        covered += found.low <= expected <= found.high
        drawn = generator.integers(60, size=(100, 60))
        plain = [distinct([after[i] for i in rows]) - distinct([before[i] for i in rows]) for rows in drawn]
        low, high = np.quantile(plain, [0.025, 0.975])
        covered_plainly += low <= expected <= high
    assert covered >= 90
    assert covered_plainly < 50, "a prompt that is drawn twice is not distinct"


def test_a_pooled_metric_is_compared_like_any_other_but_no_prompt_wins_or_loses() -> None:
    generator = np.random.default_rng(8)
    rows = [{"prompt": "say", "reference": text or "none"} for text in texts(generator, 40)]
    before = [[answer(text, 9.0)] for text in texts(generator, 40, skew=0.5)]
    after = [[answer(row["reference"], 3.0)] for row in rows]
    measured = measure(rows, {"sft": before, "aligned": after}, Scorers(None, {}, None, 0.5), 1)
    found = set_result(measured, prompts=40, seeds=1, pairs=[("sft", "aligned")])
    compared = found["comparisons"]["aligned - sft"]
    for metric in POOLED:
        means, of = found["metrics"][metric]["means"], compared[metric]
        assert of["difference"] == pytest.approx(means["aligned"] - means["sft"]), metric
        assert (of["wins"], of["ties"], of["losses"]) == (None, None, None)
        assert of["low"] < of["difference"] < of["high"]
    assert compared["BLEU"]["verdict"] == "better"
    assert compared["perplexity under the base"]["high"] < 0
    assert compared["perplexity under the base"]["verdict"] is None
    assert found["metrics"]["distinct-1"]["means"]["sft"] == pytest.approx(distinct_n([of[0].text for of in before], 1))
