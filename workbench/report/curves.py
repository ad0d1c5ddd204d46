"""Plots of how scores are distributed over prompts and of how each training stage went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.config.names import PPO, REWARD, SFT
from workbench.evaluation.results import TOXICITY, Example, Metric, Results, SetResult
from workbench.report.page import text
from workbench.report.svg import Series, histogram, line_plot, scatter
from workbench.report.tables import main_metric, set_title

TERM = "objective/term/"
MAX_DOTS = 1000  # more would be indistinguishable and slow down the page
Log = Sequence[dict[str, Any]]
"""The lines of a stage's metrics.jsonl."""

# By stage and title of a plot: the curves by their key in metrics.jsonl.
PLOTS: dict[str, dict[str, dict[str, str]]] = {
    SFT: {"SFT: loss, nats per token": {"training": "loss", "validation": "eval_loss"}},
    REWARD: {"Reward model: loss": {"training": "loss", "validation": "eval_loss"}},
    PPO: {
        "PPO: reward": {"rollouts": "objective/score_mean", "validation prompts": "validation/score_mean"},
        "PPO: KL to the reference, nats per response": {
            "rollouts": "objective/kl",
            "validation prompts": "validation/kl",
        },
        "PPO: entropy, nats per response": {"rollouts": "objective/entropy"},
        "PPO: policy loss": {"policy": "policy/loss"},
        "PPO: value loss": {"value": "value/loss"},
        "PPO: explained variance of the values": {"values": "value/explained_variance"},
        "PPO: clip fraction": {"policy": "policy/clip_fraction", "value": "value/clip_fraction"},
        "PPO: response length, tokens": {"mean": "response/length_mean"},
    },
}


def training_plots(curves: Mapping[str, Log]) -> str:
    """Return the plots of every stage that has lines; "" if none has any."""
    figures = ""
    for stage, plots in PLOTS.items():
        for title, keys in plots.items():
            series = [_series(name, key, curves.get(stage, ())) for name, key in keys.items()]
            series = [curve for curve in series if curve.xs]
            figures += line_plot(title, series, x_label="step", y_label="") if series else ""
    log = curves.get(PPO, ())
    term_keys = dict.fromkeys(key for line in log for key in line if key.startswith(TERM))
    if term_keys:
        terms = [_series(key.removeprefix(TERM), key, log) for key in term_keys]
        figures += line_plot("PPO: terms of the reward", terms, x_label="step", y_label="")
    return f'<div class="plots">{figures}</div>' if figures else ""


def overlaid_plots(curves: Mapping[str, Mapping[str, Log]]) -> str:
    """Return the plots of every stage with one curve for each run, by title; "" if no run has any."""
    figures = ""
    for stage, plots in PLOTS.items():
        for title, keys in plots.items():
            first_key = next(iter(keys.values()))
            series = [_series(name, first_key, logs.get(stage, ())) for name, logs in curves.items()]
            series = [curve for curve in series if curve.xs]
            figures += line_plot(title, series, x_label="step", y_label="") if series else ""
    return f'<div class="plots">{figures}</div>' if figures else ""


def distributions(results: Results, examples: Sequence[Example]) -> str:
    """Return for each set a histogram of every judge's toxicity, and the main metric before against after."""
    return "".join(
        f'<h3>{text(set_title(result))}</h3><div class="plots">{figures}</div>'
        for result in results.sets
        if (figures := _set_plots(result, results, [example for example in examples if example.set == result.name]))
    )


def _series(name: str, key: str, log: Log) -> Series:
    """Return one curve from the lines that have its key."""
    lines = [line for line in log if key in line and "step" in line]
    return Series(name, [line["step"] for line in lines], [line[key] for line in lines])


def _set_plots(result: SetResult, results: Results, examples: Sequence[Example]) -> str:
    """Return the plots of one set."""
    figures, metrics = "", [summary.metric for summary in result.summaries]
    for metric in metrics:
        if metric.name == TOXICITY:
            values = {model: _values(examples, metric, model) for model in results.models}
            figures += histogram(f"Distribution of {metric.label}", values, x_label=metric.label)
    main = main_metric(metrics)
    if main is None:
        return figures
    drawn = examples[:: -(-len(examples) // MAX_DOTS) or 1]
    part = f" ({len(drawn)} of {len(examples)} prompts)" if len(drawn) < len(examples) else ""
    return figures + scatter(
        f"{main.label} by prompt{part}",
        _values(drawn, main, results.before),
        _values(drawn, main, results.after),
        x_label=results.before,
        y_label=results.after,
        direction=main.direction,
    )


def _values(examples: Sequence[Example], metric: Metric, model: str) -> list[float]:
    """Return a metric of every example; NaN where an example does not have it."""
    means = [next((s.means for s in example.scores if s.metric == metric), {}) for example in examples]
    return [math.nan if (value := mean.get(model)) is None else value for mean in means]
