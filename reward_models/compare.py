"""Compare rewards on the same texts: how well each ranks the labels, how far they agree, how fast they are.

The file's column `prompt`, if it has one, is the prompt of each text; all others go to the rewards by name.
"""

# Imports that load torch stand behind load_reward, so that --help answers at once.
from __future__ import annotations

import json
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from workbench.config.schema import DataSource
from workbench.data.labelled import labelled_texts
from workbench.data.readers import Row
from workbench.data.sources import read_rows
from workbench.data.templates import text_column
from workbench.errors import UserError, error_context
from workbench.rewards.contract import CheckedReward
from workbench.rewards.ranking import auroc, ranks
from workbench.rewards.registry import load_reward
from workbench.run.cli import exit_on_error
from workbench.run.options import parse_options

SHOWN_LABELS = 10
SHOWN_CHARACTERS = 200


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m reward_models.compare", description=__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--models", nargs="+", type=str, required=True, help="rewards, named as in reward.model")
    parser.add_argument(
        "--data", type=str, required=True, help="file (.jsonl, .json, .csv, .parquet), folder or hub id"
    )
    parser.add_argument("--options", type=dict[str, dict[str, Any]], default={}, help="JSON: model -> its options")
    parser.add_argument("--text_column", type=str, default="text", help="column of the texts to score")
    parser.add_argument("--label_column", type=str, default="label", help="column of the labels, if there are any")
    parser.add_argument("--target_label", type=str, help="the label that should score high; AUROC needs it")
    parser.add_argument("--limit", type=int, help="read this many rows")
    parser.add_argument("--disagreements", type=int, default=10, help="texts to show on which two rewards disagree")
    parser.add_argument("--save", type=str, help="write the numbers to this file as JSON")
    return parser


def parse(argv: list[str]) -> Namespace:
    """The checked options; raises UserError with one line for any mistake."""
    options = parse_options(make_parser(), argv)
    for name, least in (("limit", 1), ("disagreements", 0)):
        if options[name] is not None and options[name] < least:
            raise UserError(f"--{name} is {options[name]}; use a number of at least {least}")
    if len(set(options.models)) < len(options.models):
        raise UserError(f"--models: a name is given twice: {', '.join(options.models)}")
    for model in options.options:
        if model not in options.models:
            raise UserError(f"--options: {model!r} is not one of the models: {', '.join(options.models)}")
    if options.save and not Path(options.save).parent.is_dir():
        raise UserError(f"--save {options.save}: there is no folder {Path(options.save).parent}")
    return options


