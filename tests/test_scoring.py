"""Means, standard deviations over seeds and paired comparisons are those of the completions, whichever are missing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from workbench.errors import UserError
from workbench.evaluation.completion_metrics import METRICS, SAMPLE_SET_METRICS, TOXICITY_METRICS, Scorers
from workbench.evaluation.corpus_metrics import CORPUS_METRICS
from workbench.evaluation.generation import Completion
from workbench.evaluation.metrics.text_statistics import distinct_n
from workbench.evaluation.prompt_sets import row_references
from workbench.evaluation.results import Metric, Scores, SetResult
from workbench.evaluation.scoring import compare, measure, prompt_toxicity, summarize, summarize_prompt
from workbench.evaluation.verdicts import prompts_needed

ROWS = [
    {"prompt": "say one two", "prompt_ids": [1], "reference": "one two"},
    {"prompt": "say", "prompt_ids": [1], "reference": ["no match", "three four"]},
    {"prompt": "say", "prompt_ids": [1], "reference": None},
]


def completion(text: str, **values: float | bool | None) -> Completion:
    """Return a completion of as many tokens as words, with 2 nats per token under the base."""
    tokens = len(text.split())
    made = Completion(text, tokens, False, kl=0.5, base_nll=2.0 * tokens, token_log_ratios=None)
    return dataclasses.replace(made, **values)


def rude(texts: list[str]) -> list[float]:
    """Judge texts by the fraction of words that are "rude"."""
    return [text.split().count("rude") / max(len(text.split()), 1) for text in texts]


SCORERS = Scorers(
    lambda prompts, completions, **columns: [float(len(text)) for text in completions], {"rude": rude}, {}, None, 0.5
)


def scores_of(completions: dict[str, list[list[Completion]]], seeds: int = 1, rows: list = ROWS) -> Scores:
    """Return every metric of every model."""
    return measure(rows, [row_references(row) for row in rows], completions, SCORERS, seeds)


def result(completions: dict[str, list[list[Completion]]], seeds: int = 1, rows: list = ROWS) -> SetResult:
    """Return the result on a set, with each further model compared with the first."""
    scores, (first, *others) = scores_of(completions, seeds, rows), completions
    comparisons = [compare(scores, first, other) for other in others]
    return SetResult("set", len(rows), False, 0, None, summarize(scores), comparisons)


def means(measured: SetResult, name: str, judge: str | None = None) -> dict[str, float | None]:
    """Return the means of a metric by model."""
    summary = measured.summary(name, judge)
    assert summary is not None, name
    return summary.means


def test_every_metric_is_the_mean_over_the_prompts_that_have_it() -> None:
    before = [[completion("one two")], [completion("rude rude")], [completion("")]]
    after = [[completion("one")], [completion("three four", truncated=True)], [completion("a b a b a b")]]
    measured = result({"sft": before, "aligned": after})
    assert means(measured, "toxicity", "rude") == {"sft": pytest.approx(1 / 3), "aligned": 0.0}
    assert means(measured, "toxic rate", "rude") == {"sft": pytest.approx(1 / 3), "aligned": 0.0}
    assert means(measured, "ROUGE-1")["sft"] == pytest.approx(0.5), "over the two rows with a reference"
    assert means(measured, "ROUGE-1")["aligned"] == pytest.approx((2 / 3 + 1) / 2), "the best of several references"
    assert means(measured, "reward")["sft"] == pytest.approx((7 + 9 + 0) / 3)
    assert means(measured, "perplexity under the base")["sft"] == pytest.approx(math.e**2)
    assert means(measured, "empty rate") == {"sft": pytest.approx(1 / 3), "aligned": 0.0}
    assert means(measured, "truncated rate")["aligned"] == pytest.approx(1 / 3)
    assert means(measured, "copied rate")["sft"] == pytest.approx(1 / 3)
    assert means(measured, "repeated words")["aligned"] == pytest.approx((0 + 0 + 4 / 6) / 3)
    assert means(measured, "repetition")["aligned"] == pytest.approx((0 + 0 + 2 / 4) / 3)
    compared = measured.comparison("sft", "aligned")
    assert compared.find("ROUGE-1").prompts == 2
    toxicity = compared.find("toxicity", "rude")
    assert toxicity.difference == pytest.approx(-1 / 3)
    assert toxicity.verdict == "no detectable change", "three prompts are no evidence"
    assert (toxicity.rose, toxicity.same, toxicity.fell) == (0, 2, 1)
    assert compared.find("tokens").verdict is None


def test_directions_are_those_of_the_tables_whoever_judges() -> None:
    rows = [[completion("one two"), completion("rude rude")]] * 3
    metrics = {(metric.name, metric.judge): metric for metric in scores_of({"base": rows})}
    expected = {name: definition.direction for name, definition in METRICS.items()}
    expected |= {name: definition.direction for name, definition in CORPUS_METRICS.items()}
    expected |= dict.fromkeys(SAMPLE_SET_METRICS)
    for name, direction in expected.items():
        if name != "similarity":
            assert metrics[name, None] == Metric(name, direction, pooled=name in CORPUS_METRICS)
    for name in TOXICITY_METRICS:
        assert metrics[name, "rude"] == Metric(name, "lower", "rude")
    assert len(metrics) == len(expected) - 1 + len(TOXICITY_METRICS)


def test_similarity_is_measured_where_there_is_an_encoder_and_a_reference() -> None:
    scorers = dataclasses.replace(SCORERS, similarity=lambda texts, references: [float(len(r)) for r in references])
    rows = {"base": [[completion("one two")]] * 3}
    scores = measure(ROWS, [row_references(row) for row in ROWS], rows, scorers, 1)
    values = scores[Metric("similarity", "higher")]["base"]
    np.testing.assert_array_equal(values, [[[1.0]], [[2.0]], [[math.nan]]])
    none = measure(ROWS[2:], [[]], {"base": [[completion("one")]]}, scorers, 1)
    assert not {"similarity", "ROUGE-1", "BLEU"} & {metric.name for metric in none}


def test_the_toxicity_of_a_row_is_that_of_its_worst_text_by_its_harshest_judge() -> None:
    rows = [{"prompt": "rude kind"}, {"prompt": "kind", "reference": ["kind", "rude"]}, {"prompt": "", "reference": ""}]
    references = [row_references(row) for row in rows]
    mild = {"mild": lambda texts: [0.25] * len(texts)}
    for judges, expected in (
        ({"rude": rude}, [(0.5, 0.0), (0.0, 1.0), (0.0, 0.0)]),
        ({"rude": rude} | mild, [(0.5, 0.0), (0.25, 1.0), (0.25, 0.0)]),
        ({}, [(0.0, 0.0)] * 3),
    ):
        assert prompt_toxicity(rows, references, judges) == expected


def test_a_model_with_another_vocabulary_has_no_kl_and_no_perplexity() -> None:
    shared = [[completion("one")]] * 3
    other = [[completion("one", kl=None, base_nll=None)]] * 3
    measured = result({"base": shared, "other": other})
    for name in ("KL to reference, nats", "perplexity under the base"):
        assert set(means(measured, name)) == {"base"}
    assert measured.comparison("base", "other").find("KL to reference, nats") is None
    assert measured.comparison("base", "other").find("tokens") is not None


def test_several_seeds_give_the_deviation_of_their_means_and_the_worst_of_each_seeds_samples() -> None:
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 3, size=(5, 2, 3))  # prompts, seeds, samples: rude words of two
    flat = [completion(" ".join(["rude"] * count + ["kind"] * (2 - count))) for count in counts.ravel()]
    by_prompt = [flat[first : first + 6] for first in range(0, 30, 6)]
    rows = [{"prompt": "say", "prompt_ids": [1]}] * 5
    measured = result({"base": by_prompt, "same": by_prompt}, seeds=2, rows=rows)
    probabilities = counts / 2
    toxicity = measured.summary("toxicity", "rude")
    assert toxicity.means["base"] == pytest.approx(probabilities.mean())
    assert toxicity.seed_stds["base"] == pytest.approx(probabilities.mean(axis=(0, 2)).std(ddof=1))
    assert means(measured, "expected maximum toxicity", "rude")["base"] == pytest.approx(
        probabilities.max(axis=2).mean()
    )
    any_toxic = (probabilities >= 0.5).any(axis=2)
    assert means(measured, "toxicity probability", "rude")["base"] == pytest.approx(any_toxic.mean())
    for name, by_seed in (
        ("expected maximum toxicity", probabilities.max(axis=2)),
        ("toxicity probability", any_toxic),
    ):
        deviation = by_seed.mean(axis=0).std(ddof=1)
        assert measured.summary(name, "rude").seed_stds["base"] == pytest.approx(deviation), name
    assert measured.summary("distinct-2").seed_stds["base"] is not None
    same = measured.comparison("base", "same").find("toxicity", "rude")
    assert (same.rose, same.same, same.fell) == (0, 5, 0)


def test_scores_are_arrays_of_prompts_seeds_and_samples_with_the_seeds_in_order() -> None:
    texts = [[f"{'x ' * (4 * prompt + sample)}" for sample in range(1, 5)] for prompt in range(3)]
    scores = scores_of({"base": [[completion(text) for text in row] for row in texts]}, seeds=2)
    tokens = scores[Metric("tokens")]["base"]
    np.testing.assert_array_equal(tokens, np.arange(1, 13).reshape(3, 2, 2))
    assert scores[Metric("expected maximum toxicity", "lower", "rude")]["base"].shape == (3, 2, 1)
    assert scores[Metric("distinct-1", pooled=True)]["base"].shape == (3, 2, 1)


def test_a_corpus_metric_of_a_seed_is_that_of_its_own_samples() -> None:
    by_prompt = [["a a", "b a", "c d", f"e {prompt}"] for prompt in range(3)]  # two seeds of two samples
    scores = scores_of({"base": [[completion(text) for text in texts] for texts in by_prompt]}, seeds=2)
    values = scores[Metric("distinct-1", pooled=True)]["base"]
    for seed in (0, 1):
        by_sample = [[row[2 * seed + sample] for row in by_prompt] for sample in (0, 1)]
        assert values[:, seed].mean() == pytest.approx(np.mean([distinct_n(texts, 1) for texts in by_sample]))


def test_a_prompt_is_compared_by_the_mean_of_all_its_samples() -> None:
    before = [[completion("one"), completion("one two"), completion("a b c"), completion("")]] * 3
    after = [[completion("one"), completion("one two three"), completion("a b c d e"), completion("")]] * 3
    tokens = result({"sft": before, "aligned": after}, seeds=2).comparison("sft", "aligned").find("tokens")
    assert (tokens.mean_before, tokens.mean_after) == (6 / 4, 9 / 4)
    assert (tokens.difference, tokens.rose) == (3 / 4, 3)


def test_one_sample_has_no_worst_one_and_one_seed_no_deviation() -> None:
    measured = result({"base": [[completion("one")]] * 3, "same": [[completion("one")]] * 3})
    assert measured.summary("expected maximum toxicity", "rude") is None
    assert measured.summary("toxicity", "rude").seed_stds is None


def test_rows_that_share_a_prompt_are_one_prompt_where_they_have_the_metric() -> None:
    rows = [{"prompt": "say", "prompt_ids": [1], "reference": text} for text in ["one two", "three", None] * 20]
    words = [["one", "two", "rude", "three four"][index % 4] for index in range(20)]
    before = [[completion(words[index // 3])] for index in range(60)]
    after = [[completion(f"{words[index // 3]} one")] for index in range(60)]
    prompts = [f"prompt {index // 3}" for index in range(60)]
    references = [row_references(row) for row in rows]
    scores = measure(rows, references, {"sft": before, "aligned": after}, SCORERS, 1, prompts)
    single = measure(rows[::3], references[::3], {"sft": before[::3], "aligned": after[::3]}, SCORERS, 1)
    compared, alone = compare(scores, "sft", "aligned", prompts), compare(single, "sft", "aligned")
    for name, judge in (("tokens", None), ("toxicity", "rude")):
        repeated, expected = compared.find(name, judge), alone.find(name, judge)
        assert (repeated.prompts, repeated.rose) == (20, 3 * expected.rose)
        assert (repeated.low, repeated.high) == pytest.approx((expected.low, expected.high)), name
    assert compared.find("toxicity", "rude").prompts_needed == alone.find("toxicity", "rude").prompts_needed
    assert compared.find("ROUGE-L").prompts == compared.find("BLEU").prompts == 20
    assert compared.find("ROUGE-L").rose + compared.find("ROUGE-L").same + compared.find("ROUGE-L").fell == 40
    assert compared.find("toxicity", "rude").verdict == "no detectable change", "20 prompts, not 60"
    rouge = [scores[Metric("ROUGE-L", "higher")][title].ravel() for title in ("sft", "aligned")]
    rows_with = np.isfinite(rouge[0])
    expected_count = prompts_needed(*(values[rows_with] for values in rouge), groups=np.array(prompts)[rows_with])
    assert compared.find("ROUGE-L").prompts_needed == expected_count
    wider = compare(scores, "sft", "aligned", prompts, comparisons=7).find("toxicity", "rude")
    assert wider.low <= compared.find("toxicity", "rude").low
    assert wider.high > compared.find("toxicity", "rude").high
    assert wider.prompts_needed > compared.find("toxicity", "rude").prompts_needed


def test_one_prompt_has_no_interval() -> None:
    measured = result({"base": [[completion("one")]], "after": [[completion("two words")]]}, rows=ROWS[:1])
    tokens = measured.comparison("base", "after").find("tokens")
    assert (tokens.low, tokens.high, tokens.excludes_zero) == (None, None, False)


def test_a_prompt_has_the_metrics_of_its_own_samples_and_none_of_several_prompts() -> None:
    rows = [[completion("one"), completion("rude rude")], [completion("a"), completion("b")], [completion("c")] * 2]
    scores = scores_of({"base": rows})
    summaries = {summary.metric.name: summary for summary in summarize_prompt(scores, 0, samples=2)}
    assert summaries["toxicity"].means == {"base": 0.5}
    assert summaries["tokens"].means == {"base": 1.5}
    assert summaries["expected maximum toxicity"].means == {"base": 1.0}
    assert summaries["toxicity probability"].means == {"base": 1.0}
    assert not {"distinct-1", "BLEU"} & summaries.keys()
    without_reference = {summary.metric.name: summary for summary in summarize_prompt(scores, 2, samples=2)}
    assert without_reference["ROUGE-1"].means == {"base": None}


@pytest.mark.parametrize(
    ("value", "expected"), [("a", ["a"]), (["a", "b"], ["a", "b"]), (None, []), ("", []), (" ", []), ([], [])]
)
def test_a_row_has_no_reference_or_one_or_several(value: object, expected: list[str]) -> None:
    assert row_references({"reference": value}) == expected
    assert row_references({}) == []


@pytest.mark.parametrize("value", [3, [1, "a"], {"a": 1}])
def test_a_reference_of_another_type_is_one_line(value: object) -> None:
    with pytest.raises(UserError, match="reference must be a string or a list of strings, found "):
        row_references({"reference": value})
