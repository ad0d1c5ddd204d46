"""The tables of the prompt sets as HTML, with a small plot next to each difference."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import get_args
from urllib.parse import quote, urlencode

from workbench.evaluation.evidence import Retention
from workbench.evaluation.glossary import GROUPS, MEANINGS
from workbench.evaluation.non_inferiority import margin_text
from workbench.evaluation.results import REWARD, Difference, Direction, Metric, Results, SetResult
from workbench.evaluation.reward_gap import describe_gap, gaps_by_set
from workbench.report.page import table, text
from workbench.report.tables import (
    ARROWS,
    DETECTABLE,
    P_VALUES,
    WIN_TIE_LOSS,
    Counts,
    Mean,
    Row,
    SetTable,
    difference_words,
    format_counts,
    format_detectable,
    format_interval,
    format_p_values,
    format_signed,
    format_value,
    insufficient_prompts,
    interval_name,
    set_table,
    set_title,
)

TONES = {"better": "good", "worse": "bad", "kept": "good", "lost": "bad"}
COLUMNS = {
    DETECTABLE: "Below a difference: the smallest true difference that so many prompts detect with 80 % power.",
    P_VALUES: "Below a verdict: p of the difference, McNemar\u2019s exact one for a rate with one sample per prompt, "
    "and p after Holm\u2019s correction for all metrics of the set that have a direction, which the verdict follows.",
    "verdict": "Better or worse than before; and whether a quantity that should be retained was kept (the interval "
    "rules out a loss beyond the margin), lost (it rules out a loss within the margin), or neither (not shown).",
}
DIRECTIONS: dict[Direction, str] = {"lower": "lower is better", "higher": "higher is better"}
MARK_WIDTH, MARK_HEIGHT = 96, 14


def sets_section(results: Results, example_metrics: Collection[Metric] = ()) -> str:
    """Return a table for each prompt set with the other comparisons behind a disclosure, and what the metrics mean.

    The counts of `example_metrics` lead to the examples that they count.
    """
    return "".join(_set(result, results, example_metrics) for result in results.sets) + _glossary(results)


def minus(number: str) -> str:
    """Return a formatted number with a minus sign in place of the hyphen."""
    return number.replace("-", "\u2212")


def _set(result: SetResult, results: Results, example_metrics: Collection[Metric]) -> str:
    """Return the heading, the notes and the tables of one set."""
    notes = [f"{result.size}."]
    if result.neutral:
        kind = "prompts" if result.has_completions else "texts, which the models predict"
        notes.append(f"Neutral {kind}: any change here is a side effect.")
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
    interval = interval_name(results.settings)
    folded = "".join(_table(other, interval, only_judge=False, caption="", links={}) for other in others)
    return (
        f"<h3>{text(set_title(result))}</h3><p>{' '.join(notes)}</p>"
        + "".join(f'<p class="warning">{text(warning)}</p>' for warning in warnings)
        + _main_table(result, results, example_metrics)
        + "".join(f"<p>{text(describe_gap(gap))}</p>" for measured, gap in gaps_by_set(results) if measured is result)
        + (f"<details><summary>Other comparisons</summary>{folded}</details>" if others else "")
    )


def _main_table(result: SetResult, results: Results, example_metrics: Collection[Metric]) -> str:
    """Return the means of every model and the differences that the verdict is about."""
    links = {metric: examples_address(set_title(result), metric) for metric in example_metrics if metric.direction}
    seeds = len(results.settings.seeds)
    deviation = f" \u00b1 standard deviation over {seeds} seeds" if seeds > 1 else ""
    return _table(
        set_table(result, results.models, results.before, results.after),
        interval_name(results.settings),
        only_judge=results.settings.reward_is_only_judge,
        caption=f"Means over prompts{deviation}; differences are paired by prompt",
        links=links,
    )


def examples_address(set_title: str, metric: Metric) -> str:
    """Return the address of the examples of a set by a metric, to which report.js adds the filter."""
    return "#" + urlencode({"set": set_title, "metric": metric.label}, quote_via=quote, errors="replace")


def _glossary(results: Results) -> str:
    """Return what the measured metrics mean, by group, behind a disclosure."""
    names = {summary.metric.name for result in results.sets for summary in result.summaries}
    items = "".join(f"<dt>{text(name)}</dt><dd>{text(meaning)}</dd>" for name, meaning in COLUMNS.items())
    parts = f"<h4>Columns</h4><dl>{items}</dl>"
    for group, question in GROUPS.items():
        meanings = {name: meaning for name, meaning in MEANINGS.items() if name in names and meaning.group == group}
        items = "".join(f"<dt>{text(name)}</dt><dd>{text(meaning.sentence)}</dd>" for name, meaning in meanings.items())
        parts += f"<h4>{text(group.capitalize())}: {text(question)}</h4><dl>{items}</dl>" if items else ""
    return f"<details><summary>What the metrics mean</summary>{parts}</details>" if names else ""


def _table(set_table: SetTable, interval: str, *, only_judge: bool, caption: str, links: Mapping[Metric, str]) -> str:
    """Return a table as markup; `interval` names its intervals, `only_judge` says whether the reward judged alone."""
    head = [
        "metric",
        *set_table.models,
        f"{set_table.after} \u2212 {set_table.before} [{interval}]",
        "",
        "verdict",
        " / ".join(WIN_TIE_LOSS),
    ]
    rows = []
    for group, members in set_table.groups().items():
        rows.append([f'{text(group)} <span class="soft">{text(GROUPS[group])}</span>'])
        rows += [_row(row, only_judge, links.get(row.metric)) for row in members]
    return table(head, rows, caption)


def _row(row: Row, only_judge: bool, link: str | None) -> list[str]:
    """Return a row's cells: metric, means, difference, a plot of it, words, counts."""
    return [
        _metric(row.metric, only_judge and row.metric.judge == REWARD),
        *(_mean(mean) for mean in row.means),
        *_difference(row.difference),
        _words(row.difference) if row.difference else "",
        _counts(row.counts, link) if row.counts else "",
    ]


