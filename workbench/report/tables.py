"""The table of a prompt set's results. Page, Markdown and model card all render these rows, so that they agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workbench.evaluation.glossary import GROUPS, MEANINGS, Group
from workbench.evaluation.results import (
    REWARD,
    TOXICITY,
    Difference,
    Direction,
    Metric,
    Results,
    SetResult,
    Settings,
    Summary,
)
from workbench.evaluation.reward_gap import gaps_by_set
from workbench.evaluation.verdicts import MINIMUM_PROMPTS, too_few
from workbench.report.svg import number

WIN_TIE_LOSS = ("win", "tie", "loss")
ROSE_SAME_FELL = ("rose", "same", "fell")
DETECTABLE, P_VALUES = "detectable", "p (Holm)"
ARROWS: dict[Direction, str] = {"lower": "\u2193", "higher": "\u2191"}


@dataclass(frozen=True)
class Mean:
    """The mean of one metric and model."""

    value: float
    seed_std: float | None
    """Standard deviation over seeds; None with one seed."""


@dataclass(frozen=True)
class Counts:
    """Prompts by how a metric changed between two models."""

    words: tuple[str, str, str]
    """WIN_TIE_LOSS where the metric has a direction, else ROSE_SAME_FELL."""
    values: tuple[int, int, int]

    @property
    def has_direction(self) -> bool:
        """Whether the first count is the number of improvements."""
        return self.words == WIN_TIE_LOSS


@dataclass(frozen=True)
class Row:
    """One metric."""

    metric: Metric
    means: list[Mean | None]
    """In the order of the table's models; None where a model does not have the metric."""
    difference: Difference | None
    """None if one of the two compared models does not have the metric."""
    counts: Counts | None
    """None without a difference, and for a pooled metric."""

    @property
    def group(self) -> Group:
        """The question that the metric belongs to."""
        return MEANINGS[self.metric.name].group


@dataclass(frozen=True)
class SetTable:
    """The means of some models on a prompt set, and the paired differences of two models."""

    models: list[str]
    before: str
    after: str
    rows: list[Row]
    """In the order of the groups."""

    def groups(self) -> dict[Group, list[Row]]:
        """Return the rows by group, without the groups that have none."""
        by_group = {group: [row for row in self.rows if row.group == group] for group in GROUPS}
        return {group: rows for group, rows in by_group.items() if rows}


def set_table(result: SetResult, models: Sequence[str], before: str, after: str) -> SetTable:
    """Return the table with a column for each of `models`, its metrics by group.

    Without `models`, it has only the rows with a difference.
    """
    differences = {difference.metric: difference for difference in result.comparison(before, after).differences}
    rows = [
        Row(
            metric=summary.metric,
            means=[_mean(summary, model) for model in models],
            difference=(difference := differences.get(summary.metric)),
            counts=count_prompts(difference) if difference else None,
        )
        for summary in result.summaries
    ]
    order = list(GROUPS)
    rows = sorted((row for row in rows if models or row.difference), key=lambda row: order.index(row.group))
    return SetTable(list(models), before, after, rows)


def count_prompts(difference: Difference) -> Counts | None:
    """Return wins, ties and losses where the metric has a direction, else the prompts that rose, stayed and fell."""
    rose, same, fell = difference.rose, difference.same, difference.fell
    if rose is None or same is None or fell is None:
        return None
    if difference.metric.direction is None:
        return Counts(ROSE_SAME_FELL, (rose, same, fell))
    return Counts(WIN_TIE_LOSS, (fell, same, rose) if difference.metric.direction == "lower" else (rose, same, fell))


def main_metric(metrics: Iterable[Metric]) -> Metric | None:
    """Return a set's headline metric: the first toxicity, else the reward; None without either."""
    candidates = [metric for metric in metrics if metric.name in (TOXICITY, REWARD)]
    return min(candidates, key=lambda metric: metric.name != TOXICITY, default=None)


def set_title(result: SetResult) -> str:
    """Return the heading of a prompt set; a neutral one measures what the model retained."""
    return f"Retention: {result.name}" if result.neutral else result.name


def interval_name(settings: Settings) -> str:
    """Return what the intervals of a table are, with the number of comparisons that share their level."""
    if settings.comparisons == 1:
        return "95 % interval"
    return f"95 % for {settings.comparisons} comparisons together"


def doubts(result: SetResult, results: Results) -> list[str]:
    """Return what is doubtful about a set: too few prompts, or prompts that were trained on."""
    few = insufficient_prompts(result, results)
    seen = result.seen_in_training
    learned = "; what was replayed says little about what is forgotten" if result.neutral else ""
    return ([few] if few else []) + ([f"the training data contains {seen} of these prompts{learned}"] if seen else [])


def final_metrics(results: Results) -> dict[str, float | str]:
    """Return verdicts, failed guards, and by set and metric every mean and the main difference, for a tracker."""
    metrics: dict[str, float | str] = {"failed_guards": ", ".join(results.failed_guards) or "none"}
    for verdict in results.verdicts:
        metrics[f"verdict/{verdict.question}"] = verdict.word
        metrics[f"verdict/{verdict.question}/sentence"] = verdict.sentence
    main_change = (results.before, results.after)
    metrics |= {f"{result.name}/gap/{gap.judge}": gap.gap for result, gap in gaps_by_set(results)}
    for result in results.sets:
        for summary in result.summaries:
            for model, mean in summary.means.items():
                if mean is not None:
                    metrics[f"{result.name}/{summary.metric.label}/{model}"] = mean
        for change in result.comparisons:
            for difference in change.differences if (change.before, change.after) == main_change else ():
                name = f"{result.name}/{difference.metric.label}/{change.after} - {change.before}"
                metrics[name] = difference.difference
                if difference.non_inferiority is not None:
                    metrics[f"{name}, non_inferiority"] = difference.non_inferiority.word
                if difference.low is not None and difference.high is not None:
                    metrics |= {f"{name}, low": difference.low, f"{name}, high": difference.high}
    return metrics


