"""Metrics of all completions together: pseudovalues are the jackknife's, and intervals cover, whatever the metric."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from workbench.evaluation import metrics
from workbench.evaluation.completion_metrics import Scorers
from workbench.evaluation.corpus_metrics import CORPUS_METRICS, measure_corpus
from workbench.evaluation.generation import Completion
from workbench.evaluation.metrics.text_statistics import distinct_n, distinct_n_without
from workbench.evaluation.prompt_sets import row_references
from workbench.evaluation.results import Metric
from workbench.evaluation.scoring import compare, measure, summarize
from workbench.evaluation.statistics import jackknife_pseudovalues, paired_difference

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "slept", "all", "day"]


def texts(generator: np.random.Generator, rows: int, skew: float = 1.0) -> list[str]:
    """Return texts of up to 12 words; the greater the skew, the fewer different ones."""
    chances = np.arange(1, len(WORDS) + 1) ** -skew
    return [
        " ".join(generator.choice(WORDS, size=generator.integers(0, 13), p=chances / chances.sum()))
        for _ in range(rows)
    ]


def completion(text: str, nats: float = 1.0) -> Completion:
    """Return a completion of as many tokens as words."""
    return Completion(text, len(text.split()), False, 0.0, nats, None)


def pseudovalues(
    rows: list[dict], completions: list[list[Completion]], groups: list[str] | None = None
) -> dict[str, np.ndarray]:
    """Return the pseudovalues of every metric by its name."""
    measured = measure_corpus(completions, [row_references(row) for row in rows], groups)
    assert all(metric.pooled for metric in measured)
    return {metric.name: values for metric, values in measured.items()}


def test_the_pseudovalues_of_a_mean_are_its_rows() -> None:
    rows = np.random.default_rng(0).normal(size=20)
    without = (rows.sum() - rows) / 19
    np.testing.assert_allclose(jackknife_pseudovalues(rows.mean(), without), rows)


def test_pseudovalues_have_the_statistic_as_mean_and_the_jackknifes_standard_error() -> None:
    rows = np.random.default_rng(1).exponential(size=50)
    without = np.array([np.log(np.delete(rows, row).mean()) for row in range(50)])
    values = jackknife_pseudovalues(np.log(rows.mean()), without)
    assert values.mean() == pytest.approx(np.log(rows.mean()))
    jackknife = 49 / 50 * ((without - without.mean()) ** 2).sum()
    assert values.var(ddof=1) / 50 == pytest.approx(jackknife)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_without_each_row_is_that_of_the_others(n: int) -> None:
    generator = np.random.default_rng(n)
    rows = [texts(generator, 2) for _ in range(6)] + [["", ""], ["a b c a b c", "a b c"], ["never seen before", ""]]
    expected = [distinct_n([text for other in rows[:i] + rows[i + 1 :] for text in other], n) for i in range(len(rows))]
    assert distinct_n_without(rows, n) == pytest.approx(expected)
    assert distinct_n_without([["a b c"]], n) == [0.0]


def test_bleu_of_summed_counts_is_sacrebleus_of_the_same_rows() -> None:
    generator = np.random.default_rng(4)
    completions = [*texts(generator, 12), "", "the cat sat on a mat"]
    references = [[text or "none" for text in texts(generator, 1 + row % 3)] for row in range(14)]
    counts = metrics.bleu_counts(completions, references)
    assert metrics.bleu_of_counts(counts.sum(axis=0)) == pytest.approx(metrics.bleu(completions, references))
    for row in range(14):
        some = [text for index, text in enumerate(completions) if index != row]
        streams = [
            [known[i] if i < len(known) else None for known in references[:row] + references[row + 1 :]]
            for i in (0, 1, 2)
        ]
        expected = BLEU().corpus_score(some, streams).score
        assert metrics.bleu_of_counts(counts.sum(axis=0) - counts[row]) == pytest.approx(expected), row


def test_perplexity_and_bleu_are_those_of_all_samples_of_a_prompt_together() -> None:
    generator = np.random.default_rng(5)
    rows = [{"prompt": "say", "reference": texts} for texts in [None, "the cat sat on a mat", ["a mat", "the day"]] * 3]
    nats = (1.0, 4.0, 9.0)
    completions = [[completion(*pair) for pair in zip(texts(generator, 3), nats, strict=True)] for _ in rows]
    values = pseudovalues(rows, completions)
    assert set(values) == set(CORPUS_METRICS)

    def perplexity(some: list[list[Completion]]) -> float:
        every = [c for row in some for c in row]
        return math.exp(sum(c.base_nll for c in every) / sum(c.tokens for c in every))

    whole, rest = perplexity(completions), [perplexity(completions[:i] + completions[i + 1 :]) for i in range(9)]
    assert values["perplexity under the base"] == pytest.approx(jackknife_pseudovalues(whole, rest))
    assert [math.isnan(value) for value in values["BLEU"]] == [True, False, False] * 3
    as_list = [[row["reference"]] if isinstance(row["reference"], str) else row["reference"] for row in rows]
    known = [(c.text, as_list[prompt], prompt) for prompt in range(9) for c in completions[prompt] if as_list[prompt]]
    expected = metrics.bleu([text for text, _, _ in known], [references for _, references, _ in known])
    assert np.nanmean(values["BLEU"]) == pytest.approx(expected)
    others = [[pair for pair in known if pair[2] != prompt] for prompt in range(9) if rows[prompt]["reference"]]
    rest = [metrics.bleu([text for text, _, _ in some], [references for _, references, _ in some]) for some in others]
    counted = values["BLEU"][~np.isnan(values["BLEU"])]
    assert counted == pytest.approx(jackknife_pseudovalues(expected, rest))


def test_a_prompt_is_left_out_with_all_its_rows() -> None:
    generator = np.random.default_rng(9)
    rows = [{"prompt": "say", "reference": text or "none"} for text in texts(generator, 30)]
    completions = [[completion(text or "a", 2.0)] for text in texts(generator, 30)]
    groups = [f"prompt {row % 10}" for row in range(30)]
    values = pseudovalues(rows, completions, groups)
    for name, by_row in values.items():
        assert by_row == pytest.approx(np.tile(by_row[:10], 3)), f"{name}: its rows share a prompt's contribution"
    merged = [[completions[prompt + 10 * i][0] for i in range(3)] for prompt in range(10)]
    expected = pseudovalues(rows[:10], merged)["perplexity under the base"]
    assert values["perplexity under the base"][:10] == pytest.approx(expected)
    for n in (1, 2):
        rests = [
            distinct_n([completions[row][0].text for row in range(30) if row % 10 != prompt], n)
            for prompt in (None, *range(10))
        ]
        assert values[f"distinct-{n}"][:10] == pytest.approx(jackknife_pseudovalues(rests[0], rests[1:])), n
    scores = []
    for prompt in (None, *range(10)):
        some = [row for row in range(30) if row % 10 != prompt]
        scores.append(
            metrics.bleu([completions[row][0].text for row in some], [[rows[row]["reference"]] for row in some])
        )
    assert values["BLEU"][:10] == pytest.approx(jackknife_pseudovalues(scores[0], scores[1:]))
    unknown = [{"prompt": "say"}] * 2
    further = pseudovalues([*unknown, *rows], [completions[0]] * 2 + completions, ["none", "none", *groups])["BLEU"]
    assert further[2:] == pytest.approx(values["BLEU"]), "a prompt without a reference does not count"


def test_pseudovalues_of_prompts_with_different_numbers_of_rows_have_the_jackknifes_standard_error() -> None:
    generator = np.random.default_rng(10)
    numbers = np.repeat(np.arange(400), generator.integers(1, 6, size=400))
    without = generator.normal(loc=5.0, scale=0.1, size=400)
    values = jackknife_pseudovalues(5.0, without, numbers)
    assert values.mean() == pytest.approx(5.0)
    jackknife = math.sqrt(399 / 400 * ((without - without.mean()) ** 2).sum())
    interval = paired_difference(np.zeros(values.size), values, groups=numbers)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * jackknife, rel=0.05)


def test_the_interval_of_bleu_is_that_of_koehns_paired_bootstrap() -> None:
    generator = np.random.default_rng(6)
    references = [text or "none" for text in texts(generator, 120)]
    models = []
    for keep in (0.5, 0.7):
        shortened = [[w for w in text.split() if generator.random() < keep] for text in references]
        models.append([" ".join(words) for words in shortened])
    rows = [{"prompt": "say", "reference": text} for text in references]
    first, second = (pseudovalues(rows, [[completion(text)] for text in model])["BLEU"] for model in models)
    difference = paired_difference(first, second)
    counts = [metrics.bleu_counts(model, references) for model in models]
    drawn = generator.integers(120, size=(1000, 120))
    scores = np.array([[metrics.bleu_of_counts(rows[row].sum(axis=0)) for rows in counts] for row in drawn])
    low, high = np.quantile(scores[:, 1] - scores[:, 0], [0.025, 0.975])
    assert difference.low == pytest.approx(low, abs=0.15 * (high - low))
    assert difference.high == pytest.approx(high, abs=0.15 * (high - low))


def test_the_interval_of_distinct_1_covers_the_expected_difference_where_a_plain_bootstrap_does_not() -> None:
    generator = np.random.default_rng(7)
    cumulated = [np.cumsum(np.arange(1, 2001) ** -skew) for skew in (1.0, 1.15)]

    def sampled() -> list[list[np.ndarray]]:
        lengths = generator.integers(10, 30, size=60)
        return [
            [np.searchsorted(chances, generator.random(size) * chances[-1]) for size in lengths]
            for chances in cumulated
        ]

    def distinct(model: list[np.ndarray]) -> float:
        together = np.concatenate(model)
        return len(np.unique(together)) / len(together)

    def pseudovalues_of(model: list[np.ndarray]) -> np.ndarray:
        return jackknife_pseudovalues(
            distinct(model), distinct_n_without([[" ".join(map(str, words))] for words in model], 1)
        )

    expected = np.mean([distinct(after) - distinct(before) for before, after in (sampled() for _ in range(300))])
    covered, covered_plainly = 0, 0
    for trial in range(100):
        before, after = sampled()
        difference = paired_difference(pseudovalues_of(before), pseudovalues_of(after), seed=trial, resamples=500)
        covered += difference.low <= expected <= difference.high
        drawn = generator.integers(60, size=(100, 60))
        plain = [distinct([after[i] for i in rows]) - distinct([before[i] for i in rows]) for rows in drawn]
        low, high = np.quantile(plain, [0.025, 0.975])
        covered_plainly += low <= expected <= high
    assert covered >= 90
    assert covered_plainly < 50, "a prompt that is drawn twice is not distinct"


def test_a_pooled_metric_is_compared_like_any_other_but_no_prompt_rises_or_falls() -> None:
    generator = np.random.default_rng(8)
    references = [[text or "none"] for text in texts(generator, 40)]
    rows = [{"prompt": "say"}] * 40
    before = [[completion(text, 9.0)] for text in texts(generator, 40, skew=0.5)]
    after = [[completion(known[0], 3.0)] for known in references]
    scores = measure(rows, references, {"sft": before, "aligned": after}, Scorers(None, {}, {}, None, 0.5), 1)
    means = {summary.metric.name: summary.means for summary in summarize(scores)}
    differences = {d.metric.name: d for d in compare(scores, "sft", "aligned").differences}
    for name in CORPUS_METRICS:
        difference = differences[name]
        assert difference.difference == pytest.approx(means[name]["aligned"] - means[name]["sft"]), name
        assert (difference.rose, difference.same, difference.fell) == (None, None, None)
        assert difference.low < difference.difference < difference.high
    assert differences["BLEU"].verdict == "better"
    assert differences["perplexity under the base"].high < 0
    assert differences["perplexity under the base"].verdict is None
    assert means["distinct-1"]["sft"] == pytest.approx(distinct_n([row[0].text for row in before], 1))


def test_distinct_n_does_not_depend_on_how_often_a_completion_was_copied() -> None:
    texts = ["a b c", "a b d", "e f"]
    once, thrice = ([[completion(text)] * count for text in texts] for count in (1, 3))
    for name in ("distinct-1", "distinct-2"):
        metric = Metric(name, None, pooled=True)
        expected = measure_corpus(once, [[]] * 3)[metric]
        np.testing.assert_allclose(measure_corpus(thrice, [[]] * 3)[metric], expected, rtol=1e-12)
