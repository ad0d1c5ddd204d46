"""The mathematics of PPO for language models, as pure functions on response-aligned tensors.

Shapes: B responses, T response tokens. A mask is True at sampled tokens, the stop token included; what a
function returns at masked positions is 0.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# exp of a larger log ratio is of no use to any loss and overflows a float32 at 88.
LOG_RATIO_LIMIT = 20.0


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Per-token estimate (B, T), in nats, of KL(policy || reference) from tokens that the policy sampled.

    k1 is unbiased, k2 is biased with low variance, k3 is unbiased and non-negative
    (http://joschu.net/blog/kl-approx.html).
    """
    log_ratio = logprobs - ref_logprobs
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    return torch.expm1((-log_ratio).clamp(max=LOG_RATIO_LIMIT)) + log_ratio


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Reward per token (B, T): the KL penalty everywhere, the score (B,) added at the last sampled token."""
    rewards = -kl_coef * kl * mask
    last = mask.long().sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.to(rewards.dtype).unsqueeze(1))


def transform_scores(
    scores: Tensor,
    truncated: Tensor,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    clip: float | None = None,
    scale: float = 1.0,
    missing_eos_penalty: float = 0.0,
) -> Tensor:
    """Scores (B,) as the policy is paid: normalized, clipped, over `scale`, less a penalty where truncated (B,)."""
    paid = (scores - mean) / max(std, 1e-8)
    if clip is not None:
        paid = paid.clamp(-clip, clip)
    return paid / scale - missing_eos_penalty * truncated


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalized advantage estimates (B, T), arXiv 1506.02438 eq. 16, from rewards and values (B, T).

    The end of a response is terminal, whether it stopped or was cut at the token limit.
    """
    advantages = torch.zeros_like(rewards)
    advantage_after = torch.zeros_like(rewards[:, 0])
    value_after = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * value_after - values[:, t]
        advantage_after = (delta + gamma * lam * advantage_after) * mask[:, t]
        value_after = values[:, t] * mask[:, t]
        advantages[:, t] = advantage_after
    return advantages


def whiten(values: Tensor, mask: Tensor, reduce_sum: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """`values` (B, T) shifted and scaled to mean 0 and variance 1 over the mask; 0 elsewhere.

    `reduce_sum` adds a vector of sums over all processes, so that every process whitens alike. With fewer than
    two tokens there is no variance and the values are only shifted.
    """
    count, total = reduce_sum(torch.stack((mask.sum().to(values.dtype), (values * mask).sum())))
    centred = (values - total / count.clamp(min=1)) * mask
    (squares,) = reduce_sum(centred.square().sum().unsqueeze(0))
    if count < 2:
        return centred
    return centred * torch.rsqrt(squares / (count - 1) + 1e-8)


class PolicyLoss(NamedTuple):
    """Sums over the tokens of a batch; divide by the token count for the mean."""

    loss: Tensor  # scalar, carries the gradient
    clipped: Tensor  # tokens whose ratio the clip held
    approx_kl: Tensor  # k3 estimate of KL(old || new)
    ratio: Tensor  # sum of ratios
    ratio_max: Tensor  # largest ratio


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> PolicyLoss:
    """Clipped surrogate, arXiv 1707.06347 eq. 7, summed over the tokens; every argument is (B, T)."""
    log_ratio = ((logprobs - old_logprobs) * mask).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    with torch.no_grad():
        is_clipped = (clipped > unclipped) & mask
        approx_kl = (torch.expm1(log_ratio) - log_ratio) * mask
    return PolicyLoss(
        loss=(torch.maximum(unclipped, clipped) * mask).sum(),
        clipped=is_clipped.sum(),
        approx_kl=approx_kl.sum(),
        ratio=(ratio.detach() * mask).sum(),
        ratio_max=(ratio.detach() * mask).max(),
    )


class ValueLoss(NamedTuple):
    """Sums over the tokens of a batch; divide by the token count for the mean."""

    loss: Tensor  # scalar, carries the gradient
    clipped: Tensor  # tokens whose value change the clip held


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> ValueLoss:
    """Half the larger of the squared errors of the values and of the clipped values, summed; arguments (B, T)."""
    change = values - old_values
    near = old_values + change.clamp(-clip, clip)
    error, error_near = (values - returns).square(), (near - returns).square()
    return ValueLoss(
        loss=0.5 * (torch.maximum(error, error_near) * mask).sum(),
        # Below the limit the two errors differ by rounding alone.
        clipped=((error_near > error) & (change.abs() > clip) & mask).sum(),
    )


def update_kl_coef(kl_coef: float, kl: float, target: float, horizon: int, episodes: int) -> float:
    """Proportional controller of arXiv 1909.08593 section 2.2: `kl` and `target` in nats per response."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)


def lr_multiplier(step: int, steps: int, schedule: Literal["linear", "cosine", "constant"]) -> float:
    """Share of the peak learning rate at `step` of `steps`: 1 at the first, near 0 at the last unless constant."""
    done = step / steps
    return {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[schedule]


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, reduce_sum: Callable[[Tensor], Tensor] = lambda sums: sums
) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the mask (B, T); 0 where the returns do not vary.

    `reduce_sum` adds a vector of sums over all processes.
    """
    parts = [part.double() * mask for part in (returns, returns - values)]
    count, total, error = reduce_sum(torch.stack([mask.sum().double(), *(part.sum() for part in parts)]))
    means = [total / count.clamp(min=1), error / count.clamp(min=1)]
    squares = torch.stack([((p - m) * mask).square().sum() for p, m in zip(parts, means, strict=True)])
    variance, error_variance = reduce_sum(squares)
    return torch.where(variance > 0, 1 - error_variance / variance.clamp(min=1e-12), 0.0)
