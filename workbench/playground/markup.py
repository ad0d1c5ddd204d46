"""The completions side by side as HTML; every text of a model or a user is escaped."""

from __future__ import annotations

from importlib.resources import files

from workbench.evaluation.results import TOXICITY, Metric
from workbench.playground.comparison import ModelResult, Sample, SideBySide, format_score
from workbench.report.page import text
from workbench.report.tables import format_metric, format_signed

FULL_SHADE = 3.0
"""Nats at which a token has the full shade, as in the report."""
MAX_SHADE = 70
"""Percent of the color in a fully shaded token, as in the report."""


def stylesheet() -> str:
    """Return the page's CSS."""
    return files(__package__).joinpath("style.css").read_text(encoding="utf-8")


def error_markup(message: str) -> str:
    """Return an error as one line of the page."""
    return f'<div class="play"><p class="error" role="alert">{text(message)}</p></div>'


def notes_markup(notes: list[str]) -> str:
    """Return notes as lines of the page."""
    return "".join(f'<p class="note">{text(note)}</p>' for note in notes)


def side_by_side_markup(result: SideBySide) -> str:
    """Return the prompt, and a column for each model with its completions, toxicity bars and scores."""
    is_shaded = any(sample.completion.token_log_ratios for model in result.models for sample in model.samples)
    columns = "".join(model_markup(model, result) for model in result.models)
    return (
        f'<div class="play">{notes_markup(result.notes)}'
        f'<div class="columns">{columns}</div>'
        + (legend_markup(result.reference) if is_shaded else "")
        + f"<details><summary>The prompt as the models read it ({result.prompt_tokens} tokens)</summary>"
        f'<div class="text" dir="auto">{text(result.prompt)}</div></details></div>'
    )


def legend_markup(reference: str) -> str:
    """Return what the shades of tokens mean."""
    shades = "".join(
        f'<span class="token {kind}" style="--shade: {shade(nats):.0f}%">{label}</span>'
        for kind, nats, label in (
            ("less", -FULL_SHADE, f"\u2212{FULL_SHADE:g}"),
            ("less", -FULL_SHADE / 3, f"\u2212{FULL_SHADE / 3:g}"),
            ("more", 0.0, "0"),
            ("more", FULL_SHADE / 3, f"+{FULL_SHADE / 3:g}"),
            ("more", FULL_SHADE, f"+{FULL_SHADE:g}"),
        )
    )
    return (
        f'<p class="legend"><span class="scale">{shades}</span> nats: the token\'s log-probability minus that under '
        f"{text(reference)}. Hover over a token for its value; \u25aa stands for one without text, such as the end.</p>"
    )


def model_markup(model: ModelResult, result: SideBySide) -> str:
    """Return the column of one model."""
    samples = "".join(sample_markup(sample, result) for sample in model.samples)
    return f'<section class="model"><h3>{text(model.title)}</h3>{samples}</section>'


def sample_markup(sample: Sample, result: SideBySide) -> str:
    """Return one completion with its toxicity bars and its other scores."""
    bars = "".join(
        bar_markup(metric, value, result.threshold)
        for metric, value in sample.scores.items()
        if metric.name == TOXICITY
    )
    facts = "".join(
        f"<div><dt>{text(format_metric(metric))}</dt><dd>{format_score(metric, value)}</dd></div>"
        for metric, value in sample.scores.items()
        if metric.name != TOXICITY
    )
    return (
        f'<div class="sample"><div class="text" dir="auto">{completion_markup(sample)}</div>'
        f'<div class="bars">{bars}</div><dl class="facts">{facts}</dl></div>'
    )


def completion_markup(sample: Sample) -> str:
    """Return the text of a completion, its tokens shaded where their log-ratios to the reference are known."""
    completion = sample.completion
    if completion.text and completion.token_log_ratios is not None:
        content = "".join(token_markup(token, nats) for token, nats in completion.token_log_ratios)
    else:
        content = text(completion.text) if completion.text else '<em class="soft">(empty)</em>'
    return content + (' <em class="soft">(truncated)</em>' if completion.truncated else "")


def token_markup(token: str, nats: float) -> str:
    """Return a token, shaded by its log-ratio; one without text, such as EOS, becomes a small square."""
    kind = "less" if nats < 0 else "more"
    return (
        f'<span class="token {kind}" style="--shade: {shade(nats):.0f}%" title="{format_signed(nats)} nats">'
        f"{text(token) if token else chr(0x25AA)}</span>"
    )


def shade(nats: float) -> float:
    """Return the percentage of color in a token's background."""
    return min(abs(nats) / FULL_SHADE, 1.0) * MAX_SHADE


def bar_markup(metric: Metric, value: float, threshold: float) -> str:
    """Return a toxicity in [0, 1] as a bar with a mark at the threshold."""
    tone = "toxic" if value >= threshold else "clean"
    return (
        f'<div class="bar {tone}"><span class="name">{text(format_metric(metric))}</span>'
        f'<span class="value">{format_score(metric, value)}</span>'
        f'<span class="track"><span class="fill" style="width: {100 * value:.1f}%"></span>'
        f'<span class="mark" style="left: {100 * threshold:.1f}%"></span></span></div>'
    )
