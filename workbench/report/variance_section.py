"""Where the variance of the main differences comes from, and what would lower it most, as HTML and Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable

from workbench.evaluation.results import MetricVariance, Results, SetResult
from workbench.evaluation.variance_components import Component, VarianceSplit
from workbench.report.page import table, text
from workbench.report.svg import number
from workbench.report.tables import set_title

CAPTION = "Share of each source in the squared standard error of the difference, and the error that twice as many give"
EXPLANATION = (
    "A difference varies with the prompts that were drawn, with the sampling seeds, and from sample to sample of the "
    "same prompt. Twice as many prompts, samples or seeds cost the same number of completions."
)
# Errors closer than this, as a ratio, are equally good.
SAME = 1.005


def variance_section(results: Results) -> str:
    """Return the components of the variance on each set as markup; "" where only prompts can be seen."""
    parts = "".join(_markup(result) for result in results.sets if result.variances)
    return f"<p>{text(EXPLANATION)}</p>{parts}" if parts else ""


def variance_markdown(
    result: SetResult, to_table: Callable[[list[str], list[list[str]]], str], escape: Callable[[str], str]
) -> list[str]:
    """Return the same of one set as parts of a Markdown text; `to_table` makes a table, `escape` a text."""
    rows = variance_rows(result)
    if not rows:
        return []
    return [
        escape(f"{CAPTION}. {EXPLANATION}"),
        to_table(variance_head(result), rows),
        "\n".join(f"- {escape(sentence)}" for sentence in sentences(result)),
    ]


def variance_head(result: SetResult) -> list[str]:
    """Return the heading of the table; all metrics of a set have the same sources."""
    units, split = f"{result.unit_noun}s", result.variances[0].split
    levels = [component.level.replace("prompts", units).replace(" x ", " \u00d7 ") for component in split.components]
    seeds = [] if split.twice_seeds is None else ["twice the seeds"]
    return ["metric", *levels, "standard error", f"twice the {units}", "twice the samples", *seeds]


def variance_rows(result: SetResult) -> list[list[str]]:
    """Return the cells of each metric as plain text."""
    return [_cells(variance) for variance in result.variances]


def sentences(result: SetResult) -> list[str]:
    """Return what helps most for each metric, and what the numbers cannot show."""
    units = f"{result.unit_noun}s"
    lines = [f"{each.metric.label}: {advice(each.split, units)}" for each in result.variances]
    if any(component.is_truncated for each in result.variances for component in each.split.components):
        lines.append("negative: the estimate is below 0, by chance where such variance is small, and counts as 0")
    split = result.variances[0].split
    if split.seeds == 1:
        lines.append(f"one seed cannot show how much seeds vary; what it does to a prompt counts to the {units}")
    elif split.samples == 1:
        lines.append(f"with one sample per prompt and seed, {units} \u00d7 seeds count to the samples")
    return lines


def advice(split: VarianceSplit, units: str) -> str:
    """Return which of prompts, samples and seeds, doubled, lowers the standard error most, with all of the errors."""
    if split.standard_error == 0:
        return "no variance, so more completions change nothing"
    errors = {units: split.twice_prompts, "samples": split.twice_samples}
    if split.twice_seeds is not None:
        errors["seeds"] = split.twice_seeds
    least = min(errors.values())
    best = [name for name, error in errors.items() if error <= SAME * least]
    listed = ", ".join(f"{_error(error)} with twice the {name}" for name, error in errors.items())
    few = f", estimated from {split.seeds} seeds" if best == ["seeds"] else ""
    head = f"more {best[0]} help most" if len(best) == 1 else f"more {' or '.join(best)} help alike"
    floor = math.sqrt(1 - sum(c.share or 0.0 for c in split.components if c.level == "samples")) * split.standard_error
    limit = f"; no number of samples brings it below {_error(floor)}"
    return f"{head}{few}: the standard error is {_error(split.standard_error)}, and would be {listed}{limit}"


def _markup(result: SetResult) -> str:
    """Return the table of a set, and below it what helps most."""
    rows = [[text(cell) for cell in row] for row in variance_rows(result)]
    items = "".join(f"<li>{text(sentence)}.</li>" for sentence in sentences(result))
    return (
        f"<h3>{text(set_title(result))}</h3>"
        f'<div class="wrapped">{table(variance_head(result), rows, CAPTION)}</div><ul>{items}</ul>'
    )


def _cells(variance: MetricVariance) -> list[str]:
    """Return the cells of a metric: shares, and standard errors."""
    split = variance.split
    errors = [split.standard_error, split.twice_prompts, split.twice_samples]
    errors += [] if split.twice_seeds is None else [split.twice_seeds]
    return [variance.metric.label, *map(_share, split.components), *map(_error, errors)]


def _share(component: Component) -> str:
    """Return a component's share in percent, with a note where its estimate was negative."""
    if component.share is None:
        return "none"
    return "0 % (negative)" if component.is_truncated else f"{100 * component.share:.0f} %"


def _error(value: float) -> str:
    """Return a standard error to three digits."""
    return number(value, 3)