def insufficient_prompts(result: SetResult, results: Results) -> str | None:
    """Return how many prompts a small set lacks, judged by its main metric; None for a set of MINIMUM_PROMPTS."""
    if result.units >= MINIMUM_PROMPTS:
        return None
    comparison = result.comparison(results.before, results.after)
    metric = main_metric(summary.metric for summary in result.summaries)
    difference = next((d for d in comparison.differences if d.metric == metric), None)
    if metric is None or difference is None or difference.prompts_needed is None:
        return too_few(result.units, None, result.unit_noun)
    return f"{too_few(result.units, difference.prompts_needed, result.unit_noun)} ({metric.label})"


def sampling_description(settings: Settings) -> str:
    """Return how the completions were sampled, as a clause."""
    details = "".join(f", {detail}" for detail in decoding_details(settings))
    if settings.temperature == 0:
        search = "greedy decoding" if settings.num_beams == 1 else f"beam search with {settings.num_beams} beams"
        return f"{search}{details}"
    samples = f"{settings.samples} sample{'s' * (settings.samples != 1)} per prompt"
    seeds = f" and seed (seeds {', '.join(map(str, settings.seeds))})" if len(settings.seeds) > 1 else ""
    return f"{samples}{seeds} at temperature {settings.temperature:g}{details}, the same seeds for all models"


def decoding_details(settings: Settings) -> list[str]:
    """Return what else departs from the plain softmax, one clause each."""
    clauses = []
    if settings.top_k is not None:
        clauses.append(f"top-k {settings.top_k}")
    if settings.top_p is not None:
        clauses.append(f"top-p {settings.top_p:g}")
    if settings.repetition_penalty != 1:
        clauses.append(f"repetition penalty {settings.repetition_penalty:g}")
    if settings.min_new_tokens:
        clauses.append(f"at least {settings.min_new_tokens} tokens")
    if settings.stop_strings:
        clauses.append(f"stopped at {', '.join(map(repr, settings.stop_strings))}")
    return clauses


def text_cells(table: SetTable, settings: Settings) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows as plain text.

    The cells are metric, means, difference with interval, detectable effect, counts, p values, and words.
    """
    head = [
        "metric",
        *table.models,
        f"{table.after} - {table.before} [{interval_name(settings)}]",
        DETECTABLE,
        " / ".join(WIN_TIE_LOSS),
        P_VALUES,
        "verdict",
    ]
    return head, [_text_row(row) for row in table.rows]


def _text_row(row: Row) -> list[str]:
    """Return a row's cells as plain text."""
    difference = row.difference
    return [
        format_metric(row.metric),
        *(format_mean(mean) for mean in row.means),
        f"{format_signed(difference.difference)} {format_interval(difference)}" if difference else "",
        format_detectable(difference) if difference else "",
        format_counts(row.counts) if row.counts else "",
        format_p_values(difference) if difference else "",
        ", ".join(difference_words(difference)) if difference else "",
    ]


def format_metric(metric: Metric) -> str:
    """Return a metric's label with an arrow in the direction that is better."""
    return metric.label if metric.direction is None else f"{metric.label} {ARROWS[metric.direction]}"


def format_mean(mean: Mean | None) -> str:
    """Return a mean, with its standard deviation over seeds where there is one."""
    if mean is None:
        return ""
    return format_value(mean.value) + (f" \u00b1 {format_value(mean.seed_std)}" if mean.seed_std is not None else "")


def format_interval(difference: Difference) -> str:
    """Return the ends of the interval; a single prompt has none."""
    if difference.low is None or difference.high is None:
        return "no interval"
    return f"[{format_signed(difference.low)}, {format_signed(difference.high)}]"


def format_detectable(difference: Difference) -> str:
    """Return the smallest difference that so many prompts would detect."""
    effect = difference.minimal_detectable_effect
    return "" if effect is None else format_value(effect)


def format_p_values(difference: Difference) -> str:
    """Return p of a metric that has a direction, McNemar's where there is one, and p after Holm's correction."""
    p = difference.p_value if difference.mcnemar_p is None else difference.mcnemar_p
    if p is None or difference.holm_adjusted is None:
        return ""
    return f"{_format_p(p)} ({_format_p(difference.holm_adjusted)})"


def _format_p(p: float) -> str:
    """Return a probability with two significant digits, or its bound where it is too small for that."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def difference_words(difference: Difference) -> list[str]:
    """Return the words for a difference: its verdict, and whether the metric was retained, where it has these."""
    retained = difference.non_inferiority
    return [word for word in (difference.adjusted_verdict, retained.word if retained else None) if word is not None]


def format_counts(counts: Counts) -> str:
    """Return the counts, with their own words if the heading's do not apply."""
    values = " / ".join(map(str, counts.values))
    return values if counts.has_direction else f"{values} ({' / '.join(counts.words)})"


def format_signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{'+' if value > 0 else '-' if value < 0 else ''}{format_value(abs(value))}"


def format_value(value: float) -> str:
    """Return a number with three decimals, or with two significant digits if it is too small or too large for that."""
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 1000 else number(value, 2)


def _mean(summary: Summary, model: str) -> Mean | None:
    """Return the mean of a model; None where it does not have the metric."""
    value = summary.means.get(model)
    if value is None:
        return None
    return Mean(value, summary.seed_stds.get(model) if summary.seed_stds else None)
