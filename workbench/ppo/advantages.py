"""Turn a rollout's scores into the advantage and the return of every token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.config.derived import has_values, is_kl_in_loss, scores_prefixes
from workbench.config.schema import PPOConfig
from workbench.ppo import algorithm
from workbench.ppo.checkpoint import TrainState
from workbench.ppo.prefix_values import scale_to_unit, values_of_prefixes
from workbench.ppo.rollout import Rollout


class Estimates(NamedTuple):
    """What an update learns from; 0 at masked positions."""

    kl: Tensor  # (B, T) nats, from the configured estimator
    rewards: Tensor  # (B, T) score minus KL penalty
    advantages: Tensor | None  # (B, T) as the loss weighs the tokens, but for GAE before whitening; None without PPO's
    returns: Tensor | None  # (B, T) targets for the values, if there are any


def score_transform(config: PPOConfig, state: TrainState) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what turns scores and whether their responses are truncated, of one shape, into scores to train on."""
    return partial(
        algorithm.transform_scores,
        mean=state.score_mean,
        std=1.0 if state.score_std is None else state.score_std,
        clip=config.score_clip,
        scale=config.score_scale,
        missing_eos_penalty=config.missing_eos_penalty,
    )


def estimate_advantages(
    rollout: Rollout,
    config: PPOConfig,
    state: TrainState,
    reduce_sum: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Estimates:
    """Return rewards, advantages and returns of a rollout under the state's KL coefficient and score statistics.

    `reduce_sum` adds up a vector over all processes.
    """
    mask = rollout.batch.response_mask
    kl = algorithm.kl_penalty(rollout.logprobs, rollout.ref_logprobs, config.kl_estimator) * mask
    transform = score_transform(config, state)
    scores = transform(rollout.scores, rollout.truncated)
    rewards = algorithm.token_rewards(scores, kl, mask, 0.0 if is_kl_in_loss(config) else state.kl_coef)
    if rollout.values is not None:
        advantages = algorithm.gae(rewards, rollout.values, mask, config.gamma, config.lam)
        return Estimates(kl, rewards, advantages, (advantages + rollout.values) * mask)
    if rollout.prefix_scores is not None:
        prefix_scores = transform(rollout.prefix_scores, torch.zeros_like(mask))
        values = values_of_prefixes(prefix_scores, mask, reduce_sum)
        return Estimates(kl, rewards, algorithm.gae(rewards, values, mask, config.gamma, config.lam), None)
    totals, samples = rewards.sum(dim=1), config.samples_per_prompt
    if config.loss != "clip":
        return Estimates(kl, rewards, None, None)
    if config.advantage == "rloo":
        per_response = algorithm.leave_one_out_advantages(totals, samples)
    elif config.advantage == "gdpo":
        weights = torch.tensor([abs(rollout.weights[name]) for name in rollout.terms], device=mask.device)
        terms = torch.stack(list(rollout.terms.values())) / weights.unsqueeze(1)
        per_response = algorithm.decoupled_group_advantages(terms, weights, samples, reduce_sum)
    else:
        per_response = algorithm.group_advantages(totals, samples, norm_by_std=config.norm_by_std)
    return Estimates(kl, rewards, per_response.unsqueeze(1) * mask, None)


def normalized(
    estimates: Estimates,
    mask: Tensor,
    config: PPOConfig,
    reduce_sum: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Estimates:
    """Return the estimates with GAE's advantages whitened, and those with the reward's values scaled alone.

    The latter are 0 where the score does not change, and stay so; `reduce_sum` adds up a vector over all processes.
    """
    if estimates.advantages is None:
        return estimates
    if has_values(config):
        return estimates._replace(advantages=algorithm.whiten(estimates.advantages, mask, reduce_sum))
    if scores_prefixes(config):
        return estimates._replace(advantages=scale_to_unit(estimates.advantages, mask, reduce_sum))
    return estimates
