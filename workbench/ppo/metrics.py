"""The metrics of a step, over all processes; docs/logged_metrics.md explains them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from workbench.ppo import algorithm
from workbench.ppo.advantages import Estimates
from workbench.ppo.rollout import Rollout

TERM = "objective/term/"
ESTIMATED_FROM_SAMPLES = ("objective/kl", "objective/kl_k3", "objective/reward")


def rollout_metrics(
    rollout: Rollout, estimates: Estimates, accelerator: Accelerator, samples_per_prompt: int
) -> dict[str, float]:
    """Return metrics of a rollout; KL, entropy and reward are sums over a response, averaged over responses.

    But for the scores, and for what the reward logs, they are about the responses that are learned from.
    """
    mask = rollout.batch.response_mask
    kl_k3 = algorithm.kl_penalty(rollout.logprobs, rollout.ref_logprobs, "k3") * mask
    per_response = {
        "objective/kl": estimates.kl.sum(dim=1),
        "objective/kl_k3": kl_k3.sum(dim=1),
        "objective/entropy": rollout.entropies.sum(dim=1),
        "objective/reward": estimates.rewards.sum(dim=1),
        "response/length_mean": mask.sum(dim=1).float(),
        "response/truncated_rate": rollout.truncated.float(),
        "response/empty_rate": torch.tensor([float(not text) for text in rollout.completions], device=mask.device),
    }
    if len(rollout.terms) > 1:
        per_response |= {f"{TERM}{name}": values for name, values in rollout.terms.items()}
    columns = accelerator.gather(torch.stack(list(per_response.values()), dim=1)).float()
    # A term that does not apply to a response is NaN there; one that applies to none has no mean.
    means = {
        name: (column[~column.isnan()] if name.startswith(TERM) else column).mean().item()
        for name, column in zip(per_response, columns.unbind(dim=1), strict=True)
        if not (name.startswith(TERM) and column.isnan().all())
    }
    lengths = columns[:, list(per_response).index("response/length_mean")]
    return (
        means
        | score_metrics(accelerator.gather(rollout.sampled_scores).float(), samples_per_prompt)
        | {
            "response/length_min": lengths.min().item(),
            "response/length_max": lengths.max().item(),
        }
        | token_metrics(rollout, estimates, accelerator)
        | logged_means(rollout.log.metrics)
    )


def score_metrics(scores: Tensor, samples_per_prompt: int) -> dict[str, float]:
    """Return metrics of the scores of all sampled responses, those that nothing is learned from included."""
    metrics = {"objective/score_mean": scores.mean().item(), "objective/score_std": scores.std(correction=0).item()}
    if samples_per_prompt > 1:
        groups = scores.view(-1, samples_per_prompt)
        is_equal = groups.amax(dim=1) == groups.amin(dim=1)
        metrics["objective/equal_scores_rate"] = is_equal.float().mean().item()
    return metrics


def logged_means(logged: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean of what the rewards logged under each name, over all processes, whichever logged it."""
    values: dict[str, list[float]] = {}
    for name, logged_values in gather_object(list(logged.items())):
        values.setdefault(name, []).extend(logged_values)
    return {f"reward/{name}": sum(numbers) / len(numbers) for name, numbers in sorted(values.items())}


def token_metrics(rollout: Rollout, estimates: Estimates, accelerator: Accelerator) -> dict[str, float]:
    """Return the metrics of a rollout that are means over tokens."""
    mask, advantages = rollout.batch.response_mask, estimates.advantages
    values, returns = rollout.values, estimates.returns
    if advantages is None:
        return {}

    def reduce_sum(sums: Tensor) -> Tensor:
        return accelerator.reduce(sums, "sum")

    parts = [advantages, advantages.square(), *([] if values is None or returns is None else [returns, values])]
    sums = torch.stack([mask.sum().float(), *((part * mask).sum() for part in parts)])
    count, advantage, square, *of_values = reduce_sum(sums).tolist()
    metrics = {
        "advantages/mean": advantage / count,
        "advantages/std": max(square / count - (advantage / count) ** 2, 0.0) ** 0.5,
    }
    if values is None or returns is None:
        return metrics
    return metrics | {
        "returns/mean": of_values[0] / count,
        "value/mean": of_values[1] / count,
        "value/explained_variance": explained_variance(values, returns, mask, reduce_sum).item(),
    }


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, reduce_sum: Callable[[Tensor], Tensor] = lambda sums: sums
) -> Tensor:
    """Return 1 - Var(returns - values) / Var(returns) over the mask (B, T); 0 if the returns do not vary.

    `reduce_sum` adds up a vector over all processes.
    """
    targets, errors = returns.double() * mask, (returns - values).double() * mask
    count, target_sum, error_sum = reduce_sum(torch.stack((mask.sum().double(), targets.sum(), errors.sum())))
    target_mean, error_mean = target_sum / count.clamp(min=1), error_sum / count.clamp(min=1)
    variance, error_variance = reduce_sum(
        torch.stack((((targets - target_mean) * mask).square().sum(), ((errors - error_mean) * mask).square().sum()))
    )
    return torch.where(variance > 0, 1 - error_variance / variance.clamp(min=1e-12), 0.0)


def speed_metrics(seconds: dict[str, float], episodes: int, mean_length: float) -> dict[str, float]:
    """Return the seconds of a step's parts, and episodes and tokens per second."""
    episodes_per_second = episodes / sum(seconds.values())
    return {f"seconds/{name}": round(value, 4) for name, value in seconds.items()} | {
        "episodes_per_second": episodes_per_second,
        "tokens_per_second": mean_length * episodes_per_second,
    }


def without_kl(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics without those that estimate a KL: responses of the data are no samples of the policy."""
    return {name: value for name, value in metrics.items() if name not in ESTIMATED_FROM_SAMPLES}


def progress_note(metrics: dict[str, float]) -> str:
    """Return the part of a step's metrics that the progress bar shows."""
    if "objective/kl" not in metrics:
        return f"accuracy {metrics['dpo/accuracy']:.2f}, margin {metrics['dpo/margin']:.2f}"
    return (
        f"score {metrics['objective/score_mean']:.3f}, kl {metrics['objective/kl']:.2f}, "
        f"length {metrics['response/length_mean']:.1f}"
    )
