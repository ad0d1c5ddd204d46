"""Several runs on one page: what differs between them, the differences of their results, and curves on one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from workbench.comparison.run_comparison import RunComparison
from workbench.evaluation.results import KL, PERPLEXITY, REWARD, ROUGE_L, TOXICITY, Results
from workbench.report.curves import Log, distributions, overlaid_plots
from workbench.report.evaluation_page import sections, verdict_box
from workbench.report.examples import example_metrics, examples_section
from workbench.report.page import page, table, text
from workbench.report.row_tables import COLUMNS, RowTable, row_table, row_table_markup
from workbench.report.set_tables import sets_section
from workbench.report.tables import interval_name, set_title

ALL = (*COLUMNS, KL, PERPLEXITY)
SHORT = (TOXICITY, REWARD, ROUGE_L, KL)
"""Columns that fit on a terminal."""


def comparison_page(
    comparison: RunComparison,
    *,
    run_rows: Sequence[Sequence[str]],
    settings: Mapping[str, Sequence[str]],
    curves: Mapping[str, Mapping[str, Log]],
    toxic_words: Sequence[str] = (),
) -> str:
    """Return a self-contained HTML document.

    `run_rows` are the heading and the cells of the list of runs, `settings` holds by key what differs between the
    configurations, and `curves` the lines of each stage's metrics.jsonl by run.
    """
    results, examples = comparison.results, comparison.examples
    head, *rows = run_rows
    runs = table(head, [[text(cell) for cell in row] for row in rows])
    cells = [
        [text(key), *(f'<span class="text">{text(value)}</span>' for value in row)] for key, row in settings.items()
    ]
    differing = table(["setting", *results.models], cells)
    parts = {
        "runs": ("Runs", f'<div class="left">{runs}{differing if settings else "<p>No setting differs.</p>"}</div>'),
        "table": ("Runs compared", _tables(results)),
        "sets": ("Results", sets_section(results, example_metrics(examples))),
        "distributions": ("Distributions", distributions(results, examples)),
        "training": ("Training", overlaid_plots(curves)),
        "examples": ("Examples", examples_section(results, examples, toxic_words)),
    }
    title = f"{results.after} compared with {results.before}"
    body = (
        f"<header><h1>{text(title)}</h1></header>{verdict_box(results)}"
        + "".join(f'<p class="warning">{text(note)}</p>' for note in comparison.notes)
        + sections(parts)
    )
    script = "".join(files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("text.js", "report.js"))
    return page(title, body, script)


def run_tables(results: Results, columns: Sequence[str] = ALL) -> dict[str, RowTable]:
    """Return for each set a table with a row for each run, compared with the first; by heading."""
    interval = f"in brackets: difference from {results.models[0]}, {interval_name(results.settings)}"
    return {
        f"{set_title(result)}: {result.size}; {interval}": row_table(result, results.models, columns)
        for result in results.sets
    }


def _tables(results: Results) -> str:
    """Return the table of every set as markup."""
    return "".join(row_table_markup(table, "run", heading) for heading, table in run_tables(results).items())
