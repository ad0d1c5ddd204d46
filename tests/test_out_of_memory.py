"""A device that runs out of memory computes fewer rows at a time, and the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from small_runs import small
from trainers import both, make_rows, make_trainer, step
from transformers import Trainer

from recipes import reward, sft
from workbench.errors import UserError
from workbench.evaluation.generation import ComparedModel, Sampling, sample_completions
from workbench.models.policy import Batch, Policy, TokenScores
from workbench.ppo.micro_batches import MicroBatches
from workbench.ppo.text_likelihood import nats_per_token
from workbench.run import cli


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


def test_the_evaluation_samples_fewer_at_a_time_and_the_same_texts(capsys: pytest.CaptureFixture[str]) -> None:
    def texts(room: int) -> list[str]:
        policy = ShortOfMemory(tiny.policy("gpt2", lora=True).model, tiny.tokenizer("gpt2"))
        policy.room = room
        sampled = sample_completions(
            ComparedModel("aligned", policy, "policy", tiny.tokenizer("gpt2"), policy, with_token_log_ratios=False),
            make_rows("gpt2", 11),
            Sampling(batch_size=8, max_new_tokens=6, temperature=1.0, seeds=(3,)),
            accelerator=Accelerator(cpu=True),
            label="test",
        )
        return [completion.text for row in sampled for completion in row]

    enough = texts(100)
    assert len(enough) == 11
    capsys.readouterr()
    assert texts(1) == enough
    assert [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line] == [
        "evaluation.batch_size: the device ran out of memory; from here on 4 rows at a time"
    ]


def test_texts_are_predicted_fewer_at_a_time_and_as_well() -> None:
    class Short(ShortOfMemory):
        def logprobs(self, variant: str, batch: Batch, *arguments: Any, **options: Any) -> torch.Tensor:
            if len(batch.prompt_ids) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().logprobs(variant, batch, *arguments, **options)

    def nats(room: int) -> list[float]:
        policy = Short(tiny.policy("gpt2", lora=True).model, tiny.tokenizer("gpt2"))
        policy.room = room
        rows = [row | {"response_ids": [5, 6, 7, 8]} for row in make_rows("gpt2", 5)]
        return nats_per_token(policy, "policy", rows, MicroBatches(4, "evaluation.batch_size", can_halve=True))

    assert nats(1) == pytest.approx(nats(100), abs=1e-5)
    with pytest.raises(UserError, match=r"^evaluation\.batch_size: the device ran out of memory at 1 rows"):
        nats(0)


def test_validation_texts_take_the_rows_and_the_setting_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [row | {"response_ids": [5, 6, 7]} for row in make_rows("gpt2", 6)]
    run = make_trainer(tmp_path, validation=4, texts=texts)
    computed = Policy.logprobs

    def short(policy: Policy, name: str, batch: Batch, temperature: float) -> torch.Tensor:
        if [5, 6, 7] in batch.response_ids.tolist():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return computed(policy, name, batch, temperature)

    monkeypatch.setattr(Policy, "logprobs", short)
    with pytest.raises(UserError, match=r"^ppo\.micro_batch_size: the device ran out of memory at 1 rows"):
        run.validate()


@pytest.mark.parametrize(
    ("stage", "key"), [("sft", r"sft\.micro_batch_size"), ("reward", r"reward\.train\.batch_size")]
)
def test_training_that_runs_out_of_memory_says_what_to_change(
    stage: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(Trainer, "training_step", no_room)
    options = small("quickstart", tmp_path, "--reward.model", "null")
    with pytest.raises(UserError, match=rf"^{stage}: the device ran out of memory at \d+ rows; .*{key}"):
        cli.launch([{"sft": sft.STAGE, "reward": reward.STAGE}[stage]], "", options)
