"""Responses of the current policy to prompts that it does not learn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from workbench.config.schema import PPOConfig
from workbench.models.policy import Policy
from workbench.ppo.micro_batches import RowLimits
from workbench.ppo.rollout import Rollout, collect, reward_columns
from workbench.ppo.sampler import derive_seed
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

    def json_line(self, step: int) -> str:
        """Return a line of samples.jsonl."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps({"step": step} | fields, ensure_ascii=False) + "\n"


def rollout_samples(rollout: Rollout) -> list[Sample]:
    """Return the responses of a rollout."""
    kl = (rollout.logprobs - rollout.ref_logprobs).sum(dim=1).tolist()
    columns = (rollout.prompts, rollout.completions, rollout.scores.tolist(), kl)
    return [Sample(*row) for row in zip(*columns, strict=True)]


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
            )
            batch_samples = rollout_samples(rollout)
            if held_out is not None:
                scores = held_out(rollout.prompts, rollout.completions, **reward_columns(batch_rows))
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
