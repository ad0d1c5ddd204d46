"""A comparison of ways to tune as a page, as Markdown and on a terminal: one table, and what learning costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.config.names import SFT
from workbench.evaluation.results import (
    DISK_MB,
    MINUTES,
    PEAK_MEMORY,
    REWARD,
    ROUGE_L,
    SIMILARITY,
    TEXT_NLL,
    TEXT_PERPLEXITY,
    TOXICITY,
    TRAINED_PARAMETERS,
    TRAINED_SHARE,
    Example,
    Results,
    SetResult,
)
from workbench.report.blurring import toxic_texts, toxic_words
from workbench.report.curves import Log, overlaid_plots
from workbench.report.evaluation_page import configuration_section, provenance_section
from workbench.report.examples import example_metrics, examples_section
from workbench.report.markdown import escape
from workbench.report.page import text
from workbench.report.row_tables import RowTable, joined, row_table, row_table_markdown, row_table_markup
from workbench.report.rows_page import rows_page
from workbench.report.set_tables import sets_section
from workbench.report.svg import Point, frontier_plot
from workbench.report.tables import doubts, interval_name, sampling_description, set_title
from workbench.rewards.contract import Judge
from workbench.run.files import write_text

QUALITY = ("ROUGE-1", "ROUGE-2", ROUGE_L, "BLEU", SIMILARITY, REWARD, TOXICITY)
RETENTION = (ROUGE_L, TEXT_NLL, TEXT_PERPLEXITY)
COSTS = (TRAINED_PARAMETERS, TRAINED_SHARE, DISK_MB, PEAK_MEMORY, MINUTES)
FIRST_COLUMN = "method"
CAPTION = (
    "Means over prompts; below, the difference from the first row, paired by prompt. Columns of a retention set are "
    "about what was not tuned to."
)


def write_tuning_report(
    folder: Path,
    results: Results,
    examples: Sequence[Example],
    *,
    judges: Mapping[str, Judge],
    curves: Mapping[str, Log],
    configuration: str,
) -> None:
    """Write report.md and report.html into `folder`; `curves` are the lines of each method's metrics.jsonl by title."""
    threshold = results.settings.threshold
    words = toxic_words(toxic_texts(examples, threshold), judges, threshold)
    document = tuning_page(results, examples, blurred=words, curves=curves, configuration=configuration)
    write_text(folder / "report.md", tuning_markdown(results))
    write_text(folder / "report.html", document)


def tuning_page(
    results: Results,
    examples: Sequence[Example],
    *,
    blurred: Sequence[str],
    curves: Mapping[str, Log],
    configuration: str,
) -> str:
    """Return a self-contained HTML document; the words `blurred` are blurred individually in toxic texts."""
    logs = {title: {SFT: log} for title, log in curves.items()}
    parts = {
        "methods": ("Methods compared", table_section(results)),
        "frontier": ("What is learned, and what it costs", frontier_section(results)),
        "training": ("Training", overlaid_plots(logs)),
        "sets": ("All metrics", sets_section(results, example_metrics(examples))),
        "examples": ("Examples", examples_section(results, examples, blurred)),
        "provenance": ("Provenance", provenance_section(results) + configuration_section(configuration)),
    }
    return rows_page(results, parts)


def tuning_markdown(results: Results) -> str:
    """Return the verdicts and the table."""
    parts = [f"**{escape(verdict.headline)}**: {escape(verdict.sentence)}" for verdict in results.verdicts]
    parts += [escape(f"{set_title(each)}: {doubt}") for each in results.sets for doubt in doubts(each, results)]
    parts += [escape(sizes(results)), row_table_markdown(tuning_table(results), FIRST_COLUMN)]
    return "\n\n".join(parts) + "\n"


def short_tables(results: Results) -> dict[str, RowTable]:
    """Return the table that fits on a terminal, by heading."""
    return {sizes(results): tuning_table(results, (ROUGE_L,), (ROUGE_L, TEXT_NLL), (TRAINED_SHARE, DISK_MB, MINUTES))}


def tuning_table(
    results: Results,
    quality: Sequence[str] = QUALITY,
    retention: Sequence[str] = RETENTION,
    costs: Sequence[str] = COSTS,
) -> RowTable:
    """Return one table: quality on the sets that were tuned to, what was retained, and what each method cost."""
    several = sum(not result.neutral for result in results.sets) > 1
    tables = {
        (set_title(result) if result.neutral or several else ""): row_table(
            result, results.models, retention if result.neutral else quality
        )
        for result in results.sets
    }
    right = row_table(results.sets[0], results.models, costs)
    left = joined(tables)
    return RowTable(
        left.metrics + right.metrics,
        left.headings + right.headings,
        {title: cells + right.rows[title] for title, cells in left.rows.items()},
    )


def table_section(results: Results) -> str:
    """Return the warnings and the table."""
    warnings = [
        f'<p class="warning">{text(set_title(result))}: {text(doubt)}</p>'
        for result in results.sets
        for doubt in doubts(result, results)
    ]
    markup = row_table_markup(tuning_table(results), FIRST_COLUMN, CAPTION)
    return f"<p>{text(sizes(results))}</p>{''.join(warnings)}{markup}"


def sizes(results: Results) -> str:
    """Return how many prompts each set has, and how completions were generated and compared."""
    counts = "; ".join(f"{set_title(result)}: {result.size}" for result in results.sets)
    how = f"{sampling_description(results.settings)}; in brackets: difference from the first row, "
    how += interval_name(results.settings)
    return f"{counts}; {how}"


def frontier_section(results: Results) -> str:
    """Return plots of quality against what was forgotten and against what was trained, each with its frontier."""
    task = next((result for result in results.sets if not result.neutral), results.sets[0])
    quality = means(task, ROUGE_L)
    if task.neutral or not quality:
        missing = "every set is neutral" if task.neutral else f"{ROUGE_L} was not measured"
        return (
            f"<p>No plot: {text(missing)}, so that nothing says what was learned. The table has what was measured.</p>"
        )
    plots, numbers = "", {title: index for index, title in enumerate(results.models)}
    for result in results.sets:
        for name in (TEXT_NLL, ROUGE_L):
            values = means(result, name) if result.neutral else {}
            if values:
                label = f"{name} on {set_title(result)}"
                plots += _plot(label, quality, values, numbers, lower=name == TEXT_NLL)
    trained = {title: value / 1e6 for title, value in means(results.sets[0], TRAINED_PARAMETERS).items()}
    plots += _plot("millions of trained parameters", quality, trained, numbers, lower=True)
    explanation = "<p>The line joins the methods that no other one beats on both axes.</p>"
    return f'{explanation}<div class="plots">{plots}</div>'


def _plot(
    label: str, quality: Mapping[str, float], values: Mapping[str, float], numbers: Mapping[str, int], *, lower: bool
) -> str:
    """Return a plot of the task's ROUGE-L against another value, of which less or more is better."""
    points = [Point(title, values[title], quality[title], numbers[title]) for title in quality if title in values]
    x_label, y_label = f"{label} ({'lower' if lower else 'higher'} is better)", f"{ROUGE_L} (higher is better)"
    return frontier_plot(f"{ROUGE_L} against {label}", points, x_label=x_label, y_label=y_label, lower_x=lower)


def means(result: SetResult, name: str) -> dict[str, float]:
    """Return the means of a metric by title, without those that are missing."""
    summary = result.summary(name)
    return {} if summary is None else {title: mean for title, mean in summary.means.items() if mean is not None}
