"""Every prompt with its completions: the data as JSON in the page, and the controls that report.js brings to life."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from workbench.evaluation.verdicts import is_toxicity
from workbench.report.blurring import toxic_parts
from workbench.report.page import text
from workbench.report.set_tables import main_metric, set_title

# "<" could close the script that holds the JSON; the others are what no reader of the file would see (page.HIDDEN).
ESCAPED = re.compile("[<\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
ONLY = {"all": "all prompts", "changed": "only changed", "worse": "only worse", "better": "only better"}
SORT = {"worst": "worst first", "best": "best first", "order": "original order", "longest": "longest first"}


def examples_section(results: dict[str, Any], rows: Sequence[dict[str, Any]], offensive: Sequence[str]) -> str:
    """Controls, an empty list, and the data from which report.js fills it, a page at a time."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["scores"]))
    better = {metric: of["better"] for found in results["sets"].values() for metric, of in found["metrics"].items()}
    return (
        '<p id="unscripted">The examples need JavaScript; everything above does not.</p>'
        + _controls(results, rows, metrics, better)
        + f'<script type="application/json" id="data">{_data(results, rows, metrics, better, offensive)}</script>'
    )


def as_json(value: object) -> str:
    """JSON that may stand in a script element: nothing in it ends the element."""
    dumped = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", dumped)


def _data(
    results: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    metrics: Sequence[str],
    better: dict[str, str | None],
    offensive: Sequence[str],
) -> str:
    models, sets = results["models"], list(results["sets"])
    return as_json(
        {
            "models": models,
            "before": models.index(results["before"]),
            "after": models.index(results["after"]),
            "sets": [set_title(name, found) for name, found in results["sets"].items()],
            "metrics": metrics,
            "better": [better.get(metric) for metric in metrics],
            "headline": [place for place, name in enumerate(metrics) if is_toxicity(name) or name == "reward"],
            "threshold": results["threshold"],
            "offensive": offensive,
            "rows": [_row(row, sets.index(row["set"]), models, metrics, results["threshold"]) for row in rows],
        }
    )


def _row(
    row: dict[str, Any], of_set: int, models: list[str], metrics: Sequence[str], threshold: float
) -> dict[str, Any]:
    """A line of completions.jsonl with lists by model in place of mappings, and which of its texts are hidden."""
    reference, scores, toxic = row["reference"], row["scores"], toxic_parts(row, threshold)
    return {
        "set": of_set,
        "index": row["index"],
        "prompt": row["prompt"],
        "references": [reference] if isinstance(reference, str) else reference or [],
        "texts": [row["completions"][model] for model in models],
        "scores": [[_short(scores.get(metric, {}).get(model)) for model in models] for metric in metrics],
        "hidden": [int(model in toxic) for model in models],
        "given": {part: int(part in toxic) for part in ("prompt", "reference")},
        "moved": row["moved"] and [[token, _short(nats)] for token, nats in row["moved"]],
    }


def _short(value: float | None) -> float | None:
    """Four digits that count; None for what is no number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _controls(
    results: dict[str, Any], rows: Sequence[dict[str, Any]], metrics: Sequence[str], better: dict[str, str | None]
) -> str:
    sets = {"": "all sets"} | {str(n): set_title(*item) for n, item in enumerate(results["sets"].items())}
    directed = {str(place): name for place, name in enumerate(metrics) if better.get(name)}
    main = main_metric(metrics)
    chosen = str(metrics.index(main)) if main in metrics else ""
    checks = [("unblur", "Show what is judged toxic")]
    if any(row["moved"] for row in rows):
        checks.append(("shifts", f"Shade tokens by how far {results['after']} moved"))
    return (
        '<div id="examples-tools" class="tools" role="search" hidden>'
        '<label class="grow">Search <input type="search" id="query" placeholder="prompts and completions"></label>'
        + _choice("set", "Set", sets)
        + _choice("only", "Show", ONLY)
        + _choice("sort", "Sort", SORT)
        + _choice("metric", "By", directed, chosen)
        + "".join(
            f'<label class="check"><input type="checkbox" id="{key}"> {text(name)}</label>' for key, name in checks
        )
        + '</div><p id="count" role="status" aria-live="polite" tabindex="-1"></p><div id="examples-list"></div>'
        '<div id="pager" class="pager" hidden><button type="button" id="previous">Previous</button>'
        '<label>Page <input type="number" id="page" min="1" value="1"></label><span id="pages"></span>'
        '<button type="button" id="next">Next</button></div>'
    )


def _choice(key: str, label: str, options: dict[str, str], chosen: str = "") -> str:
    items = "".join(
        f'<option value="{value}"{" selected" if value == chosen and chosen else ""}>{text(name)}</option>'
        for value, name in options.items()
    )
    return f'<label>{label} <select id="{key}">{items}</select></label>'
