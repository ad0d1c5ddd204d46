"""The evaluation's results as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from workbench.evaluation.non_inferiority import retention_sentence
from workbench.evaluation.results import Results, SetResult
from workbench.evaluation.reward_gap import describe_gap, gaps_by_set
from workbench.report.judges_section import judges_markdown, meanings_markdown
from workbench.report.page import visible_text
from workbench.report.tables import sampling_description, set_table, text_cells
from workbench.report.variance_section import variance_markdown

# What begins code, emphasis, a link or an image; a bracket alone, as of an interval, does not.
MARKUP = re.compile(r"[\\`]|\*(?=\S)|\](?=[(\[:])|(?<!\w)_(?=\w)|!(?=\[)|(?<=\w)://")


def markdown(results: Results) -> str:
    """Return the verdict, the guards, the rows that are not a model alone, and a table for each prompt set."""
    parts = [f"**{escape(verdict.headline)}**: {escape(verdict.sentence)}" for verdict in results.verdicts]
    if retained := retention_sentence(results):
        parts.append(escape(retained))
    if results.guards:
        parts.append(
            "\n".join(
                f"- {'passed' if guard.passed else 'FAILED'}: {escape(guard.name)}: {escape(guard.text)}"
                for guard in results.guards
            )
        )
    if results.settings.strategies:
        descriptions = results.settings.strategies.items()
        parts.append("\n".join(f"- {escape(title)}: {escape(description)}" for title, description in descriptions))
    for result in results.sets:
        gaps = [describe_gap(gap) for measured, gap in gaps_by_set(results) if measured is result]
        parts += [_heading(result, results), _table(result, results), *map(escape, gaps)]
        parts += judges_markdown(result, results, _right_aligned, escape)
        parts += variance_markdown(result, _right_aligned, escape)
    parts += meanings_markdown(results, escape)
    return "\n\n".join(parts) + "\n"


def markdown_table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    escape: Callable[[object], str],
    numeric: Sequence[int] = (),
) -> str:
    """Return a Markdown table with the `numeric` columns right-aligned; `escape` turns a value into cell text."""
    lines = [[escape(cell) for cell in row] for row in (head, *rows)]
    lines.insert(1, ["---:" if column in numeric else "---" for column in range(len(head))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _heading(result: SetResult, results: Results) -> str:
    """Return the set's name, its size and how it was sampled, in one line."""
    neutral = " (neutral)" if result.neutral else ""
    seen = f"; the training data contains {result.seen_in_training} of them" if result.seen_in_training else ""
    how = f", {sampling_description(results.settings)}" if result.has_completions else ""
    return f"**{escape(result.name)}**{neutral}: {result.size}{how}{seen}"


def _table(result: SetResult, results: Results) -> str:
    """Return the means of every model and the differences that the verdict is about."""
    head, rows = text_cells(set_table(result, results.models, results.before, results.after), results.settings)
    return markdown_table(head, rows, cell, numeric=range(1, len(head) - 1))


def _right_aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns after the first hold numbers."""
    return markdown_table(head, rows, cell, numeric=range(1, len(head)))


def cell(value: object) -> str:
    """Return a text as a cell of a table, which a bar would end."""
    return escape(value).replace("|", "\\|")


def escape(value: object) -> str:
    """Return a text that stays readable on a terminal: only what would be markup is escaped."""
    return MARKUP.sub(r"\\\g<0>", " ".join(visible_text(value).split())).replace("&", "&amp;").replace("<", "&lt;")
