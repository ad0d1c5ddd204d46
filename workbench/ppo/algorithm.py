"""The mathematics of PPO for language models, as pure functions on response-aligned tensors.

Shapes: B responses, T response tokens. A mask is True at sampled tokens, the stop token included; results are 0 where
it is False.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# Larger log ratios carry no useful signal, and exp overflows float32 at 88.
LOG_RATIO_LIMIT = 20.0
STD_EPSILON = 1e-4  # as in TRL's GRPO


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Return a per-token estimate (B, T), in nats, of KL(policy || reference) from tokens that the policy sampled.

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
    """Return rewards (B, T): the KL penalty at every token, plus the score (B,) at the last sampled one."""
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
    """Return the scores (B,) to train on: normalized, clipped, divided by `scale`, minus a penalty if truncated."""
    normalized = (scores - mean) / max(std, 1e-8)
    if clip is not None:
        normalized = normalized.clamp(-clip, clip)
    return normalized / scale - missing_eos_penalty * truncated


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Return generalized advantage estimates (B, T), arXiv 1506.02438 eq. 16, from rewards and values (B, T).

    The end of a response is terminal, whether it stopped or was truncated at the token limit.
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


def leave_one_out_advantages(rewards: Tensor, samples: int) -> Tensor:
    """Return each response's reward minus the mean of the other responses to its prompt (arXiv 2402.14740 eq. 8).

    `rewards` (B,) has the `samples` responses to a prompt one after another.
    """
    groups = rewards.view(-1, samples)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).flatten()


def group_advantages(rewards: Tensor, samples: int, *, norm_by_std: bool) -> Tensor:
    """Return rewards (B,) minus their mean over each prompt's `samples` responses, and by default over their deviation.

    The deviation is arXiv 2402.03300's, section 4.1.2, and its absence arXiv 2503.20783's. Groups of equal rewards get
    0; the rewards of a prompt follow one another.
    """
    groups = rewards.view(-1, samples)
    centered = groups - groups.mean(dim=1, keepdim=True)
    return (centered / (groups.std(dim=1, keepdim=True) + STD_EPSILON) if norm_by_std else centered).flatten()


def decoupled_group_advantages(
    terms: Tensor, weights: Tensor, samples: int, reduce_sum: Callable[[Tensor], Tensor] = lambda sums: sums
) -> Tensor:
    """Return the advantages (B,) of GDPO (arXiv 2601.05242): each of K terms is standardized on its own, then summed.

    `terms` (K, B), NaN where one does not apply, are standardized within the `samples` responses to a prompt, weighted
    by `weights` (K,), and their sum is standardized over the batch. `reduce_sum` adds up a vector over all processes.
    """
    groups = terms.view(len(terms), -1, samples)
    applies = ~groups.isnan()
    count = applies.sum(dim=2, keepdim=True)
    centered = (groups - groups.nanmean(dim=2, keepdim=True)).where(applies, 0.0)
    std = (centered.square().sum(dim=2, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    total = (weights.view(-1, 1, 1) * centered / (std + STD_EPSILON)).sum(dim=0).flatten()
    responses, sum_ = reduce_sum(torch.stack((total.new_tensor(len(total)), total.sum())))
    shifted = total - sum_ / responses
    (squares,) = reduce_sum(shifted.square().sum().unsqueeze(0))
    return shifted / ((squares / (responses - 1)).sqrt() + STD_EPSILON)


def whiten(values: Tensor, mask: Tensor, reduce_sum: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """Return `values` (B, T) shifted and scaled to mean 0 and variance 1 over the mask.

    `reduce_sum` adds up a vector over all processes, so that they all whiten identically. With fewer than two tokens
    there is no variance, and the values are only shifted.
    """
    count, total = reduce_sum(torch.stack((mask.sum().to(values.dtype), (values * mask).sum())))
    centered = (values - total / count.clamp(min=1)) * mask
    (squares,) = reduce_sum(centered.square().sum().unsqueeze(0))
    if count < 2:
        return centered
    return centered * torch.rsqrt(squares / (count - 1) + 1e-8)


class PolicyLoss(NamedTuple):
    """Sums over the tokens of a batch."""

    loss: Tensor  # scalar, carries the gradient
    clipped: Tensor  # tokens whose ratio was clipped
    approx_kl: Tensor  # k3 estimate of KL(old || new)
    ratio: Tensor  # sum of ratios
    ratio_max: Tensor  # largest ratio


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> PolicyLoss:
    """Return the clipped surrogate, arXiv 1707.06347 eq. 7, summed over the tokens; tensor arguments are (B, T)."""
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


def kl_loss(logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return k3 times the probability ratio, summed over the tokens (B, T), for a penalty in the loss.

    The expectation over tokens of the old policy, and its gradient, are those of KL(policy || reference); k3 alone has
    the gradient of KL(reference || policy) (arXiv 2512.02556).
    """
    log_ratio = ((logprobs - old_logprobs) * mask).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (log_ratio.exp() * kl_penalty(logprobs, ref_logprobs, "k3") * mask).sum()


class ValueLoss(NamedTuple):
    """Sums over the tokens of a batch."""

    loss: Tensor  # scalar, carries the gradient
    clipped: Tensor  # tokens whose change of value was clipped


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> ValueLoss:
    """Return half the larger squared error, of the values or of the clipped values, summed over the tokens (B, T)."""
    change = values - old_values
    clipped_values = old_values + change.clamp(-clip, clip)
    error, clipped_error = (values - returns).square(), (clipped_values - returns).square()
    return ValueLoss(
        loss=0.5 * (torch.maximum(error, clipped_error) * mask).sum(),
        # Within the clip range the two errors differ by rounding alone.
        clipped=((clipped_error > error) & (change.abs() > clip) & mask).sum(),
    )


def update_kl_coef(kl_coef: float, kl: float, target: float, horizon: int, episodes: int) -> float:
    """Return the next coefficient by the proportional controller of arXiv 1909.08593 section 2.2.

    `kl` and `target` are in nats per response.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)
