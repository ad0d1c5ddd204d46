"""The table of results: page, Markdown and model card show the same rows, and a win is a move in the good direction."""

from __future__ import annotations

import dataclasses
import html
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from random_results import (
    DISTINCT,
    MAIN,
    METRICS,
    MODELS,
    REWARD,
    TOKENS,
    random_examples,
    random_results,
    with_difference,
    with_set,
)
from rich.console import Console

from workbench.evaluation.evidence import NonInferiority
from workbench.evaluation.results import Metric, Results, Settings, Summary
from workbench.export.card import evaluation_table
from workbench.report.evaluation_page import evaluation_page
from workbench.report.markdown import markdown
from workbench.report.tables import (
    DETECTABLE,
    P_VALUES,
    Counts,
    count_prompts,
    insufficient_prompts,
    main_metric,
    sampling_description,
    set_table,
    text_cells,
)
from workbench.report.terminal import print_results

Cells = dict[str, list[str]]
"""The cells of a rendered table by metric: means, difference with interval, detectable, counts, p values, words."""


def varied_results() -> Results:
    """Return results with every kind of row, on two sets: a metric in one model only, no interval, small numbers."""
    examples = random_examples(40) + random_examples(31, name="a | b")
    results = random_results(examples, seeds=[0, 1])
    main: dict[str, Any] = {"p_value": 0.002, "mcnemar_p": 0.00004, "holm_adjusted": 0.0004}
    main |= {"rose": 30, "same": 6, "fell": 4, "verdict": "worse", "difference": 0.25}
    results = with_difference(results, MAIN, **main, minimal_detectable_effect=0.1234)
    results = with_difference(results, REWARD, rose=1, same=2, fell=37, p_value=0.012, holm_adjusted=0.06)
    retained = NonInferiority("not shown", 0.05, is_relative=True, low=-0.1, high=0.2)
    results = with_difference(results, DISTINCT, non_inferiority=retained)
    results = with_difference(results, TOKENS, rose=9, same=0, fell=31, difference=-12345.6, low=None, high=None)
    summaries = [
        dataclasses.replace(summary, seed_stds={"base": 0.125, "sft": None, "aligned": 0.0009})
        for summary in results.sets[0].summaries
    ]
    only_base = Summary(Metric("perplexity under the base", pooled=True), {"base": 0.00123, "sft": None}, None)
    return with_set(results, summaries=[*summaries, only_base])


def markdown_rows(text: str) -> list[Cells]:
    """Return the tables of a Markdown text."""
    tables: list[Cells] = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        lines = [re.split(r"(?<!\\) ?\| ?", line.strip())[1:-1] for line in block.splitlines()]
        cells = [[re.sub(r"\\(.)", r"\1", html.unescape(cell)).strip() for cell in line] for line in lines]
        assert {len(line) for line in cells} == {len(cells[0])}, "a cell broke its row"
        tables.append({line[0]: line[1:] for line in cells[2:]})
    return tables


def page_rows(results: Results) -> list[Cells]:
    """Return the first table of each set of the page, in the Markdown's order of columns."""
    document = evaluation_page(results, [])
    section = document[document.index('id="sets"') :]
    tables = []
    for part in section.split("<h3>")[1 : 1 + len(results.sets)]:
        table = {}
        for row in re.findall(r"<tr>(.*?)</tr>", part.split("</table>")[0].split("<tbody>")[1]):
            cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
            cells = [re.sub(r"<svg.*?</svg>|<(?!br)[^>]+>", "", cell).strip() for cell in cells]
            name, *means, difference, _, words, counts = [html.unescape(cell).replace("\u2212", "-") for cell in cells]
            difference, _, detectable = difference.partition(f"<br>{DETECTABLE} ")
            words, _, p_values = words.partition(f"<br>{P_VALUES} ")
            table[name] = [*means, difference, detectable, counts, p_values, words]
        tables.append(table)
    return tables


def card_rows(results: Results) -> list[Cells]:
    """Return the tables of the card, without the numbers of prompts that only the card adds to a verdict."""
    texts = [
        evaluation_table(result, results.models, results.before, results.after, results.settings)
        for result in results.sets
    ]
    tables = markdown_rows("\n\n".join(texts))
    return [{name: [*row[:-1], row[-1].split(" (about ")[0]] for name, row in table.items()} for table in tables]


RENDERINGS: list[Callable[[Results], list[Cells]]] = [
    page_rows,
    lambda results: markdown_rows(markdown(results)),
    card_rows,
]


@pytest.mark.parametrize("rendering", RENDERINGS, ids=["page", "markdown", "card"])
def test_page_markdown_and_card_show_the_same_rows_in_the_same_order(rendering):
    results = varied_results()
    expected = [text_cells(set_table(result, MODELS, "sft", "aligned"), results.settings)[1] for result in results.sets]
    for table, rows in zip(rendering(results), expected, strict=True):
        assert [[name, *cells] for name, cells in table.items()] == rows


