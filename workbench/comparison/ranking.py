"""What the intervals support about the order of the rows, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from workbench.evaluation.results import Metric, Verdict
from workbench.evaluation.verdicts import MINIMUM_PROMPTS, too_few


def ranking_sentence(
    metric: Metric,
    means: Mapping[str, float],
    verdict: Callable[[str, str], Verdict | None],
    *,
    baseline: str,
    prompts: int,
    one_seed: Sequence[str],
    noun: str = "prompt",
) -> str:
    """Return which row is best, or that none can be told from another.

    `means` are those of the metric by title, `verdict` returns that of the second of two rows against the first,
    `one_seed` are the trained rows of a single seed, and `prompts` counts the independent units, which `noun` names.
    """
    if len(means) < 2 or metric.direction is None:
        reason = "has no better direction" if len(means) > 1 else "was measured in one row"
        return f"nothing is ranked: {metric.label} {reason}"
    if prompts < MINIMUM_PROMPTS:
        return f"nothing is ranked: {too_few(prompts, None, noun)}"
    sign = 1 if metric.direction == "lower" else -1
    best, *others = sorted(means, key=lambda title: sign * means[title])
    undetected = [title for title in others if verdict(title, best) != "better"]
    beaten = [title for title in others if title not in (*undetected, baseline)]
    word = metric.direction
    if undetected:
        named = _listed([f"{title} ({means[title]:.3f})" for title in undetected], "or")
        sentence = f"no best row by {metric.label}: no detectable difference between {best} ({means[best]:.3f})"
        sentence += f" and {named}"
        if beaten:
            sentence += f"; {best} has {word} {metric.label} than {_listed(beaten)}"
    else:
        runner_up = others[0]
        sentence = (
            f"best by {metric.label}: {best} with {means[best]:.3f}, {word} than every other row (next: {runner_up} "
            f"with {means[runner_up]:.3f})"
        )
    if baseline in means and baseline != best:
        better = [title for title in means if title != baseline and verdict(baseline, title) == "better"]
        worse = [title for title in means if title != baseline and verdict(baseline, title) == "worse"]
        same = [title for title in means if title not in (baseline, *better, *worse)]
        clauses = [f"better than {baseline}: {_listed(better)}"] if better else []
        clauses += [f"worse than {baseline}: {_listed(worse)}"] if worse else []
        clauses += [f"no detectable difference from {baseline}: {_listed(same)}"] if same else []
        sentence += f"; {'; '.join(clauses)}"
    if one_seed:
        sentence += (
            f"; {_listed(one_seed)}: one seed each, so this is about these runs, and other seeds may order the "
            "algorithms differently"
        )
    return sentence


def _listed(titles: Sequence[str], conjunction: str = "and") -> str:
    """Return titles as a phrase."""
    *first, last = titles
    return f"{', '.join(first)} {conjunction} {last}" if first else last
