"""The prompts, token limit and seeds of each step, as functions of the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from workbench.config.derived import sampled_responses
from workbench.config.schema import PPOConfig
from workbench.errors import UserError


def check_batch_size(config: PPOConfig, prompts: int, processes: int) -> None:
    """Raise UserError if a batch would need a prompt twice, or the responses to a prompt be on two processes."""
    size, samples = config.batch_size, config.samples_per_prompt
    prompts_per_rollout = sampled_responses(config) // samples
    if prompts < prompts_per_rollout:
        oversampled = f" with ppo.oversampling {config.oversampling}" if config.oversampling > 1 else ""
        takes = f"{oversampled} takes {prompts_per_rollout} prompts, which" if oversampled or samples > 1 else ""
        raise UserError(
            f"ppo.batch_size: {size}{takes} is above the {prompts} prompts of ppo.data; lower it or add prompts"
        )
    if size % (samples * processes):
        raise UserError(
            f"ppo.batch_size: {size} over {processes} processes must be a multiple of ppo.samples_per_prompt, "
            f"{samples}, for each of them; change one of the three"
        )
    if config.loss != "clip" and config.minibatch_size % (samples * processes):
        raise UserError(
            f"ppo.minibatch_size: {config.minibatch_size} over {processes} processes must be a multiple of "
            f"ppo.samples_per_prompt, {samples}, for each of them, since ppo.loss {config.loss} learns from all "
            "responses to a prompt together"
        )


def check_rows(rows: Sequence[dict[str, Any]], limit: int, context_length: int | None) -> None:
    """Raise UserError for rows whose prompt and `limit` response tokens exceed the model's context length."""
    if not rows:
        raise UserError("ppo: a rollout needs prompts; use at least one row")
    for index, row in enumerate(rows):
        length = len(row["prompt_ids"])
        if length == 0:
            raise UserError(f"ppo: row {index} has a prompt without tokens")
        if context_length is not None and length + limit > context_length:
            raise UserError(
                f"ppo: row {index} has {length} prompt tokens, which with {limit} response tokens exceed the model's "
                f"context length of {context_length}; lower ppo.max_new_tokens or shorten the prompt"
            )


def batch_indices(step: int, batch_size: int, rows: int, seed: int) -> list[int]:
    """Return the row indices of the batch at `step`: every epoch visits the rows in a new order."""
    indices: list[int] = []
    position = step * batch_size
    while len(indices) < batch_size:
        epoch, offset = divmod(position + len(indices), rows)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(derive_seed(seed, epoch)))
        indices += order[offset : offset + batch_size - len(indices)].tolist()
    return indices


def response_indices(step: int, config: PPOConfig, rows: int, seed: int) -> list[int]:
    """Return the row index of every response of rollout `step`: those to a prompt follow one another."""
    samples = config.samples_per_prompt
    prompts = batch_indices(step, sampled_responses(config) // samples, rows, seed)
    return [index for index in prompts for _ in range(samples)]


def token_limit(step: int, minimum: int | None, maximum: int, seed: int) -> int:
    """Return the token limit of the responses at `step`: uniform from `minimum` to `maximum`, or just `maximum`."""
    if minimum is None:
        return maximum
    generator = torch.Generator().manual_seed(derive_seed(seed, step))
    return int(torch.randint(minimum, maximum + 1, (), generator=generator))


def derive_seed(*numbers: int) -> int:
    """Combine several numbers into one seed; different numbers give different seeds."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return mixed
