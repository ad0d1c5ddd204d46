"""Compare rewards on the same texts: AUROC of each for the target label, agreement of each pair, and speed.

A column `prompt` in the file holds the prompt of each text; rewards get all other columns by name.
"""

# Imports that load torch are deferred to load_scorer, so that --help is fast.
from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from workbench.config.scorers import as_scorer
from workbench.config.sources import DataSource, Scorer
from workbench.data.formats import Row
from workbench.data.labeled import labeled_texts
from workbench.data.sources import read_rows
from workbench.data.templates import text_column
from workbench.errors import UserError, error_context, printable_lines
from workbench.rewards.contract import CheckedReward
from workbench.rewards.ranking import auroc, ranks
from workbench.rewards.registry import load_scorer
from workbench.run.options import make_options_parser, name_or_path, parse_options
from workbench.run.process import exit_on_error

MAX_LISTED_LABELS = 10
MAX_QUOTED_CHARACTERS = 200


@dataclass(frozen=True)
class Texts:
    """The texts to score, with everything else that rewards may need."""

    texts: list[str]
    labels: list[str] | None
    prompts: list[str]
    columns: dict[str, list]


def make_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = make_options_parser("reward_models.compare", __doc__ or "")
    parser.add_argument(
        "--models",
        nargs="+",
        help='rewards as in reward.model, each a name or "{model: NAME, options: {...}}"',
    )
    parser.add_argument("--data", type=name_or_path, help="file (.jsonl, .json, .csv, .parquet), folder or hub id")
    parser.add_argument("--text_column", default="text", help="column that contains the texts to score")
    parser.add_argument("--label_column", default="label", help="column that contains the labels, if any")
    parser.add_argument("--target_label", help="the label that should score high; AUROC needs it")
    parser.add_argument("--limit", type=int, help="read this many rows")
    parser.add_argument("--disagreements", type=int, default=10, help="print this many texts on which rewards differ")
    parser.add_argument("--save", type=name_or_path, help="write the numbers to this file as JSON")
    return parser


def parse(argv: list[str]) -> Namespace:
    """Return the checked options; raises UserError with one line for any error."""
    options = parse_options(
        make_parser(), argv, required={"models": "the rewards to compare", "data": "a file, folder or hub id"}
    )
    for name, minimum in (("limit", 1), ("disagreements", 0)):
        if vars(options)[name] is not None and vars(options)[name] < minimum:
            raise UserError(f"--{name}: {vars(options)[name]}; use a number of at least {minimum}")
    if options.save and not Path(options.save).parent.is_dir():
        raise UserError(f"--save {options.save}: no such folder {Path(options.save).parent}; create it first")
    return options


def read_scorers(models: list[str]) -> dict[str, Scorer]:
    """Return the scorers by title: the model's name, or, if several share it, what the user wrote."""
    scorers = {}
    for value in models:
        is_mapping = value.lstrip().startswith("{")
        try:
            written = yaml.safe_load(value) if is_mapping else value
        except yaml.YAMLError as error:
            raise UserError(f"--models {value}: not a mapping; write {{model: NAME, options: {{...}}}}") from error
        if value in scorers:
            raise UserError(f"--models: {value} is listed twice; remove one")
        scorers[value] = as_scorer(written, "--models")
    counts = Counter(scorer.model for scorer in scorers.values())
    return {scorer.model if counts[scorer.model] == 1 else value: scorer for value, scorer in scorers.items()}


