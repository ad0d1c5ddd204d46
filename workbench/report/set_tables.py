"""A prompt set's means, differences and intervals as tables, with a small picture beside each number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from workbench.evaluation.verdicts import is_toxicity, pair_of, too_few
from workbench.report.page import table, text
from workbench.report.svg import number

TONES = {"better": "good", "worse": "bad"}
ARROWS = {"lower": ("\u2193", "lower is better"), "higher": ("\u2191", "higher is better")}
MARK_WIDTH, MARK_HEIGHT = 96, 14


def main_metric(metrics: Iterable[str]) -> str | None:
    """The metric that a set is looked at by first: the first toxicity, or else the reward; None where neither is."""
    names = list(metrics)
    return next((name for name in names if is_toxicity(name)), "reward" if "reward" in names else None)


def set_title(name: str, found: dict[str, Any]) -> str:
    """A set's name; one that has nothing to do with the goal measures what was retained."""
    return f"Retention: {name}" if found["neutral"] else name


def sets_section(results: dict[str, Any]) -> str:
    """A table for each prompt set, and the other comparisons behind a disclosure."""
    return "".join(_set(name, found, results) for name, found in results["sets"].items())


def shortage(found: dict[str, Any], results: dict[str, Any]) -> str | None:
    """What a set that is too small lacks, by the metric that is looked at first; None for one that is large enough."""
    main, compared = main_metric(found["metrics"]), found["comparisons"].get(pair_of(results), {})
    needed = compared[main]["prompts_needed"] if main in compared else None
    lacking = too_few(found["prompts"], needed)
    return None if found["enough"] or lacking is None else lacking + (f" ({main})" if needed else "")


def signed(value: float) -> str:
    """A difference with its sign."""
    return ("+" if value > 0 else "\u2212" if value < 0 else "") + shown(abs(value))


