"""How scores are distributed over prompts, and how each stage of the training went, as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation.verdicts import is_toxicity
from workbench.report.page import text
from workbench.report.set_tables import main_metric, set_title
from workbench.report.svg import Series, histogram, line_plot, scatter

TERM = "objective/term/"
DOTS = 1000  # more say no more, and slow the page down
Lines = Sequence[dict[str, Any]]

# Of each stage: a plot's title, and its lines by their key in metrics.jsonl.
PLOTS: dict[str, dict[str, dict[str, str]]] = {
    "sft": {"SFT: loss, nats per token": {"training": "loss", "validation": "eval_loss"}},
    "reward": {"Reward model: loss": {"training": "loss", "validation": "eval_loss"}},
    "ppo": {
        "PPO: reward": {"rollouts": "objective/score_mean", "validation prompts": "validation/score_mean"},
        "PPO: KL to the reference, nats per response": {
            "rollouts": "objective/kl",
            "validation prompts": "validation/kl",
        },
        "PPO: entropy, nats per response": {"rollouts": "objective/entropy"},
        "PPO: policy loss": {"policy": "policy/loss"},
        "PPO: value loss": {"value": "value/loss"},
        "PPO: response length, tokens": {"mean": "response/length_mean"},
    },
}


def training_plots(curves: Mapping[str, Lines]) -> str:
    """The plots of every stage that has lines; "" where none has."""
    figures = ""
    for stage, plots in PLOTS.items():
        for title, lines in plots.items():
            series = [_series(name, key, curves.get(stage, ())) for name, key in lines.items()]
            drawn = [line for line in series if line.xs]
            figures += line_plot(title, drawn, x_label="step", y_label="") if drawn else ""
    ppo = curves.get("ppo", ())
    keys = dict.fromkeys(key for line in ppo for key in line if key.startswith(TERM))
    if keys:
        terms = [_series(key.removeprefix(TERM), key, ppo) for key in keys]
        figures += line_plot("PPO: terms of the reward", terms, x_label="step", y_label="")
    return f'<div class="plots">{figures}</div>' if figures else ""


def distributions(results: dict[str, Any], rows: Lines) -> str:
    """For each set a histogram of every judge's toxicity per model, and the main metric before against after."""
    return "".join(
        f'<h3>{text(set_title(name, found))}</h3><div class="plots">{figures}</div>'
        for name, found in results["sets"].items()
        if (figures := _of_set(found, results, [row for row in rows if row["set"] == name]))
    )


def _series(name: str, key: str, lines: Lines) -> Series:
    kept = [line for line in lines if key in line and "step" in line]
    return Series(name, [line["step"] for line in kept], [line[key] for line in kept])


def _of_set(found: dict[str, Any], results: dict[str, Any], rows: Lines) -> str:
    figures = ""
    for metric in filter(is_toxicity, found["metrics"]):
        columns: dict[str, Sequence[float]] = {model: _column(rows, metric, model) for model in results["models"]}
        figures += histogram(f"Distribution of {metric}", columns, x_label=metric)
    main = main_metric(found["metrics"])
    if main is None:
        return figures
    before, after = results["before"], results["after"]
    kept = rows[:: -(-len(rows) // DOTS) or 1]
    part = f" ({len(kept)} of {len(rows)} prompts)" if len(kept) < len(rows) else ""
    pairs = [(row["scores"][main][before], row["scores"][main][after]) for row in kept]
    return figures + scatter(
        f"{main}, prompt by prompt{part}",
        [first for first, _ in pairs],
        [second for _, second in pairs],
        x_label=before,
        y_label=after,
        better=found["metrics"][main]["better"],
    )


def _column(rows: Lines, metric: str, model: str) -> list[float]:
    return [row["scores"][metric][model] for row in rows]
