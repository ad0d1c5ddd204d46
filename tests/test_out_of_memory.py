"""A device that runs out of memory computes fewer rows at a time, and the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from trainers import both, make_trainer, step

from workbench.errors import UserError
from workbench.models.policy import Batch, Policy, TokenScores


class ShortOfMemory(Policy):
    """A policy that has no room for more rows than a few."""

    room: int

    def forward(self, batch: Batch, *arguments: Any, **options: Any) -> TokenScores:
        """Raise what CUDA raises for too many rows."""
        if len(batch.prompt_ids) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return super().forward(batch, *arguments, **options)

    def generate(self, prompt_ids: torch.Tensor, *arguments: Any, **options: Any) -> Batch:
        """Raise what CUDA raises for too many rows."""
        if len(prompt_ids) > 4 * max(self.room, 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().generate(prompt_ids, *arguments, **options)


@both
def test_out_of_memory_halves_the_micro_batch_and_changes_no_gradient(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def weights(room: int, **sizes: int) -> list[torch.Tensor]:
        policy = ShortOfMemory(tiny.policy(architecture, lora=True).model, tiny.tokenizer(architecture))
        policy.room = room
        run = make_trainer(tmp_path / f"{room}", architecture, policy=policy, **sizes)
        _, metrics = step(run)
        assert metrics["optimizer_steps"] == 4
        return [parameter.detach() for parameter in policy.parameters() if parameter.requires_grad]

    halved = weights(2)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "out of memory" in line] == [
        "ppo.rollout_batch_size: the device ran out of memory; from here on 8 rows at a time",
        "ppo.micro_batch_size: the device ran out of memory; from here on 4 rows at a time",
        "ppo.micro_batch_size: the device ran out of memory; from here on 2 rows at a time",
    ]
    enough = weights(100, micro_batch_size=2, rollout_batch_size=8)
    assert all(torch.equal(one, other) for one, other in zip(halved, enough, strict=True))
    with pytest.raises(UserError, match=r"ppo.micro_batch_size: .*at 1 rows; turn on policy.gradient_checkpointing"):
        weights(0, rollout_batch_size=1)
