"""Runs beside each other: paired differences on common prompts, and what must not be compared is not."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_results import (
    DISTINCT,
    LEXICON,
    MAIN,
    MODELS,
    REWARD,
    TOKENS,
    TOXIC_RATE,
    random_examples,
    random_results,
    score,
    with_means,
)

from workbench.config.parsing import dump, parse
from workbench.config.schema import Config, EvaluationConfig, PolicyConfig, PromptSet, RewardConfig, Scorer
from workbench.errors import UserError
from workbench.evaluation.comparability import EvaluatedRun
from workbench.evaluation.results import Example, Metric, RunVerdict, Source, Summary
from workbench.evaluation.results_files import read_examples, write_evaluation
from workbench.evaluation.run_comparison import compare_runs
from workbench.evaluation.statistics import paired_difference
from workbench.report.compare import main

LEXICON_SCORE: dict[str, Any] = {"metric": "toxicity", "judge": "lexicon", "means": {}}


def changed(examples: list[Example], metric: Metric, by: float) -> list[Example]:
    """Return the examples with another value of a metric for the aligned model."""
    return [
        dataclasses.replace(
            example,
            completions=example.completions | {"aligned": ["another text"] * 2},
            scores=[
                Summary(s.metric, s.means | {"aligned": s.means["aligned"] + by * index / 20}, None)
                if s.metric == metric
                else s
                for s in example.scores
            ],
        )
        for index, example in enumerate(examples)
    ]


def evaluated(
    examples: list[Example], reward: str = "toxicity", evaluation: dict[str, Any] | None = None, **settings: Any
) -> EvaluatedRun:
    """Return a run whose reward is of that name, with these settings of the evaluation."""
    results = random_results(examples)
    settings_of_run = dataclasses.replace(results.settings, reward=reward, **settings)
    scorers = {"judges": [Scorer("lexicon", {"words": ["rude"]})]}
    config = Config(
        "run",
        PolicyConfig("toy:t5"),
        EvaluationConfig({name: PromptSet("x.jsonl") for name in "ab"}, **scorers | (evaluation or {})),
        reward=RewardConfig(model=reward),
    )
    return EvaluatedRun(config, dataclasses.replace(results, settings=settings_of_run), examples)


def without_judge(run: EvaluatedRun, judge: str) -> EvaluatedRun:
    """Return the run as if a judge had not been configured."""
    examples = [
        dataclasses.replace(example, scores=[s for s in example.scores if s.metric.judge != judge])
        for example in run.examples
    ]
    judges = [name for name in run.results.settings.judges if name != judge]
    return evaluated(examples, judges=judges)


def with_sets(run: EvaluatedRun, **changes: Any) -> EvaluatedRun:
    """Return the run with other fields in each set of its results."""
    sets = [dataclasses.replace(result, **changes) for result in run.results.sets]
    return dataclasses.replace(run, results=dataclasses.replace(run.results, sets=sets))


def test_the_difference_is_that_of_the_aligned_models_paired_by_prompt() -> None:
    first = random_examples(40)
    second = changed(first, LEXICON, -0.7)
    comparison = compare_runs({"one": evaluated(first), "two": evaluated(second[::-1])})
    difference = comparison.results.sets[0].comparison("one", "two").find("toxicity", "lexicon")
    before, after = ([score(example, LEXICON, "aligned") for example in rows] for rows in (first, second))
    expected = paired_difference(before, after)
    assert difference is not None
    assert (difference.mean_before, difference.mean_after) == pytest.approx((np.mean(before), np.mean(after)))
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert (difference.fell, difference.same) == (39, 1), "the order of a file does not matter"
    assert comparison.examples[3].completions == {"one": first[3].completions["aligned"], "two": ["another text"] * 2}
    assert comparison.notes == []


def test_every_two_runs_are_compared_the_last_with_the_first_at_the_top() -> None:
    examples = random_examples(40)
    runs = {name: evaluated(changed(examples, TOKENS, by)) for name, by in (("a", 0.0), ("b", 1.0), ("c", 2.0))}
    (result,) = compare_runs(runs).results.sets
    assert [(c.before, c.after) for c in result.comparisons] == [("a", "c"), ("a", "b"), ("b", "c")]


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
    assert other.notes == [f"measured with different settings, so left out: {metric.label}"]


@pytest.mark.parametrize(
    ("metric", "settings"),
    [
        (TOXIC_RATE, {"threshold": 0.9}),
        (Metric("worst toxicity", "lower", "lexicon"), {"samples": 1}),
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
    assert comparison.notes == ["toxicity according to lexicon was measured only in a"]
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


def test_only_common_prompts_count_and_it_is_said() -> None:
    examples = random_examples(40)
    comparison = compare_runs({"a": evaluated(examples), "b": evaluated(examples[5:])})
    (result,) = comparison.results.sets
    assert result.prompts == len(comparison.examples) == 35
    assert not [summary for summary in result.summaries if summary.metric.pooled], "measured on other prompts"
    assert comparison.notes == ["dialogues: 35 prompts that all runs have with the same references, of 40"]


def test_a_repeated_row_is_paired_with_its_own_repetition() -> None:
    examples = [dataclasses.replace(example, prompt="same", references=[]) for example in random_examples(40)]
    comparison = compare_runs({"a": evaluated(examples), "b": evaluated(examples)})
    difference = comparison.results.sets[0].comparison("a", "b").find("toxicity", "lexicon")
    assert difference is not None
    assert (difference.prompts, difference.same) == (40, 40)
    assert comparison.notes == []


def test_other_sampling_settings_are_said() -> None:
    examples = random_examples(40)
    comparison = compare_runs({"a": evaluated(examples), "b": evaluated(examples, temperature=0.5)})
    assert [note for note in comparison.notes if "evaluation.temperature" in note and "b 0.5" in note]


def test_runs_without_a_common_prompt_are_refused() -> None:
    with pytest.raises(UserError, match=r"no prompt in common \(a: dialogues; b: elsewhere\)"):
        compare_runs({"a": evaluated(random_examples(9)), "b": evaluated(random_examples(9, name="elsewhere"))})


@pytest.fixture
def folders(tmp_path: Path, in_project: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two evaluated runs that differ in the reward and the steps, and one that is not evaluated."""
    config, _ = parse(["--config", "recipes/configs/quickstart.yaml"])
    assert config.ppo is not None
    for name, by, steps in (("one", 0.0, 40), ("two", -0.7, 80)):
        run = evaluated(changed(random_examples(40), LEXICON, by), reward=name)
        folder = tmp_path / "runs" / name
        (folder / "evaluation").mkdir(parents=True)
        (folder / "ppo").mkdir()
        write_evaluation(folder / "evaluation", run.results, run.examples)
        (folder / "evaluation" / "stage.json").write_text("{}")
        other = dataclasses.replace(config, name=name, ppo=dataclasses.replace(config.ppo, steps=steps))
        (folder / "config.yaml").write_text(dump(other))
        lines = [{"step": step, "objective/kl": float(step)} for step in (1, 2)]
        (folder / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "runs" / "new").mkdir()
    (tmp_path / "runs" / "new" / "config.yaml").write_text(dump(config))
    monkeypatch.chdir(tmp_path)
    return ["runs/one", "runs/two", "runs/new"]


