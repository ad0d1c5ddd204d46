"""How many rows are computed at a time: half as many from where the device runs out of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from workbench.config.schema import PPOConfig
from workbench.errors import UserError
from workbench.models.policy import Batch, Policy

Result = TypeVar("Result")


@dataclass
class MicroBatches:
    """The rows of one pass through the model."""

    rows: int
    key: str
    """The setting that says so."""
    can_halve: bool
    """Whether a pass may be repeated in halves: of several processes, the others would wait for this one."""

    def run(self, work: Callable[[int], Result], undo: Callable[[], None] = lambda: None) -> Result:
        """Return the result of `work` for the number of rows; `undo` what it did before it ran out of memory.

        Raises UserError where fewer rows are not possible.
        """
        while True:
            result = self._attempt(work)
            if result is not None:
                return result
            # Only here has the traceback of the failure, which held the tensors, gone.
            if self.rows == 1 or not self.can_halve:
                raise UserError(
                    f"{self.key}: the device ran out of memory at {self.rows} rows; "
                    + ("lower it" if self.rows > 1 else "turn on policy.gradient_checkpointing, or shorten the texts")
                )
            undo()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.rows //= 2
            print(f"{self.key}: the device ran out of memory; from here on {self.rows} rows at a time", flush=True)

    def _attempt(self, work: Callable[[int], Result]) -> Result | None:
        """Return the result, or None where the device ran out of memory."""
        try:
            return work(self.rows)
        except torch.OutOfMemoryError:
            return None


@dataclass(frozen=True)
class RowLimits:
    """How many rows are sampled, and how many are computed, at a time."""

    sampled: MicroBatches
    computed: MicroBatches


def row_limits(config: PPOConfig, batch_size: int, minibatch_size: int, processes: int) -> RowLimits:
    """Return the limits of the configuration; both sizes are per process."""
    sampled = min(config.rollout_batch_size or batch_size, batch_size * config.oversampling)
    computed = min(config.micro_batch_size or minibatch_size, minibatch_size)
    return RowLimits(
        MicroBatches(sampled, "ppo.rollout_batch_size", can_halve=True),
        MicroBatches(computed, "ppo.micro_batch_size", can_halve=processes == 1),
    )


def sample_in_parts(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    max_new_tokens: int,
    temperature: float,
    limit: MicroBatches,
    seeds: list[int] | None,
) -> Batch:
    """Sample responses to all rows (prompt_ids), so many at a time; see Policy.generate."""
    ids, mask = policy.pad_prompts([row["prompt_ids"] for row in rows])

    def sample(size: int) -> Batch:
        parts = [
            policy.generate(
                ids[first : first + size],
                mask[first : first + size],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seeds=None if seeds is None else seeds[first : first + size],
            )
            for first in range(0, len(rows), size)
        ]
        length = max(part.response_ids.shape[1] for part in parts)
        responses, masks = [], []
        for part in parts:
            right = (0, length - part.response_ids.shape[1])
            responses.append(pad(part.response_ids, right, value=policy.pad_id))
            masks.append(pad(part.response_mask, right))
        return Batch(ids, mask, torch.cat(responses), torch.cat(masks))

    return limit.run(sample)


def minibatches(rows: int, epochs: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the row indices of each minibatch: every epoch visits every row once, in a new order."""
    for _ in range(epochs):
        yield from torch.randperm(rows, generator=generator).split(size)
