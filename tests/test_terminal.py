"""The result on a terminal: it fits, it shows what decides, and nothing in it is markup."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from random_results import random_examples, random_results, with_set
from rich.console import Console
from typed_results import make_difference, make_results, make_set

from workbench.config.parsing import parse
from workbench.evaluation.completion_metrics import METRICS, SAMPLE_SET_METRICS, TOXICITY_METRICS
from workbench.evaluation.corpus_metrics import CORPUS_METRICS
from workbench.evaluation.glossary import GROUPS, MEANINGS
from workbench.evaluation.results import (
    CATCHPHRASE,
    FLUENCY,
    FLUENCY_OUTLIERS,
    PROMPT_TOKENS,
    SCORE,
    SECONDS,
    TEXT_NLL,
    TEXT_PERPLEXITY,
    TOKENS_PER_SECOND,
    Guard,
    Metric,
    Results,
    RunVerdict,
)
from workbench.report.terminal import next_steps, print_results, short_titles
from workbench.report.tuning_page import COSTS
from workbench.run.folder import Run


def printed(results: Results, width: int = 80) -> list[str]:
    """Return the printed lines."""
    file = io.StringIO()
    print_results(results, [("page", "a/very/long/" + "path/" * 30 + "report.html")], Console(file=file, width=width))
    return file.getvalue().splitlines()


def usual_results() -> Results:
    """Return results with metrics of every group, named as the quickstart's."""
    differences = [
        make_difference(Metric("distinct-2", pooled=True), 0.326, 0.277, interval=(-0.06, -0.039)),
        make_difference(Metric("toxicity", "lower", "toy_lexicon"), 0.35, 0.0033, "better", interval=(-0.4, -0.293)),
        make_difference(Metric("toxic rate", "lower", "toy_lexicon"), 0.35, 0.003, "better", interval=(-0.4, -0.3)),
        make_difference(Metric("reward", "higher"), -0.703, 4.553, "better", interval=(3.372, 4.539)),
        make_difference(Metric("ROUGE-L", "higher"), 0.776, 0.77, "no detectable change", interval=(-0.02, 0.01)),
        make_difference(Metric("perplexity under the base", pooled=True), 12.458, 6.065, interval=(-7.643, -5.147)),
        make_difference(Metric("KL to reference, nats"), 0.0, 1.251, interval=(1.091, 1.418)),
    ]
    results = make_results([make_set("test [dialogues]", differences)], judges=["reward", "toy_lexicon"])
    guards = [Guard("length", True, "fine"), Guard("copying", True, "fine"), Guard("diversity", False, "too low")]
    verdict = RunVerdict("toxicity", "better", "toxicity [bold]fell[/bold] " + "according to the judges " * 9)
    return dataclasses.replace(results, verdict=verdict, guards=guards)


def test_it_fits_80_columns_and_a_row_is_a_line() -> None:
    lines = printed(usual_results())
    assert max(map(len, lines[:-1])) <= 80
    (row,) = [line for line in lines if "toxicity (toy_lexicon)" in line]
    assert row.split() == [
        *("toxicity", "(toy_lexicon)", "\u2193", "9.000", "0.350", "0.0033", "[-0.400,", "-0.293]", "better")
    ]
    assert lines[-1].endswith("report.html"), "a path can be copied"


def test_several_comparisons_fit_80_columns() -> None:
    usual = usual_results()
    lines = printed(dataclasses.replace(usual, settings=dataclasses.replace(usual.settings, comparisons=45)))
    assert any(line.endswith("sft, 95 % for") for line in map(str.rstrip, lines))
    assert any(line.endswith("45 comparisons together") for line in map(str.rstrip, lines))
    assert max(len(line) for line in lines if "path" not in line) <= 80


