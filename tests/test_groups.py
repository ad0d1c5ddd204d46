"""Advantages without values: a response is compared with the others to its prompt (RLOO and GRPO)."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import CONFIG, both, either, interrupting, lines, make_trainer, step, trained_weights

from workbench.config.checks import check_ppo
from workbench.errors import Interrupted, UserError
from workbench.ppo import algorithm
from workbench.ppo.sampler import check_batch_size

kinds = pytest.mark.parametrize("advantage", ["rloo", "grpo", "gdpo"])
GROUPS: dict[str, Any] = {"samples_per_prompt": 4}


def rewards() -> torch.Tensor:
    """Return the rewards of three prompts with four responses, those to the last one all equal."""
    varied = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([varied, torch.full((4,), 0.7, dtype=torch.float64)])


def test_rloo_subtracts_the_mean_of_the_others() -> None:
    values = rewards().tolist()
    expected = []
    for i, value in enumerate(values):
        group = range(4 * (i // 4), 4 * (i // 4) + 4)
        expected.append(value - statistics.mean(values[j] for j in group if j != i))
    assert algorithm.leave_one_out_advantages(rewards(), 4).tolist() == pytest.approx(expected, abs=1e-12)


def test_rloo_is_the_centered_reward_times_k_over_k_minus_1() -> None:
    centered = algorithm.group_advantages(rewards(), 4, norm_by_std=False)
    torch.testing.assert_close(algorithm.leave_one_out_advantages(rewards(), 4), centered * 4 / 3)


@pytest.mark.parametrize("norm_by_std", [True, False])
def test_grpo_standardizes_within_a_prompt(norm_by_std: bool) -> None:
    expected = []
    for group in rewards().view(-1, 4).tolist():
        deviation = statistics.stdev(group) + 1e-4 if norm_by_std else 1.0
        expected += [(value - statistics.mean(group)) / deviation for value in group]
    advantages = algorithm.group_advantages(rewards(), 4, norm_by_std=norm_by_std)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-10)
    assert advantages[8:].abs().max() < 1e-9, "a prompt whose responses are all equally good teaches nothing"


def test_a_penalty_in_the_loss_has_the_gradient_of_the_kl_to_the_reference() -> None:
    """Over all tokens of a vocabulary, each weighted by its probability under the old policy."""
    logits, reference = (torch.randn(7, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    logits.requires_grad_()
    logprobs, ref_logprobs = logits.log_softmax(0), reference.log_softmax(0)
    old = (logits.detach() + 0.1 * torch.arange(7)).log_softmax(0)
    kl = (logprobs.exp() * (logprobs - ref_logprobs)).sum()
    expected = torch.autograd.grad(kl, logits, retain_graph=True)[0]
    mask = torch.ones(1, 1, dtype=torch.bool)
    parts = [
        old[token].exp() * algorithm.kl_loss(*(p[token].view(1, 1) for p in (logprobs, old, ref_logprobs)), mask)
        for token in range(7)
    ]
    assert float(sum(parts).detach()) == pytest.approx(float(kl.detach()), abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(sum(parts), logits)[0], expected)


@kinds
@both
@either
def test_the_policy_learns_without_a_value_head(advantage: str, architecture: str, lora: bool, tmp_path: Path) -> None:
    changes = {"advantage": advantage, "steps": 12, "schedule": "constant", "kl_coef": 0.001, "max_new_tokens": 12}
    run = make_trainer(tmp_path, architecture, lora=lora, **GROUPS, **changes)
    assert run.unwrapped.value_head is None
    assert not list(run.unwrapped.value_parameters())
    run.train()
    log = lines(tmp_path / "metrics.jsonl")
    assert not [name for name in log[0] if name.startswith(("value/", "returns/"))]
    first, last = (statistics.mean(line["objective/score_mean"] for line in part) for part in (log[:2], log[-2:]))
    assert last > first + 0.03


@kinds
def test_responses_to_a_prompt_follow_one_another(advantage: str, tmp_path: Path) -> None:
    run = make_trainer(tmp_path, advantage=advantage, **GROUPS)
    rows = [row["index"] for row in run.batch(0)]
    assert len(rows) == 16
    assert rows == [row for row in rows[::4] for _ in range(4)]
    assert len({row["index"] for step in range(10) for row in run.batch(step)}) == 40, (
        "ten batches of four are an epoch"
    )
    rollout, metrics = step(run)
    assert len(set(rollout.completions[:4])) > 1
    equal = [len(set(group)) == 1 for group in rollout.scores.view(-1, 4).tolist()]
    assert metrics["objective/equal_scores_rate"] == pytest.approx(statistics.mean(equal))


@pytest.mark.parametrize(
    ("advantage", "kl_in"),
    [("rloo", "reward"), ("rloo", "loss"), ("grpo", "reward"), ("grpo", "loss"), ("gdpo", "loss")],
)
@both
def test_the_gradient_is_that_of_the_naive_loss(kl_in: str, advantage: str, architecture: str, tmp_path: Path) -> None:
    changes = {"kl_in": kl_in, "kl_coef": 0.3, "epochs": 1, "minibatch_size": 16, "max_grad_norm": 1e9}
    run = make_trainer(tmp_path, architecture, lora=False, advantage=advantage, self_checks=False, **GROUPS, **changes)
    with torch.no_grad():  # away from the reference, so that the penalty is not 0
        for parameter in run.unwrapped.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    rollout = run.rollout(run.batch(0))
    policy, mask = run.unwrapped, rollout.batch.response_mask
    logprobs, old, reference = policy(rollout.batch, 1.0).logprobs, rollout.logprobs, rollout.ref_logprobs
    totals = rollout.scores.clone()
    if kl_in == "reward":
        totals -= 0.3 * ((old - reference) * mask).sum(dim=1)
    # The only term is standardized within its prompt, and then over the batch.
    by_prompt = torch.cat([(g - g.mean()) / (g.std() + 1e-4) for g in rollout.scores.view(4, 4)])
    standardized = (by_prompt - by_prompt.mean()) / (by_prompt.std() + 1e-4)
    loss = torch.zeros(())
    for row in range(16):
        group = totals[4 * (row // 4) : 4 * (row // 4) + 4]
        others = (group.sum() - totals[row]) / 3
        by_kind = {
            "gdpo": standardized[row],
            "rloo": totals[row] - others,
            "grpo": (totals[row] - group.mean()) / (group.std() + 1e-4),
        }
        for token in range(int(mask[row].sum())):
            loss = loss - by_kind[advantage] * (logprobs[row, token] - old[row, token]).exp()
            if kl_in == "loss":
                difference = reference[row, token] - logprobs[row, token]
                ratio = (logprobs[row, token] - old[row, token]).exp()
                loss = loss + 0.3 * ratio * (difference.exp() - difference - 1)
    trained = [p for p in policy.parameters() if p.requires_grad]
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss / mask.sum(), trained)]).norm()
    assert run.update(rollout)["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_by_default_grpo_alone_has_the_penalty_in_its_loss(tmp_path: Path) -> None:
    rewards = {}
    for advantage in ("gae", "rloo", "grpo"):
        run = make_trainer(tmp_path / advantage, advantage=advantage, kl_coef=0.5, **GROUPS)
        step(run)
        rollout, metrics = step(run)
        rewards[advantage] = metrics["objective/reward"] - float(rollout.scores.mean())
        assert metrics["objective/kl"] != 0
    assert rewards["grpo"] == pytest.approx(0, abs=1e-6)
    assert min(abs(rewards["gae"]), abs(rewards["rloo"])) > 1e-4


@kinds
def test_a_stopped_run_resumes_to_the_same_weights(advantage: str, tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", advantage=advantage, **GROUPS)
    whole.train()
    with pytest.raises(Interrupted, match="saved at step 3 of 4"):
        make_trainer(tmp_path / "stopped", advantage=advantage, reward=interrupting(3), **GROUPS).train()
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "stopped", advantage=advantage, **GROUPS)
    resumed.train()
    assert trained_weights(resumed.unwrapped) == trained_weights(whole.unwrapped)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": "gdpo", "kl_in": "reward", **GROUPS}, "ppo.kl_in: reward adds the KL penalty to the sum"),
        ({"advantage": "gdpo", "score_clip": 2.0, **GROUPS}, "ppo.score_clip: 2.0 reads the sum of a reward's terms"),
        ({"advantage": "rloo"}, "ppo.samples_per_prompt: 1 leaves ppo.advantage rloo no other response"),
        ({"advantage": "grpo"}, "ppo.samples_per_prompt: 1 leaves ppo.advantage grpo no other response"),
        ({"samples_per_prompt": 3}, "ppo.batch_size: 16"),
        ({"advantage": "rloo", "norm_by_std": False, **GROUPS}, "ppo.norm_by_std: only for ppo.advantage grpo"),
        ({"norm_by_std": False}, "ppo.norm_by_std: only for ppo.advantage grpo, and it is gae"),
        ({"advantage": "grpo", "value_model": "separate", **GROUPS}, "ppo.value_model: separate is about values"),
        ({"advantage": "rloo", "value_warmup_steps": 2, **GROUPS}, "ppo.value_warmup_steps: 2 is about values"),
        ({"advantage": "rloo", "lam": 0.9, **GROUPS}, "ppo.lam: 0.9 is about values"),
        ({"kl_in": "loss", "kl_estimator": "k2"}, "ppo.kl_estimator: k2 is for a penalty in the reward"),
    ],
)
def test_settings_that_would_not_be_read_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_ppo(dataclasses.replace(CONFIG, **changes))
    assert str(error.value).startswith(message)


def test_a_batch_needs_as_many_prompts_as_it_has_groups_on_every_process() -> None:
    config = dataclasses.replace(CONFIG, advantage="rloo", **GROUPS)
    check_batch_size(config, 4, 1)
    with pytest.raises(UserError, match=r"batch_size: 16 takes 4 prompts, which is above the 3 prompts of ppo\.data"):
        check_batch_size(config, 3, 1)
    with pytest.raises(UserError, match="batch_size: 16 over 8 processes must be a multiple"):
        check_batch_size(config, 40, 8)
