"""A comparison of prompts as a page and as Markdown: the grid, the prompts in full, and what was inspected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.evaluation.results import REWARD, ROUGE_L, TOKENS_PER_SECOND, TOXICITY, Example, Results
from workbench.prompting.inspection import Inspection, Step
from workbench.prompting.results import Grid, GridRow
from workbench.report.blurring import toxic_texts, toxic_words
from workbench.report.evaluation_page import configuration_section, provenance_section
from workbench.report.examples import example_metrics, examples_section
from workbench.report.markdown import escape
from workbench.report.page import table, text
from workbench.report.row_tables import RowTable, row_table, row_table_markdown, row_table_markup
from workbench.report.rows_page import rows_page
from workbench.report.set_tables import sets_section
from workbench.report.tables import insufficient_prompts, interval_name, sampling_description, set_title
from workbench.rewards.contract import Judge
from workbench.run.files import write_text

BAR_WIDTH, BAR_HEIGHT = 120, 10
FIRST_COLUMN = "prompt"
SHORT_COLUMNS = (ROUGE_L, REWARD, TOXICITY, "tokens", TOKENS_PER_SECOND)
CAPTION = "Means over prompts; below, the difference from the first row, paired by prompt"


def write_prompting_report(
    folder: Path,
    results: Results,
    examples: Sequence[Example],
    grid: Grid,
    *,
    judges: Mapping[str, Judge],
    configuration: str,
) -> None:
    """Write report.md and report.html into `folder`; the words that one of `judges` finds toxic are blurred."""
    threshold = results.settings.threshold
    words = toxic_words(toxic_texts(examples, threshold), judges, threshold)
    document = prompting_page(results, examples, grid, blurred=words, configuration=configuration)
    write_text(folder / "report.md", prompting_markdown(results, grid))
    write_text(folder / "report.html", document)


def prompting_page(
    results: Results, examples: Sequence[Example], grid: Grid, *, blurred: Sequence[str], configuration: str
) -> str:
    """Return a self-contained HTML document; the words `blurred` are blurred individually in toxic texts."""
    parts = {
        "grid": ("Prompts compared", "".join(grid_section(results))),
        "prompts": ("The prompts", "".join(map(prompt_markup, grid.rows))),
        "inspect": ("Step by step", inspections_section(grid.inspections)),
        "sets": ("All metrics", sets_section(results, example_metrics(examples))),
        "examples": ("Examples", examples_note(results) + examples_section(results, examples, blurred)),
        "provenance": ("Provenance", provenance_section(results) + configuration_section(configuration)),
    }
    return rows_page(results, parts)


def prompting_markdown(results: Results, grid: Grid) -> str:
    """Return the verdicts, the grid of each set, and how each row was made."""
    parts = [f"**{escape(verdict.headline)}**: {escape(verdict.sentence)}" for verdict in results.verdicts]
    for result in results.sets:
        heading = f"**{escape(set_title(result))}**: {result.size}; in brackets: {interval_name(results.settings)}"
        parts += [heading, row_table_markdown(row_table(result, results.models), FIRST_COLUMN)]
    parts += [f"- {escape(row.title)}: {escape(sampling_description(row.settings))}" for row in grid.rows]
    return "\n\n".join(parts) + "\n"


def short_tables(results: Results) -> dict[str, RowTable]:
    """Return the tables that fit on a terminal, by heading."""
    return {
        f"{set_title(result)}: {result.size}; in brackets: difference from the first row, "
        f"{interval_name(results.settings)}": row_table(result, results.models, SHORT_COLUMNS)
        for result in results.sets
    }


def grid_section(results: Results) -> list[str]:
    """Return the heading, the warnings and the table of each set."""
    markup = []
    for result in results.sets:
        warning = insufficient_prompts(result, results)
        caption = f"{CAPTION} [{interval_name(results.settings)}]"
        markup += [
            f"<h3>{text(set_title(result))}</h3><p>{result.size}.</p>",
            f'<p class="warning">{text(warning)}</p>' if warning else "",
            row_table_markup(row_table(result, results.models), FIRST_COLUMN, caption),
        ]
    return markup


def prompt_markup(row: GridRow) -> str:
    """Return how a row was made, and its first prompt in full behind a disclosure."""
    too_long = {name: count for name, count in row.too_long.items() if count}
    left_out = "; ".join(f"{count} of {name} are too long" for name, count in too_long.items())
    return (
        f"<details><summary><strong>{text(row.title)}</strong>: {text(sampling_description(row.settings))}"
        f"{text(f'; {left_out}') if left_out else ''}</summary>"
        f'<pre class="text">{text(row.prompt)}</pre></details>'
    )


def examples_note(results: Results) -> str:
    """Return whose prompts the examples have: each row words them in its own way."""
    return (
        f"<p>The prompts here are worded as in the row {text(results.before)}; <em>The prompts</em>, above, has one of "
        "each row in full.</p>"
    )


def inspections_section(inspections: Sequence[Inspection]) -> str:
    """Return the steps of each completion behind a disclosure; "" without any."""
    if not inspections:
        return ""
    explanation = (
        "<p>At each step the likeliest tokens, with their probability under the model and, below it, the probability "
        "with which each is drawn after repetition penalty, temperature, top-k and top-p.</p>"
    )
    return explanation + "".join(map(inspection_markup, inspections))


def inspection_markup(inspection: Inspection) -> str:
    """Return the steps of one completion."""
    steps = len(inspection.steps)
    first = f"first {steps} of " if steps < inspection.tokens else ""
    return (
        f"<details><summary>{text(inspection.title)}: {text(inspection.set)}, prompt {inspection.index + 1} "
        f"({first}{inspection.tokens} token{'s' * (inspection.tokens != 1)})"
        f'</summary><details><summary>Prompt</summary><pre class="text">{text(inspection.prompt)}</pre></details>'
        + '<div class="plots">'
        + "".join(step_markup(number, step) for number, step in enumerate(inspection.steps, 1))
        + "</div></details>"
    )


def step_markup(number: int, step: Step) -> str:
    """Return a step as a figure: a row with two bars for each candidate."""
    possible = "" if step.possible is None else f", drawn from {step.possible:,}"
    rows = [
        [
            f"<strong>{text(visible(c.text))}</strong>" if c.text == step.text else text(visible(c.text)),
            bars(c.before, c.after),
            percent(c.before) + ("" if c.after is None else f"<br>{percent(c.after)}"),
        ]
        for c in step.candidates
    ]
    heading = f"{number}: {text(visible(step.text))}{possible}"
    return f"<figure><figcaption>{heading}</figcaption>{table(['token', 'before, after', ''], rows)}</figure>"


def bars(before: float, after: float | None) -> str:
    """Return the bar of a probability, and the bar after below it."""
    drawn = [(before, "same")] + ([] if after is None else [(after, "c0")])
    height = BAR_HEIGHT * len(drawn)
    shapes = "".join(
        f'<rect class="{tone}" x="0" y="{index * BAR_HEIGHT + 1}" width="{value * BAR_WIDTH:.1f}" '
        f'height="{BAR_HEIGHT - 2}"/>'
        for index, (value, tone) in enumerate(drawn)
    )
    return f'<svg class="bars" viewBox="0 0 {BAR_WIDTH} {height}" aria-hidden="true">{shapes}</svg>'


def percent(probability: float) -> str:
    """Return a probability in percent."""
    return f"{100 * probability:.1f} %"


def visible(token: str) -> str:
    """Return a token with its spaces and line breaks visible."""
    return token.replace(" ", "\u2423").replace("\n", "\u23ce")