def read_texts(options: Namespace) -> Texts:
    """Return the texts of the file with labels, prompts and columns; raises UserError for a missing column."""
    source = DataSource(options.data, limit=options.limit)
    rows = read_rows(source)
    for option in ("text_column", "label_column"):
        name = vars(options)[option]
        if name not in rows[0] and name != "label":  # the default column is optional
            raise UserError(f"--{option}: {options.data} has no column {name!r}; available: {', '.join(rows[0])}")
    rows = rows[: options.limit]
    labels: list[str] | None = None
    if options.label_column in rows[0]:
        source.columns = {"text": options.text_column, "label": options.label_column}
        texts, labels = labeled_texts(source, None)
    else:
        numbered = (Row(f"{options.data} row {number}", row) for number, row in enumerate(rows, 1))
        texts = [text_column(row, options.text_column) for row in numbered]
    prompts = [row.get("prompt") or "" for row in rows]
    names = [name for name in rows[0] if name not in ("prompt", "prompts", "completions")]
    return Texts(texts, labels, prompts, {name: [row[name] for row in rows] for name in names})


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the correlation of two lists of ranks (N,); None where one of them is constant."""
    a, b = first - first.mean(), second - second.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm else None


def disagreements(
    texts: list[str], labels: list[str] | None, scores: dict[str, list[float]], count: int
) -> list[dict[str, Any]]:
    """Return the `count` texts whose ranks under two rewards are furthest apart, each with those two rewards."""
    ranked = {title: ranks(values) for title, values in scores.items()}
    differing: list[dict[str, Any]] = []
    for row, text in enumerate(texts):
        low, high = min(ranked, key=lambda title: ranked[title][row]), max(ranked, key=lambda title: ranked[title][row])
        gap = float(ranked[high][row] - ranked[low][row])
        both = {title: {"score": scores[title][row], "rank": float(ranked[title][row])} for title in (high, low)}
        if gap:
            label = labels[row] if labels else None
            differing.append({"row": row, "text": text, "label": label, "rank_gap": gap, "models": both})
    return sorted(differing, key=lambda item: -item["rank_gap"])[:count]


def compare(rewards: dict[str, CheckedReward], data: Texts, *, target_label: str | None, count: int) -> dict[str, Any]:
    """Return what --save writes: AUROC and speed per model, rank correlation per pair, and `count` disagreements."""
    reason = why_no_auroc(data.labels, target_label)
    scores, models = {}, {}
    for title, reward in rewards.items():
        start = time.perf_counter()
        scores[title] = reward(data.prompts, data.texts, **data.columns)
        seconds = time.perf_counter() - start
        has_target = [label == target_label for label in data.labels or []]
        quality = None if reason else auroc(scores[title], has_target)
        models[title] = {"auroc": quality, "texts_per_second": len(data.texts) / seconds}
    pairs = [
        {"models": [first, second], "spearman": spearman(ranks(scores[first]), ranks(scores[second]))}
        for first, second in combinations(scores, 2)
    ]
    return {
        "texts": len(data.texts),
        "target_label": target_label,
        "no_auroc": reason,
        "models": models,
        "pairs": pairs,
        "disagreements": disagreements(data.texts, data.labels, scores, count),
    }


def why_no_auroc(labels: list[str] | None, target_label: str | None) -> str | None:
    """Return why there is no AUROC, or None; raises UserError for a target label that no text or every text has."""
    if labels is None:
        return "the data has no labels"
    names = sorted(set(labels))
    listed = ", ".join(names[:MAX_LISTED_LABELS]) + (", ..." if len(names) > MAX_LISTED_LABELS else "")
    if target_label is None:
        return f"set --target_label to the label that should score high, one of {listed}"
    if target_label not in names:
        raise UserError(f"--target_label: {target_label!r} is not a label of the data: {listed}")
    if len(names) < 2:
        raise UserError(f"--target_label: every text is labeled {listed}; AUROC needs a second label")
    return None


def table(rows: list[list[str]]) -> list[str]:
    """Return lines of aligned columns, the first left-aligned, the others right-aligned."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    alignments = [f"<{widths[0]}", *(f">{width}" for width in widths[1:])]
    return ["  ".join(format(cell, alignment) for cell, alignment in zip(row, alignments, strict=True)) for row in rows]


def comparison_lines(comparison: dict[str, Any]) -> list[str]:
    """Return the comparison as lines of plain text."""
    models, reason = comparison["models"], comparison["no_auroc"]
    head = ["model", *([] if reason else [f"AUROC of {comparison['target_label']}"]), "texts/s"]
    rows = [
        [title, *([] if reason else [f"{numbers['auroc']:.4f}"]), f"{numbers['texts_per_second']:.0f}"]
        for title, numbers in models.items()
    ]
    lines = [f"{comparison['texts']} texts", "", *table([head, *rows])]
    if reason:
        lines.append(f"no AUROC: {reason}")
    if comparison["pairs"]:
        pairs = [[" / ".join(pair["models"]), _correlation(pair["spearman"])] for pair in comparison["pairs"]]
        lines += ["", *table([["pair", "Spearman"], *pairs])]
    if comparison["disagreements"]:
        lines += ["", "disagreements: rank of each text (1 is the lowest score), with its score"]
    for item in comparison["disagreements"]:
        both = "; ".join(f"{title} {entry['rank']:g} ({entry['score']:.4g})" for title, entry in item["models"].items())
        label = "" if item["label"] is None else f", label {item['label']}"
        lines += [f"row {item['row']}{label}: {both}", "    " + " ".join(item["text"].split())[:MAX_QUOTED_CHARACTERS]]
    return lines


def _correlation(value: float | None) -> str:
    return "constant" if value is None else f"{value:.4f}"


def main(argv: list[str]) -> None:
    """Compare the rewards that `argv` names; raises UserError for an invalid option."""
    options = parse(argv)
    scorers = read_scorers(options.models)
    data = read_texts(options)
    why_no_auroc(data.labels, options.target_label)  # before models are loaded
    rewards = {}
    for title, scorer in scorers.items():
        with error_context(f"--models {title}"):
            rewards[title] = load_scorer(scorer)
    comparison = compare(rewards, data, target_label=options.target_label, count=options.disagreements)
    print(printable_lines("\n".join(comparison_lines(comparison))))
    if options.save:
        Path(options.save).write_text(json.dumps(comparison, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    exit_on_error(main)
