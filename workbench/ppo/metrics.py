"""The metrics of a step, over all processes; docs/logged_metrics.md explains them."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from workbench.ppo import algorithm
from workbench.ppo.advantages import Estimates
from workbench.ppo.rollout import Rollout


def rollout_metrics(rollout: Rollout, estimates: Estimates, accelerator: Accelerator) -> dict[str, float]:
    """Return metrics of a rollout; KL, entropy and reward are sums over a response, averaged over responses."""
    mask = rollout.batch.response_mask
    kl_k3 = algorithm.kl_penalty(rollout.logprobs, rollout.ref_logprobs, "k3") * mask
    per_response = {
        "objective/kl": estimates.kl.sum(dim=1),
        "objective/kl_k3": kl_k3.sum(dim=1),
        "objective/entropy": rollout.entropies.sum(dim=1),
        "objective/score_mean": rollout.scores,
        "objective/reward": estimates.rewards.sum(dim=1),
        "response/length_mean": mask.sum(dim=1).float(),
        "response/truncated_rate": rollout.truncated.float(),
        "response/empty_rate": torch.tensor([float(not text) for text in rollout.completions], device=mask.device),
    }
    if len(rollout.terms) > 1:
        per_response |= {f"objective/term/{name}": values for name, values in rollout.terms.items()}
    columns = accelerator.gather(torch.stack(list(per_response.values()), dim=1)).float()
    metrics = dict(zip(per_response, columns.mean(dim=0).tolist(), strict=True))
    by_name = dict(zip(per_response, columns.unbind(dim=1), strict=True))
    scores, lengths = by_name["objective/score_mean"], by_name["response/length_mean"]
    return (
        metrics
        | {
            "objective/score_std": scores.std(correction=0).item(),
            "response/length_min": lengths.min().item(),
            "response/length_max": lengths.max().item(),
        }
        | token_metrics(rollout, estimates, accelerator)
    )


def token_metrics(rollout: Rollout, estimates: Estimates, accelerator: Accelerator) -> dict[str, float]:
    """Return the metrics of a rollout that are means over tokens."""
    mask, values = rollout.batch.response_mask, rollout.values
    advantages, returns = estimates.advantages, estimates.returns

    def reduce_sum(sums: Tensor) -> Tensor:
        return accelerator.reduce(sums, "sum")

    sums = ((part * mask).sum() for part in (advantages, advantages.square(), returns, values))
    count, advantage, square, returned, value = reduce_sum(torch.stack([mask.sum().float(), *sums])).tolist()
    return {
        "advantages/mean": advantage / count,
        "advantages/std": max(square / count - (advantage / count) ** 2, 0.0) ** 0.5,
        "returns/mean": returned / count,
        "value/mean": value / count,
        "value/explained_variance": algorithm.explained_variance(values, returns, mask, reduce_sum).item(),
    }


def speed_metrics(seconds: dict[str, float], episodes: int, mean_length: float) -> dict[str, float]:
    """Return the seconds of a step's parts, and episodes and tokens per second."""
    episodes_per_second = episodes / sum(seconds.values())
    return {f"seconds/{name}": round(value, 4) for name, value in seconds.items()} | {
        "episodes_per_second": episodes_per_second,
        "tokens_per_second": mean_length * episodes_per_second,
    }


def progress_note(metrics: dict[str, float]) -> str:
    """Return the part of a step's metrics that the progress bar shows."""
    return (
        f"score {metrics['objective/score_mean']:.3f}, kl {metrics['objective/kl']:.2f}, "
        f"length {metrics['response/length_mean']:.1f}"
    )
