"""Reward and held-out reward against KL, as a page and as a section of a larger one."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.ppo.overoptimization import Point, divergence_step
from workbench.report.page import page
from workbench.report.svg import Series, line_plot

TITLE = "Reward and held-out reward"


def overoptimization_page(points: Sequence[Point]) -> str:
    """Return the section as a document."""
    return page(TITLE, f"<h1>{TITLE}</h1>{overoptimization_section(points)}")


def overoptimization_section(points: Sequence[Point]) -> str:
    """Return whether the rewards diverge, and plots of both against KL and against the step."""
    step = divergence_step(points)
    if step is None:
        message = '<p class="good">The held-out reward did not diverge from the reward.</p>'
    else:
        message = (
            f'<p class="warning">Divergence step {step}: from then on, the reward rose while the held-out reward fell. '
            "This is reward overoptimization.</p>"
        )
    rewards = {"reward": [point.score for point in points], "held-out reward": [point.held_out for point in points]}
    kls, steps = [point.kl for point in points], [float(point.step) for point in points]
    divergence_kl = next((point.kl for point in points if point.step == step), None)
    plots = ""
    for xs, label, mark in ((kls, "KL, nats per response", divergence_kl), (steps, "step", step)):
        series = [Series(name, xs, relative_changes(values)) for name, values in rewards.items()]
        plots += line_plot(
            f"Both rewards against {label}", series, x_label=label, y_label="relative change", marks=True, x_mark=mark
        )
    note = (
        '<p class="soft">Change since the first validation, divided by the largest change in the curve'
        + ("" if step is None else "; the dashed line is the divergence step")
        + ".</p>"
    )
    return f'{message}<div class="plots">{plots}</div>{note}'


def relative_changes(values: Sequence[float]) -> list[float]:
    """Return the changes since the first value, divided by the largest of them."""
    changes = [value - values[0] for value in values]
    largest = max(map(abs, changes)) or 1.0
    return [change / largest for change in changes]
