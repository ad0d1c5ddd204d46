"""Which row is best: by the first metric that ranks them, and none where nothing does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console
from typed_results import make_results, make_set

from workbench.evaluation.ranking import best_mean, best_sentence, best_title
from workbench.evaluation.results import Metric, Results, SetResult, Summary
from workbench.evaluation.results_files import to_json
from workbench.report.rows_page import rows_page
from workbench.report.run_list import best_rows
from workbench.report.terminal import print_rows
from workbench.report.tuning_page import frontier_section

TITLES = ("first", "second", "third")
SIMILARITY, TOXICITY = Metric("similarity", "higher"), Metric("toxicity", "lower", "lexicon")
REWARD, TOKENS = Metric("reward", "higher"), Metric("tokens")


def set_with(means: dict[Metric, tuple[float | None, ...]]) -> SetResult:
    """Return a set with these means of the rows."""
    summaries = [Summary(metric, dict(zip(TITLES, row, strict=True)), None) for metric, row in means.items()]
    return dataclasses.replace(make_set("test", []), summaries=summaries, comparisons=[])


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ({REWARD: (0, 1, 2), SIMILARITY: (0, 2, 1)}, "second"),
        ({REWARD: (0, 1, 2), TOXICITY: (0, 0.1, 0.2)}, "second"),
        ({REWARD: (0, 1, 2), SIMILARITY: (0, None, None)}, "third"),
        ({TOXICITY: (0.3, 0.2, None)}, "second"),
        ({Metric("score", "higher", "a"): (0, 1, 2), Metric("score", "higher", "b"): (0, 90, 0)}, "third"),
        ({TOKENS: (1, 2, 3)}, None),
    ],
)  # fmt: skip
def test_the_first_metric_that_was_measured_ranks_the_rows(means: dict, expected: str | None) -> None:
    assert best_title([set_with(means)], TITLES) == expected


def results_with(means: dict[Metric, tuple[float | None, ...]]) -> Results:
    """Return the results of the rows."""
    results = make_results([set_with(means)], judges=[], titles=("first", "third"))
    return dataclasses.replace(results, models=list(TITLES))


def test_page_and_terminal_call_no_row_best_where_nothing_ranks_them() -> None:
    unranked, ranked = results_with({TOKENS: (1, 2, 3)}), results_with({REWARD: (0, 1, 2)})
    assert best_sentence(unranked) == "no row is best: no metric that ranks rows was measured"
    assert best_sentence(ranked) == "best after the first row by reward: third with 2.000; first has 0.000"
    for results in (unranked, ranked):
        console = Console(record=True, width=120)
        print_rows(dataclasses.replace(results, sets=[]), {}, "row", [], console)
        assert best_sentence(results) in rows_page(results, {})
        assert "no row is best" in console.export_text()


def test_the_list_of_runs_names_the_best_row_with_its_mean(tmp_path: Path) -> None:
    ranked = results_with({REWARD: (0, 1, 2)})
    assert best_mean(ranked) == "third: reward 2.000"
    assert best_mean(results_with({TOKENS: (1, 2, 3)})) == "no row is best"
    compared = dataclasses.replace(make_set("test", [], titles=("first", "third")), summaries=ranked.sets[0].summaries)
    (tmp_path / "tuning").mkdir()
    written = to_json(dataclasses.replace(ranked, sets=[compared]))
    (tmp_path / "tuning" / "results.json").write_text(json.dumps(written))
    assert best_rows(tmp_path, ["sft", "tuning"]) == "third: reward 2.000"
    assert best_rows(tmp_path, ["prompting"]).startswith("prompting changed or unreadable")


def test_a_frontier_of_nothing_learned_is_not_drawn() -> None:
    results = results_with({Metric("ROUGE-L", "higher"): (0.1, 0.2, 0.3)})
    neutral = dataclasses.replace(results, sets=[dataclasses.replace(results.sets[0], neutral=True)])
    assert "No plot: every set is neutral" in frontier_section(neutral)
    assert "<svg" not in frontier_section(neutral)
    assert "No plot: ROUGE-L was not measured" in frontier_section(results_with({TOKENS: (1, 2, 3)}))
