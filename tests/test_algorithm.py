"""The PPO mathematics against literal references."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from workbench.models.optimizer import lr_multiplier
from workbench.ppo import algorithm
from workbench.ppo.metrics import explained_variance


def ragged(rows: int = 5, length: int = 7, seed: int = 0) -> tuple[torch.Generator, torch.Tensor]:
    """A generator and a mask (rows, length) of responses of different lengths, at least one token each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return generator, torch.arange(length) < lengths


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_kl_estimators_average_to_the_exact_sum(estimator: str) -> None:
    policy = torch.log_softmax(torch.tensor([0.3, -1.0, 0.7, 0.1, -0.4]), 0)
    reference = torch.log_softmax(torch.tensor([0.1, 0.4, -0.2, 0.9, -1.1]), 0)
    exact = sum(p.exp() * (p - r) for p, r in zip(policy, reference, strict=True))
    expected = (policy.exp() * algorithm.kl_penalty(policy, reference, estimator)).sum()
    assert expected == pytest.approx(float(exact), abs=1e-6)


def test_k2_is_half_the_squared_log_ratio_and_k3_is_never_negative() -> None:
    generator, _ = ragged()
    a, b = torch.randn(100, generator=generator), torch.randn(100, generator=generator)
    assert algorithm.kl_penalty(a, b, "k2").tolist() == pytest.approx([0.5 * float(d) ** 2 for d in a - b], rel=1e-5)
    assert (algorithm.kl_penalty(a, b, "k3") >= 0).all()


def test_rewards_are_the_penalty_and_the_score_at_the_last_token() -> None:
    generator, mask = ragged()
    kl, scores = torch.randn(5, 7, generator=generator), torch.randn(5, generator=generator)
    rewards = algorithm.token_rewards(scores, kl, mask, 0.1)
    for row, t in itertools.product(range(5), range(7)):
        last = int(mask[row].sum()) - 1
        expected = -0.1 * float(kl[row, t]) if mask[row, t] else 0.0
        expected += float(scores[row]) if t == last else 0.0
        assert float(rewards[row, t]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_is_the_double_sum_over_valid_tokens(gamma: float, lam: float) -> None:
    generator, mask = ragged()
    rewards, values = (torch.randn(5, 7, generator=generator) * mask for _ in range(2))
    advantages = algorithm.gae(rewards, values, mask, gamma, lam)
    for row in range(5):
        length = int(mask[row].sum())
        r, v = rewards[row, :length].tolist(), [*values[row, :length].tolist(), 0.0]
        for t in range(7):
            expected = sum((gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k]) for k in range(t, length))
            assert float(advantages[row, t]) == pytest.approx(expected, abs=1e-5)


def test_gae_lets_nothing_in_from_masked_positions() -> None:
    generator, mask = ragged()
    rewards, values = (torch.randn(5, 7, generator=generator) for _ in range(2))
    noise = torch.randn(5, 7, generator=generator) * 100 * ~mask
    clean = algorithm.gae(rewards * mask, values, mask, 1.0, 0.95)
    assert torch.equal(algorithm.gae(rewards * mask, values + noise, mask, 1.0, 0.95), clean)


def test_whitening_gives_mean_zero_and_variance_one_over_the_mask() -> None:
    generator, mask = ragged(rows=20)
    values = torch.randn(20, 7, generator=generator) * 3 + 5
    whitened = algorithm.whiten(values, mask)
    assert float(whitened[mask].mean()) == pytest.approx(0, abs=1e-5)
    assert float(whitened[mask].var()) == pytest.approx(1, abs=1e-4)
    assert not whitened[~mask].any()


def test_whitening_over_two_processes_is_whitening_of_both_together() -> None:
    generator, mask = ragged(rows=8)
    values = torch.randn(8, 7, generator=generator)
    whole = algorithm.whiten(values, mask)
    halves = [(values[:3], mask[:3]), (values[3:], mask[3:])]
    firsts = [torch.stack((m.sum().float(), (v * m).sum())) for v, m in halves]
    mean = sum(firsts)[1] / sum(firsts)[0]
    seconds = [((v - mean) * m).square().sum().unsqueeze(0) for v, m in halves]
    for (v, m), part in zip(halves, (whole[:3], whole[3:]), strict=True):
        sums = iter((sum(firsts), sum(seconds)))
        assert torch.allclose(algorithm.whiten(v, m, lambda _, sums=sums: next(sums)), part, atol=1e-6)


@pytest.mark.parametrize("tokens", [0, 1])
def test_whitening_of_no_or_one_token_divides_by_nothing(tokens: int) -> None:
    mask = torch.arange(4).unsqueeze(0) < tokens
    assert algorithm.whiten(torch.tensor([[3.0, 1.0, 2.0, 5.0]]), mask).abs().sum() == 0