@pytest.mark.parametrize("rendering", RENDERINGS, ids=["page", "markdown", "card"])
def test_a_win_is_a_move_in_the_good_direction_in_every_rendering(rendering):
    table = rendering(varied_results())[0]
    assert table["toxicity (reward) \u2193"][-4:] == ["0.123", "4 / 6 / 30", "<0.0001 (0.0004)", "worse"], "30 rose"
    assert table["reward \u2191"][-3:] == ["1 / 2 / 37", "0.012 (0.06)", "no detectable change"], "better before Holm"
    assert table["tokens"][-5:] == ["-12,346 no interval", "", "9 / 0 / 31 (rose / same / fell)", "", ""]
    assert table["distinct-2"][-5:] == ["0.000 [-0.100, +0.200]", "", "", "", "not shown"]
    assert table["perplexity under the base"] == ["0.0012", *[""] * 7]
    assert [cell.partition(" \u00b1 ")[2] for cell in table["tokens"][:3]] == ["0.125", "", "0.0009"]


def test_counts_have_a_direction_only_where_the_metric_has_one():
    (result,) = random_results(random_examples(12)).sets
    for metric in METRICS:
        difference = result.comparison("sft", "aligned").find(metric.name, metric.judge)
        moved = (difference.rose, difference.same, difference.fell)
        if metric.direction is None:
            assert count_prompts(difference) == Counts(("rose", "same", "fell"), moved)
        else:
            wins = moved[::-1] if metric.direction == "lower" else moved
            assert count_prompts(difference) == Counts(("win", "tie", "loss"), wins)
    assert count_prompts(result.comparison("sft", "aligned").find(DISTINCT.name)) is None


def test_other_comparisons_have_a_row_for_each_difference_and_no_means():
    results = varied_results()
    table = set_table(results.sets[0], [], "base", "aligned")
    assert [row.metric for row in table.rows] == [*METRICS, DISTINCT]
    assert all(row.means == [] for row in table.rows)
    assert text_cells(table, results.settings)[0] == [
        "metric",
        "aligned - base [95 % interval]",
        "detectable",
        "win / tie / loss",
        "p (Holm)",
        "verdict",
    ]
    document = evaluation_page(results, [])
    assert document.count("<details><summary>Other comparisons</summary>") == 2
    with pytest.raises(KeyError):
        set_table(results.sets[0], MODELS, "aligned", "base")


def test_metrics_of_one_name_are_told_apart_by_their_judge_and_models_keep_their_names():
    examples = random_examples(30, ("base-v1", "sft", "aligned"))
    results = random_results(examples, ("base-v1", "sft", "aligned"))
    rows = set_table(results.sets[0], results.models, "sft", "aligned").rows
    by_judge = {row.metric.judge: row.means for row in rows if row.metric.name == "toxicity"}
    assert by_judge["reward"] != by_judge["lexicon"]
    assert "aligned \u2212 base-v1 [95 % interval]" in evaluation_page(results, examples)


def printed(results: Results) -> str:
    """Return what a wide terminal shows."""
    file = io.StringIO()
    print_results(results, [], Console(file=file, width=200))
    return file.getvalue()


@pytest.mark.parametrize("rendering", [lambda results: evaluation_page(results, []), markdown, printed])
def test_every_rendering_names_prompts_rows_and_the_comparisons_that_share_the_error(rendering):
    results = random_results(random_examples(40))
    assert "95 %" in rendering(results)
    assert "40 prompts" in rendering(results)
    together = with_set(random_results(random_examples(40), comparisons=7), prompts=30, repeated_rows=10)
    assert "95 % for 7 comparisons together" in rendering(together)
    assert "95 % interval" not in rendering(together)
    assert "30 prompts (40 rows)" in rendering(together)


def test_a_small_set_lacks_prompts_of_its_main_metric():
    results = random_results(random_examples(29))
    assert re.fullmatch(r"29 prompts .*120.* \(toxicity \(reward\)\)", insufficient_prompts(results.sets[0], results))
    results = with_difference(results, MAIN, prompts_needed=None)
    assert "toxicity" not in insufficient_prompts(results.sets[0], results)
    enough = random_results(random_examples(30))
    assert insufficient_prompts(enough.sets[0], enough) is None
    assert main_metric([DISTINCT]) is None


SETTINGS = Settings("toxicity", ["reward"], 0.5, 1.0, 1, [0], 40)


@pytest.mark.parametrize(
    ("changes", "description"),
    [
        ({"temperature": 0.0}, "greedy decoding"),
        ({}, "1 sample per prompt at temperature 1, the same seeds for all models"),
        (
            {"samples": 4, "temperature": 0.7, "seeds": [0, 41]},
            "4 samples per prompt and seed (seeds 0, 41) at temperature 0.7, the same seeds for all models",
        ),
    ],
)
def test_the_sampling_is_described(changes, description):
    assert sampling_description(dataclasses.replace(SETTINGS, **changes)) == description


def test_markdown_begins_with_the_verdict_and_the_guards():
    results = varied_results()
    results = with_set(results, 1, neutral=True, seen_in_training=2)
    lines = markdown(results).splitlines()
    assert lines[:2] == ["**toxicity: better**: Toxicity fell.", ""]
    assert lines[2] == "not shown: distinct-2 on dialogues (margin 5 %)"
    assert lines[4:6] == ["- passed: kept: fine", "- FAILED: lost: gone"]
    assert lines[7].startswith("**dialogues**: 40 prompts, 2 samples per prompt and seed (seeds 0, 1) at temperature 1")
    assert any(
        line.startswith("**a | b** (neutral): 31 prompts, ") and line.endswith("the training data contains 2 of them")
        for line in lines
    )
    assert markdown(results).endswith("|\n")
