"""The completions side by side as plain text, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from workbench.evaluation.results import TOXICITY, Metric
from workbench.playground.comparison import ModelResult, Sample, SideBySide, format_score
from workbench.report.page import visible_text
from workbench.report.tables import format_metric, format_signed

WIDTH = 80
MAX_LABEL = 32
MAX_CELL = 14
NOTABLE_NATS = 0.5
"""A token whose log-ratio is smaller is not listed."""
MAX_LISTED_TOKENS = 12


def plain_text(result: SideBySide) -> str:
    """Return the prompt, the completions of every model, and a table of their scores."""
    lines = [f"prompt ({result.prompt_tokens} tokens)", *indented(result.prompt.rstrip()), ""]
    for model in result.models:
        for number, sample in enumerate(model.samples, 1):
            lines += [sample_title(model, number), *completion_lines(sample, result.reference), ""]
    lines += score_lines(result)
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n" + notes_text(result.notes)


def notes_text(notes: Sequence[str]) -> str:
    """Return notes as wrapped lines."""
    return "".join(f"{line}\n" for note in notes for line in textwrap.wrap(visible_text(f"note: {note}"), WIDTH))


def completion_lines(sample: Sample, reference: str) -> list[str]:
    """Return a completion's text, whether it is truncated, and the tokens furthest from the reference."""
    completion = sample.completion
    lines = indented(completion.text) if completion.text else ["  (empty)"]
    if completion.truncated:
        lines.append("  [truncated at max_new_tokens]")
    notable = [(token, nats) for token, nats in completion.token_log_ratios or () if abs(nats) >= NOTABLE_NATS]
    if notable:
        largest = sorted(sorted(range(len(notable)), key=lambda i: -abs(notable[i][1]))[:MAX_LISTED_TOKENS])
        listed = ", ".join(f"{notable[i][0].strip() or 'end'} {format_signed(notable[i][1])}" for i in largest)
        lines += indented(f"log-ratios to {reference}, nats: {listed}", "  | ")
    return lines


def score_lines(result: SideBySide) -> list[str]:
    """Return tables of the metrics, with a column for each sample of each model; wide ones continue below."""
    columns = [
        (sample_title(model, number), sample)
        for model in result.models
        for number, sample in enumerate(model.samples, 1)
    ]
    labels = [shortened(format_metric(metric), MAX_LABEL) for metric in result.metrics]
    label_width = max(map(len, labels), default=0)
    lines: list[str] = []
    for first, last in column_groups([shortened(title, MAX_CELL) for title, _ in columns], WIDTH - label_width):
        cells = [[shortened(title, MAX_CELL), *score_cells(sample, result)] for title, sample in columns[first:last]]
        widths = [max(map(len, column)) for column in cells]
        for row, label in enumerate(["", *labels]):
            values = "".join(f"  {column[row]:>{width}}" for column, width in zip(cells, widths, strict=True))
            lines.append(f"{label:<{label_width}}{values}")
        lines.append("")
    if any(is_toxic(metric, value, result) for _, sample in columns for metric, value in sample.scores.items()):
        lines += [f"* toxic: at or above {result.threshold:g}", ""]
    return lines


def score_cells(sample: Sample, result: SideBySide) -> list[str]:
    """Return a sample's scores as text; "-" for a metric it does not have, and "*" after a toxic one."""
    cells = []
    for metric in result.metrics:
        value = sample.scores.get(metric)
        mark = "*" if value is not None and is_toxic(metric, value, result) else ""
        cells.append("-" if value is None else format_score(metric, value) + mark)
    return cells


def column_groups(titles: Sequence[str], width: int) -> Iterator[tuple[int, int]]:
    """Yield the first and last + 1 of the columns that fit into `width` together, at least one at a time."""
    first, used = 0, 0
    for index, title in enumerate(titles):
        needed = max(len(title), len("-1000.000*")) + 2
        if index > first and used + needed > width:
            yield first, index
            first, used = index, 0
        used += needed
    yield first, len(titles)


def is_toxic(metric: Metric, value: float, result: SideBySide) -> bool:
    """Return whether a score is a toxicity at or above the threshold."""
    return metric.name == TOXICITY and value >= result.threshold


def sample_title(model: ModelResult, number: int) -> str:
    """Return the model's title, with the number of the sample if there are several."""
    title = " ".join(visible_text(model.title).split())
    return title if len(model.samples) == 1 else f"{title} #{number}"


def indented(text: str, prefix: str = "  ") -> list[str]:
    """Return the text's lines, wrapped and indented; characters that control a terminal become visible."""
    wrapped: list[str] = []
    for line in visible_text(text).expandtabs(4).split("\n"):
        parts = textwrap.wrap(line, WIDTH - len(prefix), drop_whitespace=True)
        wrapped += [prefix + part for part in parts or [""]]
    return wrapped


def shortened(text: str, width: int) -> str:
    """Return the text on one line, cut to the width."""
    return text if len(text) <= width else text[: width - 1] + "\u2026"
