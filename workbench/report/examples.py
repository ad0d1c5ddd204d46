"""Every prompt with its completions: the data as JSON in the page, and the controls that report.js brings to life."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.evaluation.results import REWARD, TOXICITY, Example, Metric, Results
from workbench.evaluation.statistics import paired_changes
from workbench.report.blurring import toxic_parts
from workbench.report.completion_choices import classes, completion_choices, judges_of
from workbench.report.page import text
from workbench.report.tables import main_metric, set_title

# "<" could close the script that holds the JSON; the others have no glyph (page.INVISIBLE).
ESCAPED = re.compile("[<\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FILTERS = {"all": "all prompts", "changed": "only changed", "worse": "only worse", "better": "only better"}
ORDERS = {"worst": "worst first", "best": "best first", "order": "original order", "longest": "longest first"}


def examples_section(results: Results, examples: Sequence[Example], toxic_words: Sequence[str]) -> str:
    """Return the controls, an empty list, and the data with which report.js fills it, a page at a time."""
    metrics = example_metrics(examples)
    data = _data(results, examples, metrics, toxic_words)
    return (
        '<p id="unscripted">The examples need JavaScript; the rest of this page does not.</p>'
        + _controls(results, examples, metrics)
        + f'<script type="application/json" id="data">{as_json(data)}</script>'
    )


def example_metrics(examples: Sequence[Example]) -> list[Metric]:
    """Return the metrics by which the examples can be filtered and sorted."""
    return list(dict.fromkeys(summary.metric for example in examples for summary in example.scores))


def as_json(value: object) -> str:
    """Return JSON that cannot close the script element that holds it."""
    dumped = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", dumped)


def _data(
    results: Results, examples: Sequence[Example], metrics: Sequence[Metric], toxic_words: Sequence[str]
) -> dict[str, Any]:
    """Return what report.js reads; models, sets and metrics are numbered in the order of their lists."""
    sets = {result.name: number for number, result in enumerate(results.sets)}
    threshold, judges = results.settings.threshold, judges_of(examples)
    return {
        "models": results.models,
        "before": results.models.index(results.before),
        "after": results.models.index(results.after),
        "sets": [set_title(result) for result in results.sets],
        "metrics": [
            {
                "label": metric.label,
                "direction": metric.direction,
                "isToxicity": metric.name == TOXICITY,
                "isOnCards": metric.name in (TOXICITY, REWARD),
            }
            for metric in metrics
        ],
        "threshold": threshold,
        "toxicWords": list(toxic_words),
        "judges": judges,
        "choices": completion_choices(judges),
        "rows": [
            _row(example, sets[example.set], results, metrics)
            | {"classes": classes(example, judges, results.models, threshold)}
            for example in examples
        ],
    }


def _row(example: Example, set_number: int, results: Results, metrics: Sequence[Metric]) -> dict[str, Any]:
    """Return an example with lists instead of mappings by metric and model, and which of its texts are toxic."""
    models = results.models
    toxic = toxic_parts(example, results.settings.threshold)
    means = {summary.metric: _without_rounding(summary.means, results) for summary in example.scores}
    ratios = example.token_log_ratios
    return {
        "set": set_number,
        "index": example.index,
        "prompt": example.prompt,
        "references": example.references,
        "texts": [example.completions[model] for model in models],
        "scores": [[_rounded(means.get(metric, {}).get(model)) for model in models] for metric in metrics],
        "isToxic": {
            "prompt": int(toxic.prompt),
            "references": int(toxic.references),
            "models": [int(model in toxic.models) for model in models],
        },
        "tokenLogRatios": ratios and [[token, _rounded(nats)] for token, nats in ratios],
    }


def _without_rounding(means: Mapping[str, float | None], results: Results) -> Mapping[str, float | None]:
    """Return the means with one value before and after where they differ by rounding, so that no row counts as changed.

    The counts of the tables are made from the same differences.
    """
    before, after = means.get(results.before), means.get(results.after)
    if before is None or after is None or paired_changes([before], [after])[0] != 0:
        return means
    return {**means, results.after: before}


def _rounded(value: float | None) -> float | None:
    """Return a value so precise that no change is lost; None for one that is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.9g}")


def _controls(results: Results, examples: Sequence[Example], metrics: Sequence[Metric]) -> str:
    """Return search, filters, order and pager, hidden until report.js runs."""
    sets = {"": "all sets"} | {str(number): set_title(result) for number, result in enumerate(results.sets)}
    directed = {str(number): metric.label for number, metric in enumerate(metrics) if metric.direction}
    main, choices = main_metric(metrics), completion_choices(judges_of(examples))
    labels = {str(number): str(choice["label"]) for number, choice in enumerate(choices)}
    checks = [("unblur", "Show text judged toxic")]
    if any(example.token_log_ratios for example in examples):
        checks.append(("shade", f"Shade tokens by log-ratio of {results.after} to the reference"))
    return (
        '<div id="examples-tools" class="tools" role="search" hidden>'
        '<label class="grow">Search <input type="search" id="query" placeholder="prompts and completions"></label>'
        + _select("set", "Set", sets)
        + _select("filter", "Show", FILTERS)
        + (_select("completions", "Completions", {"": "all"} | labels) if choices else "")
        + _select("order", "Sort", ORDERS)
        + _select("metric", "By", directed, "" if main is None else str(metrics.index(main)))
        + "".join(
            f'<label class="check"><input type="checkbox" id="{key}"> {text(label)}</label>' for key, label in checks
        )
        + '<button type="button" id="download">Download these rows</button>'
        + '</div><p id="count" role="status" aria-live="polite" tabindex="-1"></p><div id="examples-list"></div>'
        '<div id="pager" class="pager" hidden><button type="button" id="previous">Previous</button>'
        '<label>Page <input type="number" id="page" min="1" value="1"></label><span id="pages"></span>'
        '<button type="button" id="next">Next</button></div>'
    )


def _select(key: str, label: str, options: dict[str, str], selected: str = "") -> str:
    """Return a labeled list of options."""
    items = "".join(
        f'<option value="{value}"{" selected" if value == selected and selected else ""}>{text(name)}</option>'
        for value, name in options.items()
    )
    return f'<label>{label} <select id="{key}">{items}</select></label>'
