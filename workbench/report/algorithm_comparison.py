"""Write a comparison of algorithms: page, Markdown, JSON, and the table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from workbench.comparison.algorithms import compare_rows
from workbench.comparison.cells import Cell
from workbench.comparison.comparability import EvaluatedRun
from workbench.comparison.results import AlgorithmComparison, PolicyTable, write_algorithm_results
from workbench.comparison.rows import ReadRow, read_rows
from workbench.comparison.side_by_side import side_by_side
from workbench.report.algorithm_tables import (
    FIRST_COLUMN,
    TextTable,
    column_title,
    count_text,
    decimal_text,
    difference_cell,
    short_columns,
    tables_of,
    value_text,
)
from workbench.report.algorithms_page import TITLE, algorithms_page
from workbench.report.markdown import cell as markdown_cell
from workbench.report.markdown import escape, markdown_table
from workbench.report.page import visible_text
from workbench.report.terminal import STYLES, print_next_steps
from workbench.run.files import write_text


def write_algorithm_comparison(
    cells: Sequence[Cell], output: Path, *, broken: Sequence[str] = (), console: Console | None = None
) -> AlgorithmComparison:
    """Write the page `output` of finished runs, Markdown and JSON of the same name beside it, and print the table.

    `broken` names runs that are missing from `cells`. Raises UserError without cells, for a run without a finished
    evaluation, a cell that is there twice or whose model was not evaluated, and for runs of a policy without a prompt
    in common.
    """
    rows = read_rows(cells)
    comparison = compare_rows(rows, broken)
    titles = [(table.policy, row.title) for table in comparison.policies for row in table.rows]
    first = comparison.policies[0]
    after = titles.index((first.policy, first.reference or first.rows[-1].title))
    runs = first_runs(rows)
    results, examples = side_by_side(runs, list(runs)[after])
    markdown_file, results_file = output.with_suffix(".md"), output.with_suffix(".json")
    write_text(output, algorithms_page(comparison, results, examples))
    write_text(markdown_file, algorithms_markdown(comparison))
    write_algorithm_results(results_file, comparison)
    files = {"page": output, "table": markdown_file, "results": results_file}
    print_comparison(comparison, [(name, str(file)) for name, file in files.items()], console)
    return comparison


def first_runs(rows: Mapping[str, Sequence[ReadRow]]) -> dict[str, EvaluatedRun]:
    """Return the run of every row's first seed by its title, with the policy where there are several."""
    return {
        (f"{row.title}, {policy}" if len(rows) > 1 else row.title): row.cells[0].run
        for policy, policy_rows in rows.items()
        for row in policy_rows
    }


def algorithms_markdown(comparison: AlgorithmComparison) -> str:
    """Return what the intervals support, the warnings and every table."""
    parts = [f"# {TITLE}", *(f"- {escape(warning)}" for warning in comparison.warnings)]
    for policy in comparison.policies:
        parts.append(f"**{escape(policy.policy)}**: {escape(policy.sentence)}.")
        if policy.warnings:
            parts.append("\n".join(f"- {escape(warning)}" for warning in policy.warnings))
        for table in tables_of(policy):
            parts += _markdown(table)
    return "\n\n".join(parts) + "\n"


def print_comparison(
    comparison: AlgorithmComparison, steps: Sequence[tuple[str, str]], console: Console | None = None
) -> None:
    """Print what the intervals support, a short table of each policy and the warnings, then the `steps`."""
    console = console or Console(highlight=False)
    for policy in comparison.policies:
        console.print(_policy(policy))
        for warning in policy.warnings:
            console.print(Text(f"note: {visible_text(warning)}", "yellow"))
    for warning in comparison.warnings:
        console.print(Text(f"note: {visible_text(warning)}", "yellow"))
    print_next_steps(steps, console)


def _markdown(table: TextTable) -> list[str]:
    """Return a table under its title, with how to read it."""
    parts = [f"## {escape(table.title)}", *map(escape, [*table.notes, table.explanation])]
    if table.rows:
        parts.append(markdown_table(table.head, table.texts(), markdown_cell, numeric=range(1, len(table.head))))
    return parts


def _policy(policy: PolicyTable) -> RenderableType:
    """Return the sentence and the columns that fit into 80: the first metric with its interval, KL, tokens, minutes."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(FIRST_COLUMN, overflow="fold")
    indices = short_columns(policy)
    heads = ["seeds", *(column_title(policy, index) for index in indices[:1]), f"\u2212 {policy.baseline}"]
    heads += [*("KL" for _ in indices[1:]), "tokens", "minutes"]
    for head in heads:
        table.add_column(Text(visible_text(head)), justify="right", overflow="fold")
    for row in policy.rows:
        difference = policy.find(policy.baseline, row.title, 0)
        compared = difference_cell(difference)
        values = [Text(value_text(row.values[index])) for index in indices]
        verdict = compared.verdict
        interval = Text(compared.text, STYLES[verdict] if verdict in ("better", "worse") else "dim")
        costs = [Text(count_text(row.budget.training_tokens)), Text(decimal_text(row.budget.minutes))]
        title = Text(visible_text(row.title))
        table.add_row(title, Text(str(len(row.seeds))), *values[:1], interval, *values[1:], *costs)
    heading = Text.assemble("\n", (visible_text(policy.policy), "bold"), f": {visible_text(policy.sentence)}")
    return Group(heading, table)
