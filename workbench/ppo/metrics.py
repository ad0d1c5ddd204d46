"""What a step's rollout says, over all processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from workbench.ppo import algorithm
from workbench.ppo.rollout import Rollout


def rollout_metrics(
    rollout: Rollout, kl: Tensor, rewards: Tensor, advantages: Tensor, returns: Tensor, accelerator: Accelerator
) -> dict[str, float]:
    """Metrics of a rollout; KL, entropy and reward are means of sums over a response, in nats; arguments (B, T)."""
    mask = rollout.batch.response_mask

    def reduce_sum(sums: Tensor) -> Tensor:
        return accelerator.reduce(sums, "sum")

    kl_k3 = algorithm.kl_penalty(rollout.logprobs, rollout.ref_logprobs, "k3") * mask
    per_response = torch.stack(
        (
            kl.sum(dim=1),
            kl_k3.sum(dim=1),
            rollout.entropies.sum(dim=1),
            rollout.scores,
            rewards.sum(dim=1),
            mask.sum(dim=1).float(),
            rollout.truncated.float(),
            torch.tensor([float(not text) for text in rollout.completions], device=mask.device),
            *rollout.terms.values(),
        ),
        dim=1,
    )
    columns = accelerator.gather(per_response).float()
    mean = columns.mean(dim=0).tolist()
    count, advantage, square, returned, value = reduce_sum(
        torch.stack(
            [
                mask.sum().float(),
                *((part * mask).sum() for part in (advantages, advantages.square(), returns, rollout.values)),
            ]
        )
    ).tolist()
    terms = zip(rollout.terms, mean[8:], strict=True) if len(rollout.terms) > 1 else ()
    return {f"objective/term/{name}": value for name, value in terms} | {
        "objective/kl": mean[0],
        "objective/kl_k3": mean[1],
        "objective/entropy": mean[2],
        "objective/score_mean": mean[3],
        "objective/score_std": columns[:, 3].std(correction=0).item(),
        "objective/reward": mean[4],
        "response/length_mean": mean[5],
        "response/length_min": columns[:, 5].min().item(),
        "response/length_max": columns[:, 5].max().item(),
        "response/truncated_rate": mean[6],
        "response/empty_rate": mean[7],
        "advantages/mean": advantage / count,
        "advantages/std": max(square / count - (advantage / count) ** 2, 0.0) ** 0.5,
        "returns/mean": returned / count,
        "value/mean": value / count,
        "value/explained_variance": algorithm.explained_variance(rollout.values, returns, mask, reduce_sum).item(),
    }
