"""A comparison of algorithms from run folders: numbers against independent references, refusals, page and terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from algorithm_runs import KL, KLS, NATS, scored, small_comparison, write_run
from evaluated_runs import changed
from random_results import HOSTILE, LEXICON, score
from rich.console import Console

from workbench.comparison.cells import Cell
from workbench.comparison.results import AlgorithmComparison, PolicyTable, Value, read_algorithm_results
from workbench.config.sources import Scorer
from workbench.errors import UserError
from workbench.evaluation.results_files import read_examples, read_results
from workbench.evaluation.statistics import paired_difference
from workbench.report.algorithm_comparison import write_algorithm_comparison
from workbench.report.algorithms_page import frontier


class Tags(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.attributes: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count an element and keep its attributes."""
        self.names[tag] += 1
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")


def compared(cells: list[Cell], folder: Path, **options: object) -> tuple[AlgorithmComparison, list[str]]:
    """Return the comparison, and the lines that it prints at 80 columns."""
    file = io.StringIO()
    console = Console(file=file, width=80, highlight=False)
    comparison = write_algorithm_comparison(cells, folder / "page.html", console=console, **options)  # type: ignore[arg-type]
    return comparison, file.getvalue().splitlines()


def table_of(cells: list[Cell], folder: Path) -> PolicyTable:
    """Return the table of the only policy."""
    (table,) = compared(cells, folder)[0].policies
    return table


def values(cell: Cell, title: str) -> list[float]:
    """Return the toxicity of every prompt, read independently of the comparison."""
    results = read_results(cell.folder / "evaluation" / "results.json")
    examples = read_examples(cell.folder / "evaluation" / "completions.jsonl", results)
    return [score(example, LEXICON, title) for example in examples]


@pytest.fixture
def cells(tmp_path: Path, in_project: Path) -> list[Cell]:
    """SFT, PPO, RLOO and best of 4, with two seeds each."""
    return small_comparison(tmp_path)


def test_rows_and_columns_are_in_order(cells: list[Cell], tmp_path: Path) -> None:
    table = table_of(cells, tmp_path)
    assert [row.title for row in table.rows] == ["SFT", "PPO", "RLOO", "best of 4"]
    labels = [column.metric.label for column in table.columns]
    assert labels == ["toxicity (lexicon)", "toxicity (reward)", "reward", KL.name]
    assert (table.baseline, table.reference, table.comparisons) == ("SFT", "PPO", 6)
    assert [value.is_upper_bound for value in (row.values[3] for row in table.rows)] == [False, False, False, True]


def test_means_deviations_and_differences_are_those_of_the_runs(cells: list[Cell], tmp_path: Path) -> None:
    table = table_of(cells, tmp_path)
    ppo, rloo = (np.array([values(cell, "aligned") for cell in cells[first : first + 2]]) for first in (0, 2))
    for title, seeds in (("PPO", ppo), ("RLOO", rloo)):
        value = next(row.values[0] for row in table.rows if row.title == title)
        assert value.mean == pytest.approx(seeds.mean())
        assert value.seed_std == pytest.approx(seeds.mean(axis=1).std(ddof=1))
    expected = paired_difference(ppo.mean(axis=0), rloo.mean(axis=0), comparisons=6)
    difference = table.find("PPO", "RLOO", 0)
    assert difference is not None
    assert difference.difference == pytest.approx(rloo.mean() - ppo.mean())
    ends = (difference.low_over_prompts, difference.high_over_prompts)
    assert ends == pytest.approx((expected.low, expected.high))
    assert table.find("RLOO", "best of 4", 0) is not None, "every two rows in the column that ranks them"
    assert table.find("RLOO", "best of 4", 1) is None
    assert table.find("PPO", "best of 4", 1) is not None


def test_the_verdict_is_that_of_the_interval_over_seeds_and_prompts(tmp_path: Path, in_project: Path) -> None:
    levels = {"PPO": (0.2, 0.2, 0.2), "RLOO": (0.02, 0.1, 0.18)}
    cells = [
        Cell("T5", title, seed, write_run(tmp_path / f"{title}{seed}", scored(seed, level), seed=seed), "aligned")
        for title, by_seed in levels.items()
        for seed, level in enumerate(by_seed)
    ]
    table = table_of(cells, tmp_path)
    difference = table.find("PPO", "RLOO", 0)
    assert difference is not None
    assert difference.high_over_prompts is not None
    assert difference.high is not None
    assert difference.high_over_prompts < 0 < difference.high
    assert difference.verdict == "no detectable change"
    assert table.sentence.startswith("no best row by toxicity (lexicon): no detectable difference between RLOO")


