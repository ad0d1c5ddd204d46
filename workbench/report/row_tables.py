"""A table with a row for each model or variant and a column for each metric; all are compared with the first row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.evaluation.results import (
    PROMPT_TOKENS,
    REWARD,
    ROUGE_L,
    SCORE,
    SECONDS,
    SIMILARITY,
    TOKENS_PER_SECOND,
    TOXICITY,
    Difference,
    Metric,
    SetResult,
)
from workbench.report.markdown import cell as markdown_cell
from workbench.report.markdown import markdown_table
from workbench.report.page import table, text
from workbench.report.set_tables import TONES, minus
from workbench.report.tables import format_interval, format_metric, format_signed, format_value

COLUMNS = (
    *("ROUGE-1", "ROUGE-2", ROUGE_L, "BLEU", SIMILARITY, REWARD, SCORE, TOXICITY),
    *("tokens", PROMPT_TOKENS, SECONDS, TOKENS_PER_SECOND),
)
"""Metrics by which rows are compared, in this order; the other tables have all."""


@dataclass(frozen=True)
class Cell:
    """A metric of one row."""

    mean: float | None
    """None where the row does not have the metric."""
    difference: Difference | None
    """From the first row; None for the first row itself, and for what has no value per prompt."""


@dataclass(frozen=True)
class RowTable:
    """The rows of one prompt set."""

    metrics: list[Metric]
    headings: list[str]
    """What each column is called."""
    rows: dict[str, list[Cell]]
    """By title, in the order of the metrics."""

    def column(self, name: str) -> int | None:
        """Return the first column of a metric, or None."""
        return next((index for index, metric in enumerate(self.metrics) if metric.name == name), None)


def row_table(result: SetResult, titles: Sequence[str], columns: Sequence[str] = COLUMNS) -> RowTable:
    """Return the means of each row, with the difference from the first."""
    summaries = sorted(
        (summary for summary in result.summaries if summary.metric.name in columns),
        key=lambda summary: columns.index(summary.metric.name),
    )
    differences = {
        comparison.after: {difference.metric: difference for difference in comparison.differences}
        for comparison in result.comparisons
        if comparison.before == titles[0]
    }
    rows = {
        title: [Cell(s.means.get(title), differences.get(title, {}).get(s.metric)) for s in summaries]
        for title in titles
    }
    metrics = [summary.metric for summary in summaries]
    return RowTable(metrics, list(map(format_metric, metrics)), rows)


def joined(tables: Mapping[str, RowTable]) -> RowTable:
    """Return tables of the same rows side by side; the headings name those tables that have a name."""
    first, *_ = tables.values()
    return RowTable(
        [metric for table in tables.values() for metric in table.metrics],
        [f"{heading}, {name}" if name else heading for name, table in tables.items() for heading in table.headings],
        {title: [cell for table in tables.values() for cell in table.rows[title]] for title in first.rows},
    )


def row_table_markup(row_table: RowTable, first_column: str, caption: str) -> str:
    """Return the table as markup: below each mean its difference, in a color where it is better or worse."""
    head = [first_column, *row_table.headings]
    return table(head, [[text(title), *map(_cell, cells)] for title, cells in row_table.rows.items()], caption)


def row_table_markdown(row_table: RowTable, first_column: str) -> str:
    """Return the table as Markdown."""
    head = [first_column, *row_table.headings]
    rows = [[title, *map(_text, cells)] for title, cells in row_table.rows.items()]
    return markdown_table(head, rows, markdown_cell, numeric=range(1, len(head)))


def _cell(cell: Cell) -> str:
    """Return a cell as markup."""
    if cell.mean is None:
        return ""
    mean, difference = minus(format_value(cell.mean)), cell.difference
    if difference is None:
        return mean
    change = f"{minus(format_signed(difference.difference))} {minus(format_interval(difference))}"
    word = difference.adjusted_verdict or ""
    tone = TONES.get(word, "soft")
    verdict = f' title="{text(word)}"' if word else ""
    return f'{mean}<span class="words {tone}"{verdict}>{change}</span>'


def _text(cell: Cell) -> str:
    """Return a cell as plain text."""
    if cell.mean is None:
        return ""
    if cell.difference is None:
        return format_value(cell.mean)
    word = cell.difference.adjusted_verdict
    verdict = f" {word}" if word in TONES else ""
    change = f"{format_signed(cell.difference.difference)} {format_interval(cell.difference)}"
    return f"{format_value(cell.mean)} ({change}{verdict})"