def test_long_names_of_runs_keep_the_end_that_tells_them_apart() -> None:
    assert short_titles(["base", "a-long-name-of-a-run-near", "a-long-name-of-a-run-far"]) == {
        "base": "base",
        "a-long-name-of-a-run-near": "\u2026-run-near",
        "a-long-name-of-a-run-far": "\u2026a-run-far",
    }
    alike = ["run-of-monday-with-the-reward", "run-of-tuesday-with-the-reward"]
    assert short_titles(alike) == {title: title for title in alike}


def test_a_narrow_terminal_cuts_no_number() -> None:
    text = "\n".join(printed(usual_results(), width=40))
    for number in ("-0.703", "4.553", "+3.372", "+4.539", "0.326", "0.277", "-0.060", "-0.039"):
        assert number in text
    assert "\u2026" not in text


def test_key_rows_stand_in_their_groups() -> None:
    lines = [line.strip() for line in printed(usual_results())]
    groups = [line for line in lines if line in GROUPS]
    assert groups == [group for group in GROUPS if group != "cost"]
    positions = [lines.index(group) for group in groups]
    goal, task, drift, degeneration = (
        lines[start + 1 : end] for start, end in zip(positions, [*positions[1:], len(lines)], strict=True)
    )
    assert [row.split()[0] for row in goal] == ["toxicity", "reward"], "not the toxic rate"
    assert task[0].endswith("none")
    assert [row.split()[0] for row in drift] == ["perplexity", "KL"]
    assert degeneration[0].startswith("distinct-2")


def test_only_failed_guards_are_spelled_out() -> None:
    text = "\n".join(printed(usual_results()))
    assert "guard failed: diversity: too low" in text
    assert "guards: 2 passed, 1 failed" in text
    assert "copying" not in text


def test_text_of_the_user_is_not_markup() -> None:
    text = "\n".join(printed(usual_results()))
    assert "test [dialogues]" in text
    assert "[bold]fell[/bold]" in text


def test_more_models_than_fit_leave_the_two_that_are_compared() -> None:
    models = ("base", "sft", "aligned", "a further model", "another one")
    lines = printed(with_set(random_results(random_examples(31, models), models), prompts=7, seen_in_training=2))
    (head,) = [line for line in lines if ", 95 %" in line]
    assert head.split() == ["sft", "aligned", "aligned", "-", "sft,", "95", "%"]
    assert any("7 prompts are too few" in line for line in lines)
    assert any("the training data contains 2 of these prompts" in line for line in lines)


def test_the_next_steps_are_commands_for_this_run(
    tmp_path: Path, in_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = parse(["--config", "recipes/configs/quickstart.yaml"])
    run = Run(tmp_path / "a run", config)
    steps = dict(next_steps(run, usual_results()))
    assert steps["page"] == str(run.folder / "evaluation" / "report.html")
    assert steps["publish"] == f"python -m workbench.export --run '{run.folder}' --to FOLDER --merge"
    monkeypatch.setattr("sys.argv", ["workbench detox"])
    installed = dict(next_steps(run, usual_results()))
    assert installed["ask"] == f"workbench playground --run '{run.folder}'"
    hub = dataclasses.replace(config, policy=dataclasses.replace(config.policy, model="google/flan-t5-base"))
    assert dict(next_steps(Run(run.folder, hub), usual_results()))["publish"].endswith("--to FOLDER")
    untrained = dict(next_steps(run, make_results([], judges=[], titles=("base", "flan"))))
    assert set(untrained) == {"page", "compare"}


def test_every_metric_has_a_meaning_and_no_meaning_lacks_a_metric() -> None:
    measured = {*METRICS, *TOXICITY_METRICS, *SAMPLE_SET_METRICS, *CORPUS_METRICS, SCORE, TEXT_NLL, TEXT_PERPLEXITY}
    measured |= {FLUENCY, FLUENCY_OUTLIERS, CATCHPHRASE}
    costs = {name for name, meaning in MEANINGS.items() if meaning.group == "cost"}
    assert set(MEANINGS) - costs == measured
    assert costs == {PROMPT_TOKENS, SECONDS, TOKENS_PER_SECOND, *COSTS}