def test_kl_operating_point_and_budgets_are_those_of_the_logs(cells: list[Cell], tmp_path: Path) -> None:
    table = table_of(cells, tmp_path)
    assert table.kl == 2.5, "the highest of RLOO, which PPO passes, too"
    rows = {row.title: row for row in table.rows}
    at_kl = rows["PPO"].at_kl
    assert at_kl is not None
    held_out = np.interp(2.5, KLS, [-0.4, -0.3, -0.2, -0.25])
    assert at_kl.held_out == pytest.approx(held_out + 0.005), "the second seed is 0.01 better"
    assert at_kl.held_out_std == pytest.approx(0.01 / 2**0.5)
    assert rows["SFT"].at_kl is rows["best of 4"].at_kl is None
    point = rows["PPO"].operating_point
    assert point is not None
    assert (point.step, point.kl) == (2, 1.0), "the third and fourth are better but above 1 % of perplexity"
    assert point.perplexity_rise == pytest.approx(np.exp(NATS[2] - NATS[0]) - 1)
    cost = rows["PPO"].budget
    assert (cost.training_tokens, cost.reward_calls, cost.validation_responses) == (4 * 8 * 10.0, 32, 80)
    assert (cost.minutes, cost.peak_memory_mib) == (2.0, 3.0)
    assert rows["best of 4"].budget.samples_per_completion == 4


def test_the_file_is_read_back_and_the_page_and_the_markdown_agree(cells: list[Cell], tmp_path: Path) -> None:
    comparison, _ = compared(cells, tmp_path, broken=["tiny T5, GRPO, seed 0"])
    assert read_algorithm_results(tmp_path / "page.json") == comparison
    page, markdown = (tmp_path / f"page{end}" for end in (".html", ".md"))
    for text in (page.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8").replace("\\_", "_")):
        assert "tiny T5, GRPO, seed 0: broken, so it is not in the tables" in text
        assert comparison.policies[0].sentence in text
        for number in re.findall(r"\d\.\d{3}(?= \u00b1)", markdown.read_text(encoding="utf-8")):
            assert number in text


def test_damaged_results_are_one_line(cells: list[Cell], tmp_path: Path) -> None:
    compared(cells, tmp_path)
    file = tmp_path / "page.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    for damaged, reason in (
        ({**data, "version": 0}, "a comparison of version 0, not 1"),
        ({**data, "policies": [{}]}, "cannot be read"),
        ({**data, "unknown": 1}, "unknown field unknown"),
        ([], "of version None"),
    ):
        file.write_text(json.dumps(damaged), encoding="utf-8")
        with pytest.raises(UserError, match=reason):
            read_algorithm_results(file)
    with pytest.raises(UserError, match=r"nothing\.json: cannot be read"):
        read_algorithm_results(tmp_path / "nothing.json")


def test_nothing_loads_and_no_text_is_markup(tmp_path: Path, in_project: Path) -> None:
    examples = [dataclasses.replace(e, prompt=f"{HOSTILE} {e.index}") for e in scored(0, 0.1)]
    run = write_run(tmp_path / "run", changed(examples, KL, 0.0))
    titles = {"sft": f"SFT {HOSTILE}", "aligned": f"PPO {HOSTILE}"}
    cells = [Cell(f"T5 {HOSTILE}", title, 0, run, model) for model, title in titles.items()]
    compared(cells, tmp_path, broken=[HOSTILE])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.names["script"] == 2, "the data and the page's own"
    assert not tags.names.keys() & {"img", "iframe", "link", "object", "embed", "base", "form"}
    assert not {"src", "onerror", "onload"} & tags.attributes.keys()
    assert all(value.startswith("#") for value in tags.attributes["href"])
    assert "default-src 'none'" in page
    assert HOSTILE not in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_it_fits_80_columns(cells: list[Cell], tmp_path: Path) -> None:
    _, lines = compared(cells, tmp_path)
    assert max(map(len, lines[:-4])) <= 80, "only paths are not wrapped"
    rows = [line.split()[0] for line in lines if re.match(r"(SFT|PPO|RLOO|best of 4) +\d", line)]
    assert rows == ["SFT", "PPO", "RLOO", "best"]
    assert "\u2264 0.500" in "\n".join(lines)


