"""Responses of the current policy to prompts that it does not learn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from workbench.config.schema import PPOConfig
from workbench.models.policy import Policy
from workbench.ppo.micro_batches import RowLimits
from workbench.ppo.rollout import Rollout, collect
from workbench.ppo.sampler import derive_seed
from workbench.ppo.scoring import reward_columns, sampled_ids
from workbench.rewards.arguments import RewardLog, TrainerState, trainer_arguments
from workbench.rewards.contract import CheckedReward


@dataclass(frozen=True)
class Sample:
    """One response."""

    prompt: str
    completion: str
    score: float
    kl: float
    """KL to the reference, in nats per response."""
    held_out: float | None = None
    """Score of the held-out reward."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What the reward logged about it, by column."""

    def columns(self) -> dict[str, Any]:
        """Return the fields and the extra columns, without those that are None."""
        fields = asdict(self)
        return {name: value for name, value in (fields | fields.pop("extra")).items() if value is not None}

    def json_line(self, step: int) -> str:
        """Return a line of samples.jsonl."""
        return json.dumps({"step": step} | self.columns(), ensure_ascii=False) + "\n"


def table_rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return the samples as the rows of a table, all with the same columns."""
    rows = [asdict(sample) | sample.columns() for sample in samples]
    columns = {column: None for row in rows for column in row if column != "extra"}
    return [{column: row.get(column) for column in columns} for row in rows]


def rollout_samples(rollout: Rollout) -> list[Sample]:
    """Return the responses of a rollout."""
    kl = (rollout.logprobs - rollout.ref_logprobs).sum(dim=1).tolist()
    columns = (rollout.prompts, rollout.completions, rollout.scores.tolist(), kl)
    return [
        Sample(*row, extra={name: values[index] for name, values in rollout.log.extra.items()})
        for index, row in enumerate(zip(*columns, strict=True))
    ]


def sample_validation(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    reward: CheckedReward,
    held_out: CheckedReward | None,
    rows: Sequence[dict[str, Any]],
    config: PPOConfig,
    accelerator: Accelerator,
    *,
    batch_size: int,
    limits: RowLimits,
    seed: int,
    trainer_state: TrainerState,
) -> list[Sample]:
    """Sample this process's part of the responses to `rows`; row i always has the same seed."""
    samples: list[Sample] = []
    with accelerator.split_between_processes(list(range(len(rows)))) as local:
        for first in range(0, len(local), batch_size):
            indices = local[first : first + batch_size]
            batch_rows = [rows[index] for index in indices]
            rollout = collect(
                policy,
                tokenizer,
                reward,
                batch_rows,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                limits=limits,
                seeds=[derive_seed(seed, index) for index in indices],
                trainer_state=trainer_state,
            )
            batch_samples = rollout_samples(rollout)
            if held_out is not None:
                arguments = trainer_arguments(trainer_state, RewardLog(len(rollout)), sampled_ids(rollout.batch))
                columns = reward_columns(batch_rows) | arguments
                scores = held_out(rollout.prompts, rollout.completions, **columns)
                batch_samples = [replace(s, held_out=score) for s, score in zip(batch_samples, scores, strict=True)]
            samples += batch_samples
    return samples


def gather_validation(local: list[Sample], kl_coef: float) -> tuple[dict[str, float], list[Sample]]:
    """Return metrics and samples over all processes, from each process's samples.

    The objective is the mean score minus `kl_coef` times the mean KL per response, in units of the reward.
    """
    samples: list[Sample] = gather_object(local)
    scores = torch.tensor([sample.score for sample in samples])
    kls = torch.tensor([sample.kl for sample in samples])
    metrics = {
        "validation/score_mean": scores.mean().item(),
        "validation/kl": kls.mean().item(),
        "validation/objective": (scores.mean() - kl_coef * kls.mean()).item(),
    }
    held_out = torch.tensor([sample.held_out for sample in samples if sample.held_out is not None])
    if len(held_out):
        metrics["validation/held_out_mean"] = held_out.mean().item()
        metrics["validation/held_out_error"] = (held_out.std() / len(held_out) ** 0.5).item()
    return metrics, samples
