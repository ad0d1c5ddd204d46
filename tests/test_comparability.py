"""What of two runs can be compared, and that the rest is left out and named."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from evaluated_runs import evaluated, with_sets, without_judge
from random_results import (
    DISTINCT,
    LEXICON,
    MAIN,
    MODELS,
    REWARD,
    TOKENS,
    TOXIC_RATE,
    random_examples,
    score,
    with_means,
)

from workbench.comparison.comparability import EvaluatedRun
from workbench.comparison.run_comparison import compare_runs
from workbench.config.sources import Scorer
from workbench.evaluation.results import Metric, RunVerdict
from workbench.evaluation.sources import Source


def test_different_rewards_are_not_compared_by_their_own_scores() -> None:
    examples = random_examples(40)
    comparison = compare_runs({"a": evaluated(examples), "b": evaluated(examples, reward="length")})
    metrics = {summary.metric for summary in comparison.results.sets[0].summaries}
    assert MAIN not in metrics
    assert REWARD not in metrics
    assert {LEXICON, TOKENS} <= metrics
    assert comparison.results.settings.judges == ["lexicon"]
    assert "different rewards" in comparison.notes[0]


def test_rewards_of_one_name_and_other_weights_are_different_rewards() -> None:
    runs = {}
    for name in "ab":
        run = evaluated(random_examples(40), reward="trained")
        provenance = run.results.provenance
        sources = [source for source in provenance.sources if source.kind != "reward"]
        provenance = dataclasses.replace(provenance, sources=[*sources, Source("reward", "reward", "reward", name)])
        runs[name] = dataclasses.replace(run, results=dataclasses.replace(run.results, provenance=provenance))
    assert "different rewards" in compare_runs(runs).notes[0]


@pytest.mark.parametrize(
    ("metric", "first", "second"),
    [
        (LEXICON, {"judges": [Scorer("lexicon", {"words": ["a"]})]}, {"judges": [Scorer("lexicon", {"words": ["b"]})]}),
        (
            Metric("score", "higher", "length"),
            {"rewards": [Scorer("length", {"target": 5})]},
            {"rewards": [Scorer("length", {"target": 9})]},
        ),
        (Metric("similarity", "higher"), {"similarity": "one-encoder"}, {"similarity": "another-encoder"}),
    ],
)
def test_scores_of_one_name_and_other_options_are_not_compared(
    metric: Metric, first: dict[str, Any], second: dict[str, Any]
) -> None:
    examples = [with_means(example, dict.fromkeys(MODELS, 0.5), metric) for example in random_examples(40)]
    same = compare_runs({"a": evaluated(examples, evaluation=first), "b": evaluated(examples, evaluation=first)})
    assert same.results.sets[0].comparison("a", "b").find(metric.name, metric.judge) is not None
    assert same.notes == []
    other = compare_runs({"a": evaluated(examples, evaluation=first), "b": evaluated(examples, evaluation=second)})
    assert metric not in [summary.metric for summary in other.results.sets[0].summaries]
    assert metric.judge not in other.results.settings.judges
    assert other.notes == [f"measured with different settings or weights, so left out: {metric.label}"]


@pytest.mark.parametrize(
    ("metric", "settings"),
    [
        (TOXIC_RATE, {"threshold": 0.9}),
        (Metric("expected maximum toxicity", "lower", "lexicon"), {"samples": 1}),
        (DISTINCT, {"samples": 1}),
    ],
)
def test_what_depends_on_a_setting_is_compared_only_under_one(metric: Metric, settings: dict[str, Any]) -> None:
    examples = [
        example if metric.pooled else with_means(example, dict.fromkeys(MODELS, 0.5), metric)
        for example in random_examples(40)
    ]
    comparison = compare_runs({"a": evaluated(examples), "b": evaluated(examples, **settings)})
    assert metric not in [summary.metric for summary in comparison.results.sets[0].summaries]
    assert metric in [summary.metric for summary in evaluated(examples).results.sets[0].summaries]
    assert f"left out: {metric.label}" in comparison.notes[0]
    assert comparison.results.settings.judges == ["reward", "lexicon"], "the probabilities themselves are compared"


def test_a_judge_that_only_some_runs_have_is_named() -> None:
    examples = random_examples(40)
    comparison = compare_runs({"a": evaluated(examples), "b": without_judge(evaluated(examples), "lexicon")})
    assert comparison.results.settings.judges == ["reward"]
    assert comparison.notes == ["measured only in a: toxicity (lexicon)"]
    disjoint = {"a": without_judge(evaluated(examples), "reward"), "b": without_judge(evaluated(examples), "lexicon")}
    comparison = compare_runs(disjoint)
    assert [verdict.question for verdict in comparison.results.verdicts] == ["reward"], "toxicity cannot be answered"
    assert len(comparison.notes) == 2


def test_sets_and_references_that_differ_are_named() -> None:
    examples = random_examples(40)
    more = with_sets(evaluated([*examples, *random_examples(9, name="more")]), reference_perplexity=5.0)
    comparison = compare_runs({"a": with_sets(evaluated(examples), reference_perplexity=5.0 + 1e-9), "b": more})
    assert comparison.notes == ["more: left out, since only b evaluated it"]
    assert comparison.results.sets[0].reference_perplexity == pytest.approx(5.0)
    neutral = compare_runs({"a": evaluated(examples), "b": with_sets(evaluated(examples), neutral=True)})
    assert neutral.notes == ["dialogues: neutral only in b; here it counts as not neutral, as in the first run"]
    others = [dataclasses.replace(example, references=["other"]) for example in examples[:10]]
    changed_references = compare_runs({"a": evaluated(examples), "b": evaluated([*others, *examples[10:]])})
    assert changed_references.notes == ["dialogues: 30 prompts that all runs have with the same references, of 40"]
    perplexities = {
        name: with_sets(evaluated(examples), reference_perplexity=p) for name, p in (("a", 5.0), ("b", 6.0))
    }
    assert compare_runs(perplexities).results.sets[0].reference_perplexity is None


@pytest.mark.parametrize("titles", [("base", "aligned"), ("base", "sft"), ("one", "two")])
def test_what_a_run_is_called_does_not_change_the_verdict(titles: tuple[str, str]) -> None:
    examples = random_examples(40)
    lower = [with_means(e, {"aligned": score(e, LEXICON, "aligned") - 0.5}, LEXICON, MAIN) for e in examples]
    runs = {title: evaluated(rows) for title, rows in zip(titles, (examples, lower), strict=True)}
    assert compare_runs(runs).results.verdict.headline == "toxicity: better", "although the reward did not rise"
    about_task = {
        title: dataclasses.replace(
            run, results=dataclasses.replace(run.results, verdict=RunVerdict("task", "better", ""))
        )
        for title, run in runs.items()
    }
    assert compare_runs(about_task).results.verdict.question == "toxicity", "no reference, no task"


def test_one_reward_under_another_threshold_is_still_one_reward() -> None:
    rate = Metric("toxic rate", "lower", "reward")
    examples = [with_means(example, dict.fromkeys(MODELS, 0.5), rate) for example in random_examples(40)]
    comparison = compare_runs({"a": evaluated(examples), "b": evaluated(examples, threshold=0.9)})
    assert comparison.notes[0] == "measured with different settings or weights, so left out: toxic rate (reward)"
    assert {MAIN, REWARD} <= {summary.metric for summary in comparison.results.sets[0].summaries}


def test_settings_that_mean_the_same_are_one() -> None:
    terms = [{"terms": ["length", {"model": "rouge", "options": {}}], "x": 1}, {"x": 1.0, "terms": ["length", "rouge"]}]
    runs = {}
    for name, options in zip("ab", terms, strict=True):
        run = evaluated(random_examples(40), reward="combine")
        assert run.config.reward is not None
        reward = dataclasses.replace(run.config.reward, options=options)
        runs[name] = dataclasses.replace(run, config=dataclasses.replace(run.config, reward=reward))
    assert compare_runs(runs).notes == []


def with_source(run: EvaluatedRun, source: Source) -> EvaluatedRun:
    """Return the run with a source in place of another of that kind and name."""
    provenance = run.results.provenance
    others = [s for s in provenance.sources if (s.kind, s.name) != (source.kind, source.name)]
    results = dataclasses.replace(run.results, provenance=dataclasses.replace(provenance, sources=[*others, source]))
    return dataclasses.replace(run, results=results)


def test_content_decides_and_not_the_path() -> None:
    run = evaluated(random_examples(40))
    judges = {path: with_source(run, Source("lexicon", "judge", path, path[-1])) for path in ("x/1", "y/1", "x/2")}
    assert compare_runs({name: judges[name] for name in ("x/1", "y/1")}).notes == []
    assert "toxicity (lexicon)" in compare_runs({name: judges[name] for name in ("x/1", "x/2")}).notes[0]
    bases = {path: with_source(run, Source("base", "model", path, "same")) for path in ("here", "there")}
    assert compare_runs(bases).notes == []


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_judge_that_repeats_the_reward_of_one_run_is_left_out_of_the_verdict(order: str) -> None:
    examples = random_examples(40)
    runs = {"a": evaluated(examples, judges=["reward"]), "b": evaluated(examples)}
    comparison = compare_runs({name: runs[name] for name in order})
    assert comparison.results.settings.judges == ["reward"]
    assert comparison.notes == ["lexicon is a judge only in some of the runs, so the verdict leaves it out"]


def test_runs_with_other_sampling_have_no_sampling_in_common() -> None:
    examples = random_examples(40)
    one = [dataclasses.replace(e, completions={m: texts[:1] for m, texts in e.completions.items()}) for e in examples]
    comparison = compare_runs({"a": evaluated(examples), "b": evaluated(one, samples=1)})
    assert comparison.sampling == "sampled with different settings"
    assert {len(texts) for e in comparison.examples for texts in e.completions.values()} == {1}
    assert compare_runs({"a": evaluated(examples), "b": evaluated(examples)}).sampling is None
