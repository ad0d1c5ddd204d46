"""The tables of the prompt sets as HTML, with a small plot next to each difference."""

from __future__ import annotations

from workbench.evaluation.results import REWARD, Difference, Direction, Metric, Results, SetResult
from workbench.report.page import table, text
from workbench.report.tables import (
    ARROWS,
    WIN_TIE_LOSS,
    Counts,
    Mean,
    Row,
    SetTable,
    count_of_prompts,
    format_counts,
    format_interval,
    format_signed,
    format_value,
    insufficient_prompts,
    set_table,
    set_title,
)

TONES = {"better": "good", "worse": "bad"}
MEANINGS: dict[Direction, str] = {"lower": "lower is better", "higher": "higher is better"}
MARK_WIDTH, MARK_HEIGHT = 96, 14


def sets_section(results: Results) -> str:
    """Return a table for each prompt set, and the other comparisons behind a disclosure."""
    return "".join(_set(result, results) for result in results.sets)


def minus(number: str) -> str:
    """Return a formatted number with a minus sign in place of the hyphen."""
    return number.replace("-", "\u2212")


def _set(result: SetResult, results: Results) -> str:
    """Return the heading, the notes and the tables of one set."""
    notes = [f"{count_of_prompts(result.prompts)}."]
    if result.neutral:
        notes.append("Neutral prompts: any change here is a side effect.")
    if result.reference_perplexity is not None:
        notes.append(f"Perplexity of the references under the base: {format_value(result.reference_perplexity)}.")
    warnings = [warning] if (warning := insufficient_prompts(result, results)) else []
    if result.seen_in_training:
        warnings.append(f"The training data contains {result.seen_in_training} of these prompts.")
    others = [
        set_table(result, [], comparison.before, comparison.after)
        for comparison in result.comparisons
        if (comparison.before, comparison.after) != (results.before, results.after)
    ]
    folded = "".join(_table(other, only_judge=False, caption="") for other in others)
    return (
        f"<h3>{text(set_title(result))}</h3><p>{' '.join(notes)}</p>"
        + "".join(f'<p class="warning">{text(warning)}</p>' for warning in warnings)
        + _main_table(result, results)
        + (f"<details><summary>Other comparisons</summary>{folded}</details>" if others else "")
    )


def _main_table(result: SetResult, results: Results) -> str:
    """Return the means of every model and the differences that the verdict is about."""
    seeds = len(results.settings.seeds)
    deviation = f" \u00b1 standard deviation over {seeds} seeds" if seeds > 1 else ""
    return _table(
        set_table(result, results.models, results.before, results.after),
        only_judge=results.settings.reward_is_only_judge,
        caption=f"Means over prompts{deviation}; differences are paired by prompt",
    )


def _table(set_table: SetTable, *, only_judge: bool, caption: str) -> str:
    """Return a table as markup; `only_judge` says whether the reward is the only judge."""
    head = [
        "metric",
        "verdict",
        *set_table.models,
        f"{set_table.after} \u2212 {set_table.before} [95 % interval]",
        "",
        " / ".join(WIN_TIE_LOSS),
    ]
    return table(head, [_row(row, only_judge) for row in set_table.rows], caption)


def _row(row: Row, only_judge: bool) -> list[str]:
    """Return a row's cells: metric, verdict, means, difference, a plot of it, counts."""
    verdict = row.difference.verdict if row.difference else None
    return [
        _metric(row.metric, only_judge and row.metric.judge == REWARD),
        f'<span class="chip {TONES.get(verdict, "same")}">{text(verdict)}</span>' if verdict else "",
        *(_mean(mean) for mean in row.means),
        *_difference(row.difference),
        _counts(row.counts) if row.counts else "",
    ]


def _metric(metric: Metric, is_doubtful: bool) -> str:
    """Return a metric's label, and an arrow in the direction that is better."""
    label = f'<span class="bad">{text(metric.label)}</span>' if is_doubtful else text(metric.label)
    if metric.direction is None:
        return label
    meaning = MEANINGS[metric.direction]
    arrow = ARROWS[metric.direction]
    return f'{label} <span class="soft" title="{meaning}" aria-label="{meaning}" role="img">{arrow}</span>'


def _mean(mean: Mean | None) -> str:
    """Return a mean and its standard deviation over seeds."""
    if mean is None:
        return ""
    deviation = (
        "" if mean.seed_std is None else f' <span class="soft">\u00b1 {minus(format_value(mean.seed_std))}</span>'
    )
    return minus(format_value(mean.value)) + deviation


def _difference(difference: Difference | None) -> list[str]:
    """Return two cells: the difference with its interval, and a plot of both."""
    if difference is None:
        return ["", ""]
    value, interval = minus(format_signed(difference.difference)), minus(format_interval(difference))
    return [f'<strong>{value}</strong> <span class="soft">{interval}</span>', _interval_mark(difference)]


def _interval_mark(difference: Difference) -> str:
    """Return the interval drawn on a line with zero in the middle; "" without an interval."""
    value, low, high = difference.difference, difference.low, difference.high
    if low is None or high is None:
        return ""
    tone = TONES.get(difference.verdict or "", "same")
    reach = max(abs(low), abs(high), abs(value)) or 1.0
    left, middle, right = (MARK_WIDTH / 2 + x / reach * (MARK_WIDTH / 2 - 5) for x in (low, value, high))
    half = MARK_HEIGHT / 2
    return (
        f'<svg class="small" viewBox="0 0 {MARK_WIDTH} {MARK_HEIGHT}" aria-hidden="true">'
        f'<line class="zero" x1="{MARK_WIDTH / 2}" x2="{MARK_WIDTH / 2}" y1="0" y2="{MARK_HEIGHT}"/>'
        f'<line class="range {tone}" x1="{left:.1f}" x2="{right:.1f}" y1="{half}" y2="{half}"/>'
        f'<circle class="{tone}" cx="{middle:.1f}" cy="{half}" r="3.5"/></svg>'
    )


def _counts(counts: Counts) -> str:
    """Return the counts, and a bar of three parts below them."""
    tones = ("good", "same", "bad") if counts.has_direction else ("c0", "same", "c1")
    start, bars, total = 0.0, "", max(sum(counts.values), 1)
    for value, tone in zip(counts.values, tones, strict=True):
        width = value / total * MARK_WIDTH
        bars += f'<rect class="{tone}" x="{start:.1f}" y="0" width="{width:.1f}" height="6"/>'
        start += width
    values, _, words = format_counts(counts).partition(" (")
    label = f' <span class="words">({words}</span>' if words else ""
    title = ", ".join(f"{value} {word}" for word, value in zip(counts.words, counts.values, strict=True))
    return (
        f'<span title="{title}">{values}</span>{label}'
        f'<svg class="small" viewBox="0 0 {MARK_WIDTH} 6" aria-hidden="true">{bars}</svg>'
    )
