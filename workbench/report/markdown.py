"""The evaluation's results as Markdown."""

from __future__ import annotations

from typing import Any

from workbench.evaluation.verdicts import pair_of


def markdown(results: dict[str, Any]) -> str:
    """The verdict, the guards, and a table for each prompt set; `results` as in results.json."""
    verdict = results["verdict"]
    lines = [f"**{verdict['word']}**: {verdict['sentence']}"]
    lines += [
        f"- {'ok' if guard['passed'] else 'FAILED'}: {guard['name']}: {guard['text']}" for guard in results["guards"]
    ]
    parts = ["\n\n".join((lines[0], "\n".join(lines[1:]))) if lines[1:] else lines[0]]
    parts += [set_table(name, found, results) for name, found in results["sets"].items()]
    return "\n\n".join(parts) + "\n"


def set_table(name: str, found: dict[str, Any], results: dict[str, Any]) -> str:
    """Means of every model, and the last step's paired difference with its 95 % interval and its word."""
    models, pair = results["models"], pair_of(results)
    prompts, seen = found["prompts"], found["seen_in_training"]
    title = (
        f"{name}{' (retention)' if found['neutral'] else ''}: {prompts} prompt{'s' * (prompts != 1)}, {how(results)}"
    )
    lines = [
        title + (f" ({seen} of them were trained on)" if seen else ""),
        "",
        f"| | {' | '.join(models)} | {pair} [95 % interval] | up / same / down | |",
        f"|---|{'---:|' * len(models)}---:|---:|---|",
    ]
    for metric, values in found["metrics"].items():
        means = " | ".join(_mean(values, model) for model in models)
        difference = found["comparisons"].get(pair, {}).get(metric)
        lines.append(f"| {metric} | {means} | {_difference(difference)} |")
    return "\n".join(lines)


def how(results: dict[str, Any]) -> str:
    """How the answers were made, in words."""
    if results["temperature"] == 0:
        return "greedy answers"
    samples, seeds = results["samples"], results["seeds"]
    many = "one sample each" if samples == 1 else f"{samples} samples each"
    over = f" for each of seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""
    return f"{many} at temperature {results['temperature']:g}{over}, the same random numbers for every model"


def _mean(values: dict[str, Any], model: str) -> str:
    mean = values["means"].get(model)
    if mean is None:
        return ""
    spread = (values["spread"] or {}).get(model)
    return f"{mean:.3f}" + ("" if spread is None else f" +- {spread:.3f}")


def _difference(found: dict[str, Any] | None) -> str:
    """Difference, counts and word; of a metric that one of the models does not have, nothing."""
    if found is None:
        return " | | "
    counts = "" if found["wins"] is None else " / ".join(str(found[name]) for name in ("wins", "ties", "losses"))
    return f"{found['difference']:+.3f} {interval(found)} | {counts} | {found['verdict'] or ''}"


def interval(found: dict[str, Any]) -> str:
    """The 95 % interval of a comparison; a single prompt has none."""
    return "no interval" if found["low"] is None else f"[{found['low']:+.3f}, {found['high']:+.3f}]"
