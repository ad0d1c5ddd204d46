"""How the policy of the moment does on prompts that it does not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from workbench.models.policy import Policy
from workbench.ppo.rollout import Rollout, collect, reward_columns
from workbench.ppo.sampler import derive_seed
from workbench.rewards.contract import CheckedReward, RewardModel

Sample = dict[str, Any]


def answer(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    reward: CheckedReward,
    rows: Sequence[dict[str, Any]],
    accelerator: Accelerator,
    *,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    watch: RewardModel | None,
) -> list[Sample]:
    """Responses to this process's share of `rows`, scored by `watch` as well; row i always has the same seed."""
    found: list[Sample] = []
    with accelerator.split_between_processes(list(range(len(rows)))) as mine:
        for first in range(0, len(mine), batch_size):
            indices = mine[first : first + batch_size]
            rollout = collect(
                policy,
                tokenizer,
                reward,
                [rows[index] for index in indices],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                micro_batch_size=batch_size,
                seeds=[derive_seed(seed, index) for index in indices],
            )
            answered = samples(rollout)
            if watch is not None:
                columns = reward_columns([rows[index] for index in indices])
                scores = watch(rollout.prompts, rollout.completions, **columns)
                answered = [sample | {"watch": score} for sample, score in zip(answered, scores, strict=True)]
            found += answered
    return found


def summarize(found: list[Sample], kl_coef: float) -> tuple[dict[str, float], list[Sample]]:
    """Metrics over all processes' samples, and the samples.

    The objective is the mean score less `kl_coef` times the mean KL per response, in units of the reward.
    """
    gathered = gather_object(found)
    scores, kls = (torch.tensor([sample[name] for sample in gathered]) for name in ("score", "kl"))
    metrics = {
        "validation/score_mean": scores.mean().item(),
        "validation/kl": kls.mean().item(),
        "validation/objective": (scores.mean() - kl_coef * kls.mean()).item(),
    }
    if "watch" in gathered[0]:
        watch = torch.tensor([sample["watch"] for sample in gathered])
        metrics["validation/watch_mean"] = watch.mean().item()
        metrics["validation/watch_error"] = (watch.std() / len(watch) ** 0.5).item()
    return metrics, gathered


def samples(rollout: Rollout) -> list[Sample]:
    """One record per response; `kl` in nats per response."""
    kl = (rollout.logprobs - rollout.ref_logprobs).sum(dim=1).tolist()
    columns = (rollout.prompts, rollout.completions, rollout.scores.tolist(), kl)
    return [
        {"prompt": prompt, "completion": completion, "score": score, "kl": nats}
        for prompt, completion, score, nats in zip(*columns, strict=True)
    ]
