"""Reward and watching scorer against KL, as a page and as a section of a larger one."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.ppo.overoptimization import Point, divergence_step
from workbench.report.page import page
from workbench.report.svg import Series, line_plot


def overoptimization_page(points: Sequence[Point]) -> str:
    """The section as a document of its own."""
    return page("Reward and watching scorer", f"<h1>Reward and watching scorer</h1>{overoptimization_section(points)}")


def overoptimization_section(points: Sequence[Point]) -> str:
    """The verdict, and both scorers against KL and against the step, each in units of its own spread."""
    parted = divergence_step(points)
    if parted is None:
        verdict = '<p class="good">The scorer that PPO never saw did not part from the reward.</p>'
    else:
        verdict = (
            f'<p class="warning">From step {parted} on the reward rose while the scorer that PPO never saw fell: the '
            "policy learned what the reward gets wrong.</p>"
        )
    scores = {"reward": [point.score for point in points], "watching scorer": [point.watch for point in points]}
    kls, steps = [point.kl for point in points], [float(point.step) for point in points]
    parted_kl = next((point.kl for point in points if point.step == parted), None)
    plots = ""
    for xs, label, mark in ((kls, "KL, nats per response", parted_kl), (steps, "step", parted)):
        series = [Series(name, xs, standardized(values)) for name, values in scores.items()]
        plots += line_plot(
            f"Both scorers against {label}", series, x_label=label, y_label="change", marks=True, x_mark=mark
        )
    note = '<p class="soft">Each curve is drawn as its change since the first point, over its own largest change.</p>'
    return f'{verdict}<div class="plots">{plots}</div>{note}'


def standardized(values: Sequence[float]) -> list[float]:
    """Change since the first value, over the largest such change."""
    changes = [value - values[0] for value in values]
    largest = max(map(abs, changes)) or 1.0
    return [change / largest for change in changes]