def _metric(metric: Metric, is_doubtful: bool) -> str:
    """Return a metric's label with its meaning on hover, and an arrow in the direction that is better."""
    sentence = text(MEANINGS[metric.name].sentence)
    label = f'<span class="term{" bad" * is_doubtful}" title="{sentence}">{text(metric.label)}</span>'
    if metric.direction is None:
        return label
    meaning = DIRECTIONS[metric.direction]
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
    """Return two cells: the difference with its interval and what would be detected, and a plot of both."""
    if difference is None:
        return ["", ""]
    value, interval = minus(format_signed(difference.difference)), minus(format_interval(difference))
    effect = _small_line(DETECTABLE, format_detectable(difference))
    return [f'<strong>{value}</strong> <span class="soft">{interval}</span>{effect}', _interval_mark(difference)]


def _words(difference: Difference) -> str:
    """Return the words for a difference as chips, and its p values; the margin of a retained metric is on hover."""
    chips = []
    for word in difference_words(difference):
        margin = f' title="{margin_text(difference)}"' if word in get_args(Retention) else ""
        chips.append(f'<span class="chip {TONES.get(word, "same")}"{margin}>{text(word)}</span>')
    return ", ".join(chips) + _small_line(P_VALUES, format_p_values(difference))


def _small_line(name: str, value: str) -> str:
    """Return a value with its name in a line of its own below the others of a cell; "" without a value."""
    return f'<br><span class="soft">{text(name)} {minus(text(value))}</span>' if value else ""


def _interval_mark(difference: Difference) -> str:
    """Return the interval drawn on a line with zero in the middle; "" without an interval."""
    value, low, high = difference.difference, difference.low, difference.high
    if low is None or high is None:
        return ""
    tone = TONES.get(difference.adjusted_verdict or "", "same")
    reach = max(abs(low), abs(high), abs(value)) or 1.0
    left, middle, right = (MARK_WIDTH / 2 + x / reach * (MARK_WIDTH / 2 - 5) for x in (low, value, high))
    half = MARK_HEIGHT / 2
    return (
        f'<svg class="small" viewBox="0 0 {MARK_WIDTH} {MARK_HEIGHT}" aria-hidden="true">'
        f'<line class="zero" x1="{MARK_WIDTH / 2}" x2="{MARK_WIDTH / 2}" y1="0" y2="{MARK_HEIGHT}"/>'
        f'<line class="range {tone}" x1="{left:.1f}" x2="{right:.1f}" y1="{half}" y2="{half}"/>'
        f'<circle class="{tone}" cx="{middle:.1f}" cy="{half}" r="3.5"/></svg>'
    )


def _counts(counts: Counts, link: str | None) -> str:
    """Return the counts, of which wins and losses lead to their examples, and a bar of three parts below them."""
    tones = ("good", "same", "bad") if counts.has_direction else ("c0", "same", "c1")
    start, bars, total = 0.0, "", max(sum(counts.values), 1)
    for value, tone in zip(counts.values, tones, strict=True):
        width = value / total * MARK_WIDTH
        bars += f'<rect class="{tone}" x="{start:.1f}" y="0" width="{width:.1f}" height="6"/>'
        start += width
    values, _, words = format_counts(counts).partition(" (")
    if link is not None and counts.has_direction:
        better, same, worse = counts.values
        values = f"{_example_link(better, link, 'better')} / {same} / {_example_link(worse, link, 'worse')}"
    label = f' <span class="words">({words}</span>' if words else ""
    title = ", ".join(f"{value} {word}" for word, value in zip(counts.words, counts.values, strict=True))
    return (
        f'<span title="{title}">{values}</span>{label}'
        f'<svg class="small" viewBox="0 0 {MARK_WIDTH} 6" aria-hidden="true">{bars}</svg>'
    )


def _example_link(count: int, address: str, change: str) -> str:
    """Return a count that leads to the examples with that change, if there are any."""
    return f'<a href="{text(f"{address}&filter={change}")}">{count}</a>' if count else "0"
