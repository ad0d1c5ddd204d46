"""What TRL passes to a reward beyond texts and columns: how far the training is, and where to log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import RewardError, shorten
from workbench.rewards.values import Array, finite_float

RESERVED_COLUMNS = frozenset({"step", "prompt", "completion", "score", "kl", "held_out"})
"""The fields of samples.jsonl that are not a reward's."""


@dataclass(frozen=True)
class TrainerState:
    """How far the training is, in the names of transformers' TrainerState."""

    global_step: int
    """Finished steps."""
    max_steps: int


@dataclass(frozen=True)
class RewardLog:
    """What rewards log while they score one batch."""

    rows: int
    metrics: dict[str, list[float]] = field(default_factory=dict)
    """The values of each name, one per call of log_metric."""
    extra: dict[str, list[Any]] = field(default_factory=dict)
    """Columns with one value per completion."""

    def log_metric(self, name: str, value: float) -> None:
        """Add a value of a metric."""
        if not isinstance(name, str):
            raise RewardError(f"log_metric: the name is {shorten(name)}; it must be a string")
        self.metrics.setdefault(name, []).append(finite_float(value, f"log_metric({name!r}): the value is"))

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Set a column of the samples."""
        if not isinstance(column, str) or column in RESERVED_COLUMNS:
            names = ", ".join(sorted(RESERVED_COLUMNS))
            raise RewardError(f"log_extra: the column is {shorten(column)}; use a string other than {names}")
        plain = [_plain(value) for value in values]
        if len(plain) != self.rows:
            raise RewardError(
                f"log_extra({column!r}): it has {len(plain)} values for {self.rows} completions; pass one for each"
            )
        self.extra[column] = plain


def trainer_arguments(state: TrainerState, log: RewardLog, completion_ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the keyword arguments with which a trainer calls a reward, in addition to those of the data."""
    return {
        "trainer_state": state,
        "log_metric": log.log_metric,
        "log_extra": log.log_extra,
        "completion_ids": list(completion_ids),
    }


def _ignore(*_: Any) -> None:
    """Log nothing."""


WITHOUT_LOG: dict[str, Any] = {"log_metric": _ignore, "log_extra": _ignore}
WITHOUT_TRAINER: dict[str, Any] = {"trainer_state": TrainerState(1, 1), **WITHOUT_LOG}
"""The arguments where nothing trains: a reward that changes with the steps is as at the end of a training."""
TRAINER_ARGUMENTS = (*WITHOUT_TRAINER, "completion_ids")


def _plain(value: Any) -> str | float | bool | None:
    """Return a value of a sample as JSON can hold it."""
    if isinstance(value, Array):
        value = value.tolist()
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
