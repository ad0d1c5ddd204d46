"""What an update minimizes: PPO's clipped surrogate, DPO's loss of pairs, or the likelihood of the best responses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from workbench.config.schema import PPOConfig
from workbench.models.policy import Policy, TokenScores
from workbench.ppo import algorithm
from workbench.ppo.advantages import Estimates
from workbench.ppo.preferences import best_and_worst, dpo_loss
from workbench.ppo.rollout import Rollout

# The quantity that a metric is a mean over, by what its name begins with.
COUNTS = {"policy": "tokens", "value": "tokens", "dpo": "pairs"}

TIE = 1e-5  # a margin up to this, such as every one before the first update, is a rounding


class MicroBatch(NamedTuple):
    """What a micro batch contributes to a minibatch."""

    loss: Tensor  # scalar, a sum over tokens or pairs, carries the gradient
    sums: dict[str, Tensor]  # scalars: the numbers of COUNTS, and for each metric a sum over one of them
    ratio_max: Tensor  # scalar, largest probability ratio


@dataclass(frozen=True)
class Objective:
    """A loss over groups of a rollout's rows: G groups of R rows."""

    rows: Tensor  # (G, R) long, on the CPU; a group is never split
    counts: Tensor  # (G,) tokens, or 1 for a pair: the loss of a minibatch is a mean over them
    loss: Callable[[Tensor], MicroBatch]
    """The loss of the rows (N,) of whole groups, one after another."""


class Scored(NamedTuple):
    """N rows of a rollout, and what the policy computes for them."""

    mask: Tensor  # (N, T) bool, of the response tokens
    scores: TokenScores
    old_logprobs: Tensor  # (N, T)
    ref_logprobs: Tensor  # (N, T)


def make_objective(
    policy: nn.Module,
    accelerator: Accelerator,
    rollout: Rollout,
    estimates: Estimates,
    config: PPOConfig,
    kl_coef: float,
) -> Objective:
    """Return the configured loss on a rollout; `kl_coef` is the weight of the KL to the reference in it.

    `policy` is the module that `accelerator` prepared, so that gradients are averaged over processes.
    """
    mask = rollout.batch.response_mask
    entropy = config.entropy_coef != 0

    def scored(rows: Tensor) -> Scored:
        return score_rows(policy, accelerator.unwrap_model(policy), rollout, rows, config.temperature, entropy)

    if config.loss == "clip":
        rows = torch.arange(len(rollout)).unsqueeze(1)
        return Objective(
            rows,
            mask.sum(dim=1),
            lambda rows: surrogate_micro_batch(scored(rows), rollout, estimates, rows, config, kl_coef),
        )
    best, worst, differ = best_and_worst(estimates.rewards.sum(dim=1), config.samples_per_prompt)
    if config.loss == "dpo":
        decided = torch.zeros(len(rollout), device=mask.device).index_add(0, best, differ.float())
        pairs = torch.stack((best, worst), dim=1).cpu()
        return Objective(pairs, differ.float(), lambda rows: dpo_micro_batch(scored(rows), decided[rows[::2]], kl_coef))
    return Objective(
        best.unsqueeze(1).cpu(), mask[best].sum(dim=1), lambda rows: likelihood_micro_batch(scored(rows), kl_coef)
    )


def score_rows(
    policy: nn.Module, module: Policy, rollout: Rollout, rows: Tensor, temperature: float, entropy: bool
) -> Scored:
    """Run the policy over rows (N,) of the rollout; `module` is the policy without its multi-process wrapper."""
    batch = module.trim(rollout.batch.rows(rows))
    mask, length = batch.response_mask, batch.response_mask.shape[1]
    scores = policy(batch, temperature, entropy)
    return Scored(mask, scores, rollout.logprobs[rows, :length], rollout.ref_logprobs[rows, :length])


