"""The result on a terminal: the verdicts, the rows that decide, failed guards, and where to look next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from workbench.config.names import EVALUATION, TRAINED_BY
from workbench.evaluation.evidence import Retention
from workbench.evaluation.glossary import MEANINGS
from workbench.evaluation.non_inferiority import retention_sentence
from workbench.evaluation.ranking import best_sentence
from workbench.evaluation.results import Difference, Results, RunVerdict, SetResult, Verdict
from workbench.evaluation.reward_gap import describe_gap, gaps_by_set
from workbench.report.page import visible_text
from workbench.report.row_tables import Cell, RowTable
from workbench.report.tables import (
    DETECTABLE,
    Row,
    doubts,
    format_detectable,
    format_interval,
    format_mean,
    format_metric,
    format_value,
    interval_name,
    sampling_description,
    set_table,
    set_title,
)
from workbench.run.folder import Run
from workbench.run.options import command_line
from workbench.toy import toy_name

STYLES: dict[Verdict, str] = {"better": "bold green", "worse": "bold red", "no detectable change": "bold yellow"}
RETENTION_STYLES: dict[Retention, str] = {"kept": "bold green", "lost": "bold red", "not shown": "bold yellow"}
WORDS: dict[Verdict, str] = {"better": "better", "worse": "worse", "no detectable change": "none"}
MAX_MODELS, MAX_TITLE = 3, 10  # more do not fit into 80 columns; the page has all
NO_TABLES: Mapping[str, RowTable] = MappingProxyType({})
WIDE = 100  # columns; a narrower terminal has no room for the detectable effect
NARROW = 60  # columns; a narrower terminal has room for the two compared models alone


def print_results(
    results: Results,
    next_steps: Sequence[tuple[str, str]],
    console: Console | None = None,
    *,
    tables: Mapping[str, RowTable] = NO_TABLES,
    notes: Sequence[str] = (),
    sampling: str | None = None,
) -> None:
    """Print a summary of the results and notes on it, then `next_steps`: what each is for, and its path or command.

    `tables` of several runs, by heading, take the place of those of the two compared models; `sampling` says how the
    completions were sampled; default: as the results' settings say.
    """
    sampling = sampling or sampling_description(results.settings)
    console = console or Console(highlight=False)
    console.print()
    for verdict in results.verdicts:
        console.print(_verdict(verdict))
    if retained := retention_sentence(results):
        console.print(Text(visible_text(retained)))
    for heading, rows in tables.items():
        console.print(_row_table(heading, rows, "run"))
    for result in () if tables else results.sets:
        console.print(_set(result, results, sampling, console.width))
    if results.guards:
        console.print(_guards(results))
    for note in notes:
        console.print(Text(f"note: {visible_text(note)}", "yellow"))
    print_next_steps(next_steps, console)


def print_rows(
    results: Results,
    tables: Mapping[str, RowTable],
    first_column: str,
    next_steps: Sequence[tuple[str, str]],
    console: Console | None = None,
) -> None:
    """Print the verdicts, the best row, tables of models compared with the first, by heading, and `next_steps`."""
    console = console or Console(highlight=False)
    console.print()
    verdicts = [_verdict(verdict) for verdict in results.verdicts]
    console.print(Group(*verdicts, Text(visible_text(best_sentence(results)))))
    for heading, rows in tables.items():
        console.print(_row_table(heading, rows, first_column))
    for result in results.sets:
        for doubt in doubts(result, results):
            console.print(Text(f"{visible_text(set_title(result))}: {doubt}", "yellow"))
    print_next_steps(next_steps, console)


def _row_table(heading: str, rows: RowTable, first_column: str) -> RenderableType:
    """Return a table of models compared with the first, under its heading."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(first_column, overflow="fold")
    for column in rows.headings:
        table.add_column(Text(visible_text(column)), justify="right", overflow="fold")
    for title, cells in rows.rows.items():
        # One interval fits into 80 columns; the page has all.
        row = [_row_cell(cell, with_interval=index == 0) for index, cell in enumerate(cells)]
        table.add_row(Text(visible_text(title)), *row)
    return Group(Text.assemble("\n", (visible_text(heading), "bold")), table)


def _row_cell(cell: Cell, *, with_interval: bool) -> Text:
    """Return a mean in the color of its verdict, and optionally the interval of its difference."""
    if cell.mean is None:
        return Text("")
    verdict = cell.difference.adjusted_verdict if cell.difference is not None else None
    mean = Text(format_value(cell.mean), STYLES[verdict] if verdict in ("better", "worse") else "")
    return mean.append(f" {format_interval(cell.difference)}", "dim") if cell.difference and with_interval else mean