def read(options: Namespace) -> tuple[list[str], list[str] | None, list[str], dict[str, list]]:
    """The texts, their labels if they have any, their prompts, and the other columns by name."""
    source = DataSource(options.data, limit=options.limit)
    rows = read_rows(source)
    for option in ("text_column", "label_column"):
        name = options[option]
        if name not in rows[0] and name != "label":  # the default, which need not be there
            raise UserError(f"--{option}: {options.data} has no column {name!r}; it has {', '.join(rows[0])}")
    rows = rows[: options.limit]
    labels: list[str] | None = None
    if options.label_column in rows[0]:
        source.columns = {"text": options.text_column, "label": options.label_column}
        texts, labels = labelled_texts(source, None)
    else:
        places = (Row(f"{options.data} row {number}", row) for number, row in enumerate(rows, 1))
        texts = [text_column(row, options.text_column) for row in places]
    prompts = [row.get("prompt") or "" for row in rows]
    names = [name for name in rows[0] if name not in ("prompt", "prompts", "completions")]
    return texts, labels, prompts, {name: [row[name] for row in rows] for name in names}


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Rank correlation of two lists of ranks (N,); None where one of them is constant."""
    a, b = first - first.mean(), second - second.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else None


def disagreements(
    texts: list[str], labels: list[str] | None, scores: dict[str, list[float]], count: int
) -> list[dict[str, Any]]:
    """The `count` texts whose ranks under two rewards are furthest apart, each with the pair that differs most."""
    ranked = {model: ranks(values) for model, values in scores.items()}
    found: list[dict[str, Any]] = []
    for row, text in enumerate(texts):
        low, high = min(ranked, key=lambda model: ranked[model][row]), max(ranked, key=lambda model: ranked[model][row])
        gap = float(ranked[high][row] - ranked[low][row])
        both = {model: {"score": scores[model][row], "rank": float(ranked[model][row])} for model in (high, low)}
        if gap:
            found.append({"row": row, "text": text, "label": labels and labels[row], "rank_gap": gap, "models": both})
    return sorted(found, key=lambda item: -item["rank_gap"])[:count]


def compare(
    rewards: dict[str, CheckedReward],
    texts: list[str],
    labels: list[str] | None,
    prompts: list[str],
    columns: dict[str, list],
    *,
    target_label: str | None,
    count: int,
) -> dict[str, Any]:
    """What --save writes: per model AUROC and speed, per pair the rank correlation, and the disagreements."""
    reason = why_no_auroc(labels, target_label)
    scores, models = {}, {}
    for name, reward in rewards.items():
        start = time.perf_counter()
        scores[name] = reward(prompts, texts, **columns)
        seconds = time.perf_counter() - start
        wanted = None if reason else auroc(scores[name], [label == target_label for label in labels or []])
        models[name] = {"auroc": wanted, "texts_per_second": len(texts) / seconds}
    pairs = [
        {"models": [first, second], "spearman": spearman(ranks(scores[first]), ranks(scores[second]))}
        for first, second in combinations(scores, 2)
    ]
    return {
        "texts": len(texts),
        "target_label": target_label,
        "no_auroc": reason,
        "models": models,
        "pairs": pairs,
        "disagreements": disagreements(texts, labels, scores, count),
    }


def why_no_auroc(labels: list[str] | None, target_label: str | None) -> str | None:
    """Why there is no AUROC, or None; raises UserError for a wanted label that no text has, or all."""
    if labels is None:
        return "the data has no labels"
    known = sorted(set(labels))
    listed = ", ".join(known[:SHOWN_LABELS]) + (", ..." if len(known) > SHOWN_LABELS else "")
    if target_label is None:
        return f"set --target_label to the label that should score high, one of {listed}"
    if target_label not in known:
        raise UserError(f"--target_label: {target_label!r} is not a label of the data: {listed}")
    if len(known) < 2:
        raise UserError(f"--target_label: every text is labelled {listed}; AUROC needs a second label")
    return None


def table(rows: list[list[str]]) -> list[str]:
    """Lines of aligned columns, the first to the left and the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    pads = [f"<{widths[0]}", *(f">{width}" for width in widths[1:])]
    return ["  ".join(format(cell, pad) for cell, pad in zip(row, pads, strict=True)) for row in rows]


def report(found: dict[str, Any]) -> list[str]:
    """The comparison as lines of plain text."""
    models, reason = found["models"], found["no_auroc"]
    lines = [f"{found['texts']} texts", ""]
    head = ["model", *([] if reason else [f"AUROC of {found['target_label']}"]), "texts/s"]
    speed = {name: f"{numbers['texts_per_second']:.0f}" for name, numbers in models.items()}
    quality = {name: [] if reason else [f"{numbers['auroc']:.4f}"] for name, numbers in models.items()}
    lines += table([head, *([name, *quality[name], speed[name]] for name in models)])
    if reason:
        lines.append(f"AUROC left out: {reason}")
    if found["pairs"]:
        pairs = [[" / ".join(pair["models"]), _number(pair["spearman"])] for pair in found["pairs"]]
        lines += ["", *table([["pair", "Spearman"], *pairs])]
    if found["disagreements"]:
        lines += ["", "disagreements: rank of each text (1 is the lowest score), with its score"]
    for item in found["disagreements"]:
        both = "; ".join(f"{name} {one['rank']:g} ({one['score']:.4g})" for name, one in item["models"].items())
        label = "" if item["label"] is None else f", label {item['label']}"
        lines += [f"row {item['row']}{label}: {both}", "    " + " ".join(item["text"].split())[:SHOWN_CHARACTERS]]
    return lines


def _number(value: float | None) -> str:
    return "constant" if value is None else f"{value:.4f}"


def main(argv: list[str]) -> None:
    """Compare what `argv` names; raises UserError for a mistake."""
    options = parse(argv)
    texts, labels, prompts, columns = read(options)
    why_no_auroc(labels, options.target_label)  # a mistake is found before models are loaded
    rewards = {}
    for model in options.models:
        with error_context(f"--models {model}"):
            rewards[model] = load_reward(model, **options.options.get(model, {}))
    found = compare(
        rewards, texts, labels, prompts, columns, target_label=options.target_label, count=options.disagreements
    )
    print("\n".join(report(found)))
    if options.save:
        Path(options.save).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    exit_on_error(main)
