"""Runs beside each other: paired differences on common prompts, and what must not be compared is not."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated_runs import changed, evaluated
from random_results import (
    LEXICON,
    TOKENS,
    random_examples,
    random_results,
    score,
)

from workbench.compare import main
from workbench.comparison.run_comparison import compare_runs
from workbench.config.parsing import dump, parse
from workbench.errors import UserError
from workbench.evaluation.results_files import read_examples, write_evaluation
from workbench.evaluation.statistics import paired_difference

LEXICON_SCORE: dict[str, Any] = {"metric": "toxicity", "judge": "lexicon", "means": {}}


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
    assert (difference.prompts, difference.same, difference.low) == (1, 40, None)
    assert comparison.notes == []


def test_rows_that_share_a_prompt_count_once_and_every_pair_shares_the_error() -> None:
    examples = [dataclasses.replace(e, prompt=f"Prompt {e.index // 3}", references=[]) for e in random_examples(99)]
    runs = {name: evaluated(changed(examples, TOKENS, by)) for name, by in (("a", 0.0), ("b", 1.0), ("c", 2.0))}
    for titles, comparisons in ((["a", "b"], 1), (["a", "b", "c"], 3)):
        results = compare_runs({title: runs[title] for title in titles}).results
        assert results.settings.comparisons == comparisons
        (result,) = results.sets
        assert (result.prompts, result.repeated_rows, result.size) == (33, 66, "33 prompts (99 rows)")
        before, after = (
            [score(example, TOKENS, "aligned") for example in runs[title].examples] for title in ("a", "b")
        )
        labels = [example.index // 3 for example in examples]
        expected = paired_difference(before, after, groups=labels, comparisons=comparisons)
        difference = result.comparison("a", "b").find("tokens")
        assert difference is not None
        assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    fewer = {"a": runs["a"], "b": evaluated(examples[3:])}
    assert compare_runs(fewer).notes == [
        "dialogues: 32 prompts (96 rows) that all runs have with the same references, of 99"
    ]


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


def test_several_runs_are_one_table_on_the_page_and_on_the_terminal(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("runs/two", "runs/three")
    main([*folders[:2], "runs/three", "--output", "page.html"])
    table = re.search(r"<caption>dialogues: 40 prompts.*?</table>", Path("page.html").read_text(encoding="utf-8"))
    assert table is not None
    assert "difference from one, 95 % for 3 comparisons together" in table[0]
    assert re.findall(r'<th scope="row">(.*?)</th>', table[0]) == ["one", "two", "three"]
    lines = capsys.readouterr().out.splitlines()
    (heading,) = [index for index, line in enumerate(lines) if line.startswith("dialogues: 40 prompts")]
    rows = [line.split()[0] for line in lines[heading:] if re.match(r"(one|two|three) +-?\d", line)]
    assert rows == ["one", "two", "three"]
    assert max(map(len, lines)) <= 80


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
        ({"prompt_toxicity": 10**400}, "too large"),
        ({"prompt_toxicity": float("nan")}, "nan is not a finite number"),
        ({"index": 0.5}, "0.5 is not of type int"),
        ({"token_log_ratios": [["a"]]}, "zip"),
        ({"set": "elsewhere"}, "4 of 5 rows of dialogues"),
        ({"unknown": 1}, "unknown field unknown"),
        (None, "4 of 5 rows of dialogues"),
    ],
)
def test_damaged_completions_are_one_line(changes: dict[str, Any] | None, reason: str, folders: list[str]) -> None:
    examples = random_examples(5)
    results = random_results(examples)
    write_evaluation(Path("."), results, examples)
    first, *others = Path("completions.jsonl").read_text(encoding="utf-8").splitlines()
    damaged = [] if changes is None else [json.dumps(json.loads(first) | changes)]
    Path("completions.jsonl").write_text("\n".join([*damaged, *others]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"completions\.jsonl: cannot be read: .*{reason}.*--force evaluation"):
        read_examples(Path("completions.jsonl"), results)


@pytest.mark.parametrize("line", ["{", '{"step": "one"}', "3", "\\xff", "[" * 9999])
def test_a_damaged_log_is_one_line(line: str, folders: list[str]) -> None:
    Path("runs/two/ppo/metrics.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=r"runs/two.*metrics\.jsonl.* corrupt"):
        main(folders[:2])


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