def surrogate_micro_batch(
    scored: Scored, rollout: Rollout, estimates: Estimates, rows: Tensor, config: PPOConfig, kl_coef: float
) -> MicroBatch:
    """Return PPO's loss of rows (N,) with the losses of values, entropy and KL, a sum over the tokens."""
    mask, scores, length = scored.mask, scored.scores, scored.mask.shape[1]
    assert estimates.advantages is not None
    advantages = estimates.advantages[rows, :length]
    surrogate = algorithm.policy_loss(scores.logprobs, scored.old_logprobs, advantages, mask, config.clip_range)
    loss, sums = surrogate.loss, ratio_sums(surrogate, mask) | {"policy/clip_fraction": surrogate.clipped}
    if rollout.values is not None and scores.values is not None and estimates.returns is not None:
        old_values, returns = rollout.values[rows, :length], estimates.returns[rows, :length]
        value = algorithm.value_loss(scores.values, old_values, returns, mask, config.value_clip_range)
        loss = loss + config.vf_coef * value.loss
        sums |= {"value/loss": value.loss, "value/clip_fraction": value.clipped}
    if scores.entropies is not None:
        entropy = scores.entropies.sum()
        loss = loss - config.entropy_coef * entropy
        sums["policy/entropy"] = entropy
    if kl_coef:
        loss = loss + kl_coef * algorithm.kl_loss(scores.logprobs, scored.old_logprobs, scored.ref_logprobs, mask)
    return MicroBatch(loss, sums | {"policy/loss": surrogate.loss}, surrogate.ratio_max)


def dpo_micro_batch(scored: Scored, decided: Tensor, beta: float) -> MicroBatch:
    """Return DPO's loss of pairs of rows (2 G, T), a sum over the `decided` ones (G,), which are 1 and others 0."""
    pairs = dpo_loss(scored.scores.logprobs, scored.ref_logprobs, scored.mask, beta)
    loss, margins = (pairs.losses * decided).sum(), pairs.chosen_rewards - pairs.rejected_rewards
    ratios = unweighted_ratios(scored)
    sums = ratio_sums(ratios, scored.mask) | {
        "pairs": decided.sum(),
        "dpo/loss": loss,
        "dpo/accuracy": (torch.where(margins.abs() < TIE, 0.5, (margins > 0).float()) * decided).sum(),
        "dpo/margin": (margins * decided).sum(),
        "dpo/chosen_reward": (pairs.chosen_rewards * decided).sum(),
        "dpo/rejected_reward": (pairs.rejected_rewards * decided).sum(),
    }
    return MicroBatch(loss, sums, ratios.ratio_max)


def likelihood_micro_batch(scored: Scored, kl_coef: float) -> MicroBatch:
    """Return the negative log-likelihood of responses (N, T), with a KL term, a sum over the tokens."""
    mask, logprobs = scored.mask, scored.scores.logprobs
    negative = -(logprobs * mask).sum()
    penalty = kl_coef * algorithm.kl_loss(logprobs, scored.old_logprobs, scored.ref_logprobs, mask) if kl_coef else 0.0
    ratios = unweighted_ratios(scored)
    return MicroBatch(negative + penalty, ratio_sums(ratios, mask) | {"policy/loss": negative}, ratios.ratio_max)


def unweighted_ratios(scored: Scored) -> algorithm.PolicyLoss:
    """Return what the policy's probability ratios are; the loss and what is clipped are 0."""
    logprobs = scored.scores.logprobs.detach()
    return algorithm.policy_loss(logprobs, scored.old_logprobs, torch.zeros_like(logprobs), scored.mask, 1.0)


def ratio_sums(surrogate: algorithm.PolicyLoss, mask: Tensor) -> dict[str, Tensor]:
    """Return the number of tokens, and the sums over them that every loss logs."""
    return {"tokens": mask.sum(), "policy/approx_kl": surrogate.approx_kl, "policy/ratio_mean": surrogate.ratio}
