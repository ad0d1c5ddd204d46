"""Reward overoptimization: the reward rises while a held-out reward falls (arXiv 2210.10760)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.run.files import read_json_lines


@dataclass(frozen=True)
class Point:
    """Both rewards on the same validation responses."""

    step: int
    kl: float
    """Nats per response from the reference."""
    score: float
    """Mean of the reward that was optimized."""
    held_out: float
    """Mean of the held-out reward."""
    held_out_error: float
    """Standard error of `held_out`."""


# In the order of Point's fields after the step.
METRICS = ("validation/kl", "validation/score_mean", "validation/held_out_mean", "validation/held_out_error")


def read_points(file: Path) -> list[Point]:
    """Read the points of a metrics.jsonl in the order of their steps; empty without a held-out reward."""
    lines = read_json_lines(file)
    return [Point(line["step"], *(line[name] for name in METRICS)) for line in lines if METRICS[-1] in line]


def divergence_step(points: Sequence[Point]) -> int | None:
    """Return the step from which the rewards diverge: where the held-out reward was best before a significant drop.

    The drop is significant if, at a later point, the reward is higher and the held-out reward is lower by more than two
    standard errors of the difference.
    """
    for number, point in enumerate(points):
        best = max(points[: number + 1], key=lambda earlier: earlier.held_out)
        margin = 2 * (best.held_out_error**2 + point.held_out_error**2) ** 0.5
        if point.score > best.score and best.held_out - point.held_out > margin:
            return best.step
    return None


def divergence_warning(points: Sequence[Point]) -> str | None:
    """Return a warning if the divergence first shows at the last point, else None."""
    step = divergence_step(points)
    if step is None or divergence_step(points[:-1]) is not None:
        return None
    return (
        f"ppo: warning: since step {step} the reward has risen and the held-out reward has fallen (now step "
        f"{points[-1].step}): the policy is exploiting errors in the reward; raise ppo.kl_coef, or stop at step {step}"
    )