def test_policy_gradient_is_zero_outside_the_clip_and_the_advantage_inside() -> None:
    log_ratio = torch.tensor([[0.0, 0.5, -0.5, 0.5, -0.5]], requires_grad=True)
    advantages = torch.tensor([[2.0, 1.0, -1.0, -1.0, 1.0]])
    mask = torch.ones(1, 5, dtype=torch.bool)
    result = algorithm.policy_loss(log_ratio, torch.zeros(1, 5), advantages, mask, 0.2)
    result.loss.backward()
    expected = [-2.0, 0.0, 0.0, math.exp(0.5), -math.exp(-0.5)]
    assert log_ratio.grad is not None
    assert log_ratio.grad[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert int(result.clipped) == 2
    assert float(result.ratio_max) == pytest.approx(math.exp(0.5))


def test_masked_tokens_have_no_part_in_the_losses() -> None:
    generator, mask = ragged()
    a, b, c, d = (torch.randn(5, 7, generator=generator) for _ in range(4))
    noise = 1e4 * ~mask
    loss = algorithm.policy_loss(a, b, c, mask, 0.2)
    noisy = algorithm.policy_loss(a + noise, b, c, mask, 0.2)
    assert all(torch.equal(x, y) for x, y in zip(loss, noisy, strict=True))
    value = algorithm.value_loss(a, b, d, mask, 0.2)
    assert all(torch.equal(x, y) for x, y in zip(value, algorithm.value_loss(a + noise, b, d, mask, 0.2), strict=True))


def test_a_ratio_that_explodes_keeps_losses_and_gradients_finite() -> None:
    log_ratio = torch.tensor([[200.0, -200.0]], requires_grad=True)
    advantages, mask = torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool)
    result = algorithm.policy_loss(log_ratio, torch.zeros(1, 2), advantages, mask, 0.2)
    result.loss.backward()
    assert torch.isfinite(torch.stack([part.detach() for part in result])).all()
    assert log_ratio.grad is not None
    assert torch.isfinite(log_ratio.grad).all()
    assert torch.isfinite(algorithm.kl_penalty(torch.tensor([-200.0]), torch.zeros(1), "k3")).all()


def test_value_loss_takes_the_larger_error_and_stops_outside_the_clip() -> None:
    values = torch.tensor([[1.0, 0.1, -1.0]], requires_grad=True)
    result = algorithm.value_loss(values, torch.zeros(1, 3), torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool), 0.2)
    # errors 0, .81, 4; of the clipped values .64, .81, 1.44
    assert float(result.loss.detach()) == pytest.approx(0.5 * (0.64 + 0.81 + 4.0))
    result.loss.backward()
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([0.0, -0.9, -2.0])
    assert int(result.clipped) == 1


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1 + 0.2 * 64 / 10_000), (3.3, 1 + 0.1 * 64 / 10_000), (0.0, 1 - 0.2 * 64 / 10_000)]
)
def test_adaptive_kl_follows_the_published_formula(kl: float, factor: float) -> None:
    assert algorithm.update_kl_coef(0.05, kl, target=3.0, horizon=10_000, episodes=64) == pytest.approx(0.05 * factor)


def test_explained_variance_over_two_processes_is_that_of_both_together() -> None:
    generator, mask = ragged(rows=8)
    values, returns = torch.randn(8, 7, generator=generator), torch.randn(8, 7, generator=generator)
    chosen = returns[mask] - values[mask]
    expected = 1 - float(chosen.var(correction=0) / returns[mask].var(correction=0))
    assert float(explained_variance(values, returns, mask)) == pytest.approx(expected, abs=1e-5)
    seen: list[torch.Tensor] = []

    def record(sums: torch.Tensor) -> torch.Tensor:
        seen.append(sums)
        return sums * 2

    # Twice the same rows on two processes: every sum doubles and the ratio stays.
    assert float(explained_variance(values, returns, mask, record)) == pytest.approx(expected, abs=1e-5)
    assert len(seen) == 2


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_rates_fall_from_their_peak(schedule: str, middle: float) -> None:
    assert lr_multiplier(0, 10, schedule) == 1.0
    assert lr_multiplier(5, 10, schedule) == pytest.approx(middle)


def test_explained_variance_is_one_for_the_returns_and_zero_for_their_mean() -> None:
    generator, mask = ragged(rows=20)
    returns = torch.randn(20, 7, generator=generator)
    assert float(explained_variance(returns, returns, mask)) == pytest.approx(1)
    mean = torch.full_like(returns, float(returns[mask].mean()))
    assert float(explained_variance(mean, returns, mask)) == pytest.approx(0, abs=1e-5)
    assert float(explained_variance(mean, torch.ones_like(returns), mask)) == 0