def next_steps(run: Run, results: Results) -> list[tuple[str, str]]:
    """Return where to look and what to do with the run's evaluation: the purpose and the path or command of each."""
    name = shlex.quote(str(run.folder))
    steps = [
        ("page", str(run.folder / EVALUATION / "report.html")),
        ("compare", f"{command_line('compare', 'workbench.compare')} {name} OTHER_RUN"),
    ]
    if TRAINED_BY.keys() & set(results.models):
        steps.append(("ask", f"{command_line('playground', 'workbench.playground')} --run {name}"))
        policy = run.config.policy
        # An adapter of a toy model loads only with this project, so that its export is a merged model.
        merge = " --merge" if policy.lora is not None and toy_name(policy.model) is not None else ""
        steps.append(("publish", f"{command_line('export', 'workbench.export')} --run {name} --to FOLDER{merge}"))
    return steps


def _verdict(verdict: RunVerdict) -> RenderableType:
    """Return the question and the verdict, with the finding below."""
    return Group(
        Text(visible_text(verdict.headline), STYLES[verdict.word]),
        Padding(Text(visible_text(verdict.sentence)), (0, 0, 0, 2), expand=False),
    )


def _set(result: SetResult, results: Results, sampling: str, width: int) -> RenderableType:
    """Return the heading of a set, what is doubtful about it, and its key metrics by group."""
    fits = len(results.models) <= MAX_MODELS and width >= NARROW
    models = results.models if fits else [results.before, results.after]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    titles = {model: visible_text(short) for model, short in short_titles(results.models).items()}
    level = interval_name(results.settings).removesuffix(" interval")
    heads = [*(titles[model] for model in models), f"{titles[results.after]} - {titles[results.before]}, {level}"]
    table.add_column("", overflow="fold")
    for head in [*heads, *([DETECTABLE] if width >= WIDE else [])]:
        table.add_column(Text(head), justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    for group, rows in set_table(result, models, results.before, results.after).groups().items():
        key_rows = [row for row in rows if MEANINGS[row.metric.name].is_key]
        if key_rows:
            table.add_row(Text(group, "dim"))
        for row in key_rows:
            table.add_row(*_cells(row, is_wide=width >= WIDE))
    heading = Text.assemble(
        "\n",
        (visible_text(set_title(result)), "bold"),
        f": {result.size}" + (f", {sampling}" if result.has_completions else ""),
    )
    gaps = [Text(visible_text(describe_gap(gap))) for measured, gap in gaps_by_set(results) if measured is result]
    return Group(heading, *(Text(doubt, "yellow") for doubt in doubts(result, results)), table, *gaps)


def short_titles(titles: Sequence[str]) -> dict[str, str]:
    """Return each title with the end of it that fits a column; all in full where two of them end alike."""
    short = {title: title if len(title) <= MAX_TITLE else f"\u2026{title[1 - MAX_TITLE :]}" for title in titles}
    return short if len(set(short.values())) == len(titles) else {title: title for title in titles}


def _cells(row: Row, *, is_wide: bool) -> list[Text]:
    """Return the cells of a row: metric, means, interval of the difference, words, and where it fits the effect."""
    effect = [Text(format_detectable(row.difference) if row.difference else "")] if is_wide else []
    return [
        Text(f" {format_metric(row.metric)}"),
        *(Text(format_mean(mean)) for mean in row.means),
        Text(format_interval(row.difference) if row.difference else ""),
        *effect,
        _words(row.difference, is_wide) if row.difference else Text(""),
    ]


def _words(difference: Difference, is_wide: bool) -> Text:
    """Return the words for a difference: its verdict, and whether the metric was retained; only one if not `is_wide`.

    The line above the tables says of every metric whether it was retained.
    """
    verdict, retained = difference.adjusted_verdict, difference.non_inferiority
    words = [Text(WORDS[verdict], STYLES[verdict])] if verdict else []
    words += [Text(retained.word, RETENTION_STYLES[retained.word])] if retained else []
    return Text(", ").join(words if is_wide else words[:1])


def _guards(results: Results) -> RenderableType:
    """Return the failed guards in words, and how many passed."""
    failed = [guard for guard in results.guards if not guard.passed]
    passed = len(results.guards) - len(failed)
    lines = [
        Text.assemble(("guard failed: ", "bold red"), visible_text(f"{guard.name}: {guard.text}")) for guard in failed
    ]
    return Group(Text(""), *lines, Text(f"guards: {passed} passed" + (f", {len(failed)} failed" if failed else "")))


def print_next_steps(steps: Sequence[tuple[str, str]], console: Console) -> None:
    """Print steps as two aligned columns that are not wrapped, so that they can be copied."""
    width = max((len(name) for name, _ in steps), default=0)
    console.print(Text("\n" + "\n".join(f"{name.ljust(width)}  {text}" for name, text in steps)), soft_wrap=True)
