"""The page of a comparison of algorithms: what the intervals support, the tables, curves against KL, and examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from importlib.resources import files

from workbench.comparison.results import AlgorithmComparison, AlgorithmRow, PolicyTable
from workbench.comparison.training_curves import ValidationPoint
from workbench.evaluation.results import KL, Example, Results
from workbench.report.algorithm_tables import (
    TextCell,
    TextTable,
    budget_table,
    difference_table,
    kl_table,
    operating_table,
    result_table,
    row_number,
)
from workbench.report.evaluation_page import provenance_section, sections
from workbench.report.examples import examples_section
from workbench.report.page import page, table, text
from workbench.report.set_tables import TONES, minus
from workbench.report.svg import Point, Series, frontier_plot, line_plot

TITLE = "Algorithms compared"
HELD_OUT, SCORE = "held_out", "score"
CURVES = {HELD_OUT: "held-out reward", SCORE: "reward"}
PLAIN_KL = "KL, nats per response"
FAR = 3
"""A row whose KL is so many times that of every trained row, and of 1 nat, is off the plot."""


def algorithms_page(
    comparison: AlgorithmComparison, results: Results, examples: Sequence[Example], toxic_words: Sequence[str] = ()
) -> str:
    """Return a self-contained HTML document; `results` and `examples` are the completions of every row."""
    policies = comparison.policies
    trained = [policy for policy in policies if policy.trained]
    shared = "" if results.sets else "<p>The runs have no prompt in common, so no completion is side by side.</p>"
    parts = {
        "frontier": ("Toxicity against KL", plots(list(map(frontier, policies)))),
        "results": ("Results", tables(policies, result_table)),
        "differences": ("Differences", tables(policies, difference_table)),
        "training": ("Along training", plots([plot for each in policies for plot in training_plots(each)])),
        "matched": ("At the same KL", tables(trained, kl_table)),
        "operating": ("Operating points", tables(trained, operating_table)),
        "budgets": ("Budgets and costs", tables(policies, budget_table)),
        "examples": ("Examples", shared or examples_section(results, examples, toxic_words)),
        "settings": ("Settings that differ", "".join(map(settings, policies))),
        "provenance": ("Provenance", "".join(provenance(each, results) for each in policies)),
    }
    body = (
        '<a class="skip" href="#examples">Skip to the examples</a>'
        f"<header><h1>{TITLE}</h1></header>"
        + "".join(map(summary, policies))
        + "".join(map(warning, comparison.warnings))
        + sections(parts)
    )
    script = "".join(files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("text.js", "report.js"))
    return page(f"{TITLE}: {', '.join(each.policy for each in policies)}", body, script)


def summary(policy: PolicyTable) -> str:
    """Return what the intervals support, and what is doubtful."""
    return (
        f'<section class="verdict same" aria-label="Verdict on {text(policy.policy)}">'
        f'<div class="word">{text(policy.policy)}</div><p>{text(policy.sentence)}.</p></section>'
        + "".join(map(warning, policy.warnings))
    )


def warning(sentence: str) -> str:
    """Return a warning as markup."""
    return f'<p class="warning">{text(sentence)}</p>'


def plots(figures: Sequence[str]) -> str:
    """Return the figures beside each other; "" without any."""
    return f'<div class="plots">{"".join(figures)}</div>' if any(figures) else ""


def frontier(policy: PolicyTable) -> str:
    """Return the first column of every row against its KL; "" where one of them was not measured."""
    columns = policy.columns
    x = next((i for i, c in enumerate(columns) if c.metric.name == KL and c.set == columns[0].set), None)
    if x is None:
        return ""
    points = [
        Point(row.title, kl, value, number)
        for number, row in enumerate(policy.rows)
        if (kl := row.values[x].mean) is not None and (value := row.values[0].mean) is not None
    ]
    if not points:
        return ""
    # One row that is far away would leave no room between the others.
    trained = [point.x for point in points if policy.rows[point.number].is_trained]
    limit = FAR * max(1.0, *trained) if trained else math.inf
    far = [point for point in points if point.x > limit]
    points = [point for point in points if point.x <= limit]
    metric = columns[0].metric
    better = f" ({metric.direction} is better)" if metric.direction else ""
    outside = f" (off the plot: {', '.join(f'{each.name}, {each.x:.0f} nats' for each in far)})" if far else ""
    return frontier_plot(
        f"{policy.policy}: {metric.label} against KL{outside}",
        points,
        x_label="KL to the reference, nats per completion",
        y_label=f"{metric.label}{better}",
        lower_x=True,
        lower_y=metric.direction == "lower",
    )


def training_plots(policy: PolicyTable) -> list[str]:
    """Return the rewards of every trained row against KL along training; none where no validation has both."""
    figures = []
    for name, label in CURVES.items():
        series = [curve(policy, row, name) for row in policy.trained]
        series = [each for each in series if each.xs]
        if series:
            title = f"{policy.policy}: {label} on validation prompts, mean over seeds"
            figures.append(line_plot(title, series, x_label=PLAIN_KL, y_label=label, marks=True, x_mark=policy.kl))
    return figures


def curve(policy: PolicyTable, row: AlgorithmRow, name: str) -> Series:
    """Return a reward against KL at every validation of a row that has both, in the color of the row."""

    def value(point: ValidationPoint) -> float | None:
        return point.held_out if name == HELD_OUT else point.score

    pairs = [(point.kl, y) for point in row.curve if point.kl is not None and (y := value(point)) is not None]
    return Series(row.title, [x for x, _ in pairs], [y for _, y in pairs], row_number(policy, row))


def settings(policy: PolicyTable) -> str:
    """Return the settings in which the trained rows differ."""
    head = ["setting", *(row.title for row in policy.trained)]
    rows = [
        [text(key), *(f'<span class="text">{text(value)}</span>' for value in values)]
        for key, values in policy.differing_settings.items()
    ]
    content = table(head, rows) if rows else "<p>No setting differs.</p>"
    return f'<h3>{text(policy.policy)}</h3><div class="left">{content}</div>'


def provenance(policy: PolicyTable, results: Results) -> str:
    """Return the run of every row and seed, and how the first of them was evaluated."""
    rows = [
        [text(row.title), str(seed), f'<span class="text">{text(folder)}</span>', text(row.model)]
        for row in policy.rows
        for seed, folder in zip(row.seeds, row.folders, strict=True)
    ]
    runs = table(["algorithm", "seed", "run", "model in its evaluation"], rows)
    first = dataclasses.replace(
        results,
        settings=policy.settings,
        provenance=policy.provenance,
        before=policy.baseline,
        after=policy.rows[-1].title,
    )
    evaluated = f"<summary>How {text(policy.rows[0].folders[0])} was evaluated</summary>{provenance_section(first)}"
    return f'<h3>{text(policy.policy)}</h3><div class="left">{runs}</div><details>{evaluated}</details>'


def tables(policies: Sequence[PolicyTable], make: Callable[[PolicyTable], TextTable]) -> str:
    """Return the table of every policy under its title, after how to read them; "" without a policy."""
    contents = [make(policy) for policy in policies]
    explanation = "".join(f"<p>{text(content.explanation)}</p>" for content in contents[:1])
    return explanation + "".join(map(_table, contents))


def _table(content: TextTable) -> str:
    """Return a table as markup, its cells in the color of their verdicts."""
    notes = "".join(f"<p>{text(note)}</p>" for note in content.notes)
    rows = [[text(row[0].text), *map(_cell, row[1:])] for row in content.rows]
    head = [title.replace(" \u2191", "\u00a0\u2191").replace(" \u2193", "\u00a0\u2193") for title in content.head]
    markup = f'<div class="wrapped">{table(head, rows)}</div>' if rows else ""
    return f"<h3>{text(content.title)}</h3>{notes}{markup}"


def _cell(cell: TextCell) -> str:
    """Return a cell as markup; an interval stands below its difference."""
    value, bracket, interval = cell.text.partition(" [")
    markup = text(minus(value))
    if bracket:
        markup += f'<span class="words">{text(minus(f"[{interval}"))}</span>'
    tone = TONES.get(cell.verdict or "", "")
    return f'<span class="{tone}" title="{text(cell.verdict)}">{markup}</span>' if tone else markup
