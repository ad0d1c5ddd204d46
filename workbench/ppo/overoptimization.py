"""Over-optimisation: the reward goes on rising while a scorer that PPO never sees falls (arXiv 2210.10760)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Point(NamedTuple):
    """What both scorers said of the same validation answers."""

    step: int
    kl: float
    """Nats per response from the reference."""
    score: float
    """Mean of the reward that PPO is paid by."""
    watch: float
    """Mean of the scorer that PPO never sees."""
    watch_error: float
    """Standard error of `watch`."""


NAMES = ("validation/kl", "validation/score_mean", "validation/watch_mean", "validation/watch_error")


def points(metrics: Path) -> list[Point]:
    """The points in a metrics.jsonl, in the order of their steps; none where nothing was watched."""
    if not metrics.is_file():
        return []
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [Point(line["step"], *(line[name] for name in NAMES)) for line in lines if NAMES[-1] in line]


def divergence_step(found: Sequence[Point]) -> int | None:
    """The step from which the two scorers part: the best one by `watch`, once that is lost beyond doubt.

    That is so at a later point whose reward is higher while `watch` is lower by more than two standard errors of the
    difference.
    """
    for number, point in enumerate(found):
        best = max(found[: number + 1], key=lambda earlier: earlier.watch)
        doubt = 2 * (best.watch_error**2 + point.watch_error**2) ** 0.5
        if point.score > best.score and best.watch - point.watch > doubt:
            return best.step
    return None


def divergence_warning(found: Sequence[Point]) -> str | None:
    """A line, at the one point where it first shows that the two have parted."""
    parted = divergence_step(found)
    if parted is None or divergence_step(found[:-1]) is not None:
        return None
    return (
        f"ppo: warning: since step {parted} the reward rises while the watching scorer falls (now step "
        f"{found[-1].step}): the policy learns what the reward gets wrong; raise ppo.kl_coef or stop there"
    )