def shown(value: float) -> str:
    """A mean with three decimals, or as many digits as it needs."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3f}".replace("-", "\u2212")
    return number(value, 2).replace("-", "\u2212")


def _set(name: str, found: dict[str, Any], results: dict[str, Any]) -> str:
    seen, small = found["seen_in_training"], shortage(found, results)
    notes = [f"{found['prompts']} prompts."]
    if found["neutral"]:
        notes.append("They have nothing to do with the goal: what changes here is a side effect.")
    warnings = [small] if small else []
    if seen:
        warnings.append(f"{seen} of these prompts were in the training data.")
    others = [pair for pair in found["comparisons"] if pair != pair_of(results)]
    folded = "".join(_comparison(pair, found) for pair in others)
    return (
        f"<h3>{text(set_title(name, found))}</h3><p>{' '.join(notes)}</p>"
        + "".join(f'<p class="warning">{text(warning)}</p>' for warning in warnings)
        + _means(found, results)
        + (f"<details><summary>Compared with other models</summary>{folded}</details>" if others else "")
    )


def _means(found: dict[str, Any], results: dict[str, Any]) -> str:
    models, compared = results["models"], found["comparisons"].get(pair_of(results), {})
    alone, several = results["judges"] == ["reward"], len(results["seeds"]) > 1
    rows = []
    for metric, values in found["metrics"].items():
        means, spread = values["means"], values["spread"] or {}
        cells = [_mean(means.get(model), spread.get(model)) for model in models]
        judged_by_itself = alone and metric.endswith("(reward)")
        rows.append(
            [
                _metric(metric, values["better"], judged_by_itself),
                _word(compared.get(metric)),
                *cells,
                *_difference(compared.get(metric), values["better"]),
            ]
        )
    caption = "Means over prompts" + (f" \u00b1 deviation over {len(results['seeds'])} seeds" if several else "")
    head = ["", "", *models, f"{_minus(pair_of(results))} [95 % interval]", "", "win / tie / loss"]
    return table(head, rows, f"{caption}; differences are paired by prompt")


def _comparison(pair: str, found: dict[str, Any]) -> str:
    rows = []
    for metric, difference in found["comparisons"][pair].items():
        better = found["metrics"][metric]["better"]
        rows.append([_metric(metric, better, False), _word(difference), *_difference(difference, better)])
    return table(["", "", f"{_minus(pair)} [95 % interval]", "", "win / tie / loss"], rows)


def _minus(pair: str) -> str:
    return pair.replace(" - ", " \u2212 ")


def _metric(metric: str, better: str | None, judged_by_itself: bool) -> str:
    name = text(metric)
    if judged_by_itself:
        name = f'<span class="bad">{name}</span>'
    if better is None:
        return name
    arrow, meaning = ARROWS[better]
    return f'{name} <span class="soft" title="{meaning}" aria-label="{meaning}" role="img">{arrow}</span>'


def _mean(value: float | None, spread: float | None) -> str:
    if value is None:
        return ""
    return shown(value) + (f' <span class="soft">\u00b1 {shown(spread)}</span>' if spread is not None else "")


def _word(found: dict[str, Any] | None) -> str:
    word = found["verdict"] if found else None
    return f'<span class="chip {TONES.get(word, "same")}">{text(word)}</span>' if word else ""


def _difference(found: dict[str, Any] | None, better: str | None) -> list[str]:
    """Three cells: the difference with its interval, a picture of them, and the counts."""
    if found is None:
        return ["", "", ""]
    low, high = found["low"], found["high"]
    known = low is not None and high is not None
    interval = f"[{signed(low)}, {signed(high)}]" if known else "no interval"
    return [
        f'<strong>{signed(found["difference"])}</strong> <span class="soft">{interval}</span>',
        _interval_mark(found["difference"], low, high, TONES.get(found["verdict"], "same")) if known else "",
        _counts(found, better) if found["wins"] is not None else "",
    ]


def _interval_mark(difference: float, low: float, high: float, tone: str) -> str:
    """The interval on a line whose middle is zero and which is as long as the interval's farther end."""
    reach = max(abs(low), abs(high), abs(difference)) or 1.0
    left, middle, right = (MARK_WIDTH / 2 + value / reach * (MARK_WIDTH / 2 - 5) for value in (low, difference, high))
    half = MARK_HEIGHT / 2
    return (
        f'<svg class="small" viewBox="0 0 {MARK_WIDTH} {MARK_HEIGHT}" aria-hidden="true">'
        f'<line class="zero" x1="{MARK_WIDTH / 2}" x2="{MARK_WIDTH / 2}" y1="0" y2="{MARK_HEIGHT}"/>'
        f'<line class="range {tone}" x1="{left:.1f}" x2="{right:.1f}" y1="{half}" y2="{half}"/>'
        f'<circle class="{tone}" cx="{middle:.1f}" cy="{half}" r="3.5"/></svg>'
    )


def _counts(found: dict[str, Any], better: str | None) -> str:
    """Wins, ties and losses; the results count a value that rose as a win, whatever that means for the metric."""
    rose, same, fell = found["wins"], found["ties"], found["losses"]
    first, last = (fell, rose) if better == "lower" else (rose, fell)
    tones = ("good", "same", "bad") if better else ("c0", "same", "c1")
    names = ("win", "tie", "loss") if better else ("rose", "same", "fell")
    start, bars, total = 0.0, "", max(first + same + last, 1)
    for count, tone in zip((first, same, last), tones, strict=True):
        width = count / total * MARK_WIDTH
        bars += f'<rect class="{tone}" x="{start:.1f}" y="0" width="{width:.1f}" height="6"/>'
        start += width
    label = ", ".join(f"{count} {name}" for count, name in zip((first, same, last), names, strict=True))
    words = f"{first} / {same} / {last}" if better else f"\u2191 {first} / {same} / \u2193 {last}"
    return (
        f'<span title="{label}">{words}</span>'
        f'<svg class="small" viewBox="0 0 {MARK_WIDTH} 6" aria-hidden="true">{bars}</svg>'
    )