def test_two_policies_are_two_tables_and_one_list_of_examples(cells: list[Cell], tmp_path: Path) -> None:
    others = [dataclasses.replace(cell, policy="tiny GPT-2") for cell in cells]
    comparison, _ = compared([*cells, *others], tmp_path)
    assert [table.policy for table in comparison.policies] == ["tiny T5", "tiny GPT-2"]
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert data is not None
    models = json.loads(data[1])["models"]
    assert models[:2] == ["SFT, tiny T5", "PPO, tiny T5"]
    assert len(models) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: [], "no finished run to compare"),
        (lambda cells: [*cells, cells[0]], "tiny T5, PPO, seed 0 is there twice"),
        (lambda cells: [dataclasses.replace(cells[0], model="alined")], "no model 'alined'.*did you mean aligned"),
        (lambda cells: [dataclasses.replace(cells[0], model="sft"), cells[1]], "PPO: its seeds name different models"),
        (lambda cells: [dataclasses.replace(cells[0], folder=Path("nowhere"))], "nowhere: no finished evaluation"),
    ],
)
def test_a_mistake_is_one_line(change: object, message: str, cells: list[Cell], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compared(change(cells), tmp_path)  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_runs_without_a_common_prompt_are_one_line(cells: list[Cell], tmp_path: Path) -> None:
    run = write_run(tmp_path / "elsewhere", scored(0, 0.1, name="elsewhere"))
    with pytest.raises(UserError, match=r"tiny T5: its runs have no prompt in common"):
        compared([*cells, Cell("tiny T5", "GRPO", 0, run, "aligned")], tmp_path)


def test_what_is_doubtful_is_said(cells: list[Cell], tmp_path: Path) -> None:
    fewer = scored(3, 0.1)[5:]
    judges = {"judges": [Scorer("lexicon", {"words": ["else"]})]}
    run = write_run(tmp_path / "GRPO", fewer, length=11.0, evaluation=judges, kls=(4.0, 5.0), nats=())
    table = table_of([*cells[:3], *cells[4:], Cell("tiny T5", "GRPO", 0, run, "aligned")], tmp_path)
    warnings = "\n".join(table.warnings)
    for expected in (
        "RLOO: no run of seed 1, which other rows have",
        "one seed of RLOO, GRPO: intervals cover its prompts, but not other seeds",
        "dialogues: the runs differ in their prompts; compared on 35 of 40, which all have",
        "measured with different settings or weights, so left out: toxicity (lexicon)",
        "ranked by toxicity (reward), which training optimized; add a judge",
        "unequal budgets: generated tokens differ by up to 81.8% of the fewest: PPO 320, RLOO 320, GRPO 176",
        "unequal budgets: reward calls differ by up to 100.0%",
    ):
        assert expected in warnings
    assert table.kl == 2.5
    rows = {row.title: row for row in table.rows}
    assert rows["GRPO"].at_kl is None, "its first checkpoint is beyond that KL"
    assert rows["GRPO"].no_operating_point == (
        "no validation has both a held-out reward and the nats per token of fixed neutral texts"
    )
    markdown = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "nothing is extrapolated: GRPO." in markdown
    assert table.differing_settings["ppo.steps"] == ["4", "4", "2"]


def test_a_row_that_is_far_away_leaves_the_others_their_room(cells: list[Cell], tmp_path: Path) -> None:
    table = table_of(cells, tmp_path)
    kl = next(index for index, column in enumerate(table.columns) if column.metric.name == "KL to reference, nats")
    assert "off the plot" not in frontier(table)
    rows = [
        dataclasses.replace(row, values=[Value(104.6, None) if i == kl else each for i, each in enumerate(row.values)])
        if row.title == "best of 4"
        else row
        for row in table.rows
    ]
    markup = frontier(dataclasses.replace(table, rows=rows))
    assert "off the plot: best of 4, 105 nats" in markup
    assert markup.count("<circle") == len(table.rows) - 1
