"""Which prompts a step answers, and the seeds of everything random, as functions of the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from workbench.config.schema import PPOConfig
from workbench.errors import UserError


def check_batch_size(config: PPOConfig, prompts: int) -> None:
    """Raises UserError when a batch would need a prompt twice."""
    if prompts < config.batch_size:
        raise UserError(
            f"ppo.batch_size: {config.batch_size} is above the {prompts} prompts there are; lower it or add prompts"
        )


def check_columns(rows: Sequence[dict[str, Any]], validation_rows: Sequence[dict[str, Any]]) -> None:
    """Raises UserError where validation prompts lack a column that the reward is handed with the others."""
    missing = set(rows[0]) - set(validation_rows[0]) if validation_rows else set()
    if missing:
        raise UserError(
            f"ppo.validation: has no column {', '.join(sorted(missing))}, which ppo.data has and the reward is given; "
            "add it, or map another with columns"
        )


def check_rows(rows: Sequence[dict[str, Any]], limit: int, window: int | None) -> None:
    """Raises UserError for rows that cannot be answered in `limit` tokens within the model's `window`."""
    if not rows:
        raise UserError("ppo: a rollout of no prompts; give at least one row")
    for index, row in enumerate(rows):
        length = len(row["prompt_ids"])
        if length == 0:
            raise UserError(f"ppo: row {index} has a prompt without tokens")
        if window is not None and length + limit > window:
            raise UserError(
                f"ppo: row {index} has {length} prompt tokens, and with {limit} response tokens it does not fit "
                f"the model's window of {window}; lower ppo.max_new_tokens or shorten the prompt"
            )


def batch_indices(step: int, batch_size: int, rows: int, seed: int) -> list[int]:
    """Rows of the batch at `step`: the data in a new order every epoch, one epoch after the other."""
    indices: list[int] = []
    position = step * batch_size
    while len(indices) < batch_size:
        epoch, offset = divmod(position + len(indices), rows)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(derive_seed(seed, epoch)))
        indices += order[offset : offset + batch_size - len(indices)].tolist()
    return indices


def token_limit(step: int, shortest: int | None, longest: int, seed: int) -> int:
    """The token limit of the responses at `step`: `longest`, or drawn evenly from `shortest` to `longest`."""
    if shortest is None:
        return longest
    generator = torch.Generator().manual_seed(derive_seed(seed, step))
    return int(torch.randint(shortest, longest + 1, (), generator=generator))


def derive_seed(*numbers: int) -> int:
    """One seed from several numbers, different for different numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return mixed