def test_the_page_shows_runs_settings_curves_and_examples(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*folders[:2], "--output", "page.html"])
    document = Path("page.html").read_text(encoding="utf-8")
    assert re.search(r"ppo\.steps.*?40.*?80", document)
    assert "policy.model" not in document, "only what differs is listed"
    figure = re.search(r"PPO: KL to the reference, nats per response</figcaption>.*?</figure>", document)
    assert figure is not None
    assert re.findall(r"</i>(.*?)</span>", figure[0]) == ["one", "two"]
    assert "another text" in document
    printed = capsys.readouterr().out
    assert "toxicity: better" in printed
    assert "page  page.html" in printed


def test_examples_are_read_as_they_were_written(folders: list[str]) -> None:
    examples = random_examples(5, prompt="one\u2028two\x85three")
    results = random_results(examples)
    write_evaluation(Path("."), results, examples)
    assert read_examples(Path("completions.jsonl"), results) == examples
    with pytest.raises(UserError, match=r"nothing\.jsonl: missing"):
        read_examples(Path("nothing.jsonl"), results)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"completions": {"base": ["x", "x"]}}, r"prompt 0 of dialogues: completions of"),
        ({"completions": []}, "is not of type Mapping"),
        ({"completions": {"base": [], "sft": [], "aligned": []}}, "not 2 of each of base, sft, aligned"),
        ({"completions": {"base": ["x", None], "sft": ["x", "x"], "aligned": ["x", "x"]}}, "None is not of type str"),
        ({"references": None}, "None is not of type list"),
        ({"scores": {}}, "is not of type list"),
        ({"scores": []}, "prompt 0 of dialogues: no scores"),
        (
            {"scores": [{"metric": "toxicity", "judge": "lexicon", "means": {"base": "high"}}]},
            "'high' is not of type float",
        ),
        ({"scores": [{"metric": "toxicity", "judge": "lexicon", "means": {"base": None}}]}, "no scores"),
        ({"scores": [{"metric": "toxicity", "judge": "someone", "means": {}}]}, "someone"),
        ({"prompt_toxicity": True}, "True is not of type float"),
        ({"prompt_toxicity": float("nan")}, "nan is not a finite number"),
        ({"index": 0.5}, "0.5 is not of type int"),
        ({"token_log_ratios": [["a"]]}, "zip"),
        ({"set": "elsewhere"}, "4 of 5 prompts of dialogues"),
        ({"unknown": 1}, "unknown field unknown"),
        (None, "4 of 5 prompts of dialogues"),
    ],
)
def test_a_damaged_file_is_one_line(changes: dict[str, Any] | None, reason: str, folders: list[str]) -> None:
    examples = random_examples(5)
    results = random_results(examples)
    write_evaluation(Path("."), results, examples)
    first, *others = Path("completions.jsonl").read_text(encoding="utf-8").splitlines()
    damaged = [] if changes is None else [json.dumps(json.loads(first) | changes)]
    Path("completions.jsonl").write_text("\n".join([*damaged, *others]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"completions\.jsonl: cannot be read: .*{reason}.*--force evaluation"):
        read_examples(Path("completions.jsonl"), results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/one"], "runs/one: name two or more different run folders"),
        (["runs/one", "runs/../runs/one"], "name two or more different run folders"),
        (["runs/one", "runs/new"], r"runs/new: no finished evaluation \(stage.json is missing\)"),
        (["runs/one", "elsewhere"], r"elsewhere: no finished evaluation \(config.yaml is missing\)"),
        (["runs/one", "runs/two", "--output", "nowhere/page.html"], "nowhere"),
        (["runs/one", "runs/two", "--outptu", "x"], "did you mean --output"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, folders: list[str]) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)
