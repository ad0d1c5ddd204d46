"""What a stage's trainer will be made with, as far as trainer_args have to fit it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import TrainingArguments

# The trainer takes any other name for random.
SAMPLING_STRATEGIES = ("random", "sequential", "group_by_length", "batch_rebalance")


def planned_steps(extra: Mapping[str, Any], max_steps: int | None, steps_per_epoch: int, epochs: float) -> float:
    """Return the optimizer steps of a stage with these trainer_args."""
    limit: int = extra.get("max_steps", max_steps or -1)
    return limit if limit > 0 else steps_per_epoch * float(extra.get("num_train_epochs", epochs))


@dataclass(frozen=True)
class TrainerPlan:
    """What the stage's trainer will be made with, as far as its arguments have to fit it."""

    key: str
    """Of trainer_args in the configuration, such as sft.trainer_args."""
    extra: dict[str, Any]
    """The configured trainer_args."""
    arguments: Callable[[dict[str, Any]], TrainingArguments]
    """Make the stage's arguments, for one row at a time; those given take precedence over the stage's own."""
    precision: str
    precision_key: str
    rows_key: str | None
    """The key to set for rows to evaluate on; None where the stage has some."""
    network: Callable[[], nn.Module]
    """Make the model that the stage trains, without its values."""
    training_rows: int
    evaluation_rows: int = 0
    rows_at_a_time: int = 1
    """Training rows of a forward pass in one process."""
    processes: int = 1
    metrics: Sequence[str] = ()
    """What the trainer measures on the rows to evaluate on, beside the loss."""
    settled: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    """By argument: the only value that this stage can take, and why it takes no other."""
    sampling_strategies: Sequence[str] = SAMPLING_STRATEGIES

    def steps(self, arguments: TrainingArguments) -> int:
        """Return how many optimizer steps the stage will take with these arguments."""
        if arguments.max_steps > 0:
            return arguments.max_steps
        rows_per_step = self.training_batch(arguments) * arguments.gradient_accumulation_steps
        return max(math.ceil(arguments.num_train_epochs * -(-self.training_rows // rows_per_step)), 1)

    def training_batch(self, arguments: TrainingArguments) -> int:
        """Return the rows of a forward pass in all processes."""
        is_configured = "per_device_train_batch_size" in self.extra
        rows = arguments.per_device_train_batch_size if is_configured else self.rows_at_a_time
        return rows * self.processes

    def evaluation_batch(self, arguments: TrainingArguments) -> int:
        """Return the rows of a forward pass of an evaluation in all processes."""
        is_configured = "per_device_eval_batch_size" in self.extra
        rows = arguments.per_device_eval_batch_size if is_configured else self.rows_at_a_time
        return rows * self.processes
