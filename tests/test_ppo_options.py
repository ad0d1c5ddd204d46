"""Every option of PPO does what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from trainers import both, e_rate, either, make_trainer, step, untimed

from workbench.config.schema import PolicyConfig
from workbench.errors import UserError
from workbench.models.adapters import load_trainable
from workbench.models.loading import load_policy_tokenizer, stop_ids
from workbench.models.policy import Batch, Policy
from workbench.ppo import algorithm
from workbench.ppo.advantages import estimate_advantages
from workbench.ppo.initial_scores import mean_and_deviation, score_initial_policy
from workbench.ppo.losses import make_objective
from workbench.ppo.rollout import Rollout
from workbench.ppo.sampler import token_limit
from workbench.ppo.trainer import PPOTrainer
from workbench.ppo.update import update


def parameters(run: PPOTrainer, of_values: bool) -> dict[str, torch.Tensor]:
    """Return copies of the parameters that are trained for the values alone, or of the other trained ones."""
    values = {id(p) for p in run.unwrapped.value_parameters()}
    named = run.unwrapped.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad and (id(p) in values) == of_values}


def equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    """Return whether every bit is the same."""
    assert some.keys() == others.keys() != set()
    return all(torch.equal(value, others[name]) for name, value in some.items())


@both
def test_an_entropy_bonus_keeps_entropy_higher(architecture: str, tmp_path: Path) -> None:
    def last(entropy_coef: float) -> float:
        changes = {"kl_coef": 0.0, "entropy_coef": entropy_coef, "schedule": "constant"}
        metrics = make_trainer(tmp_path / str(entropy_coef), architecture, **changes).train()
        assert ("policy/entropy" in metrics) == (entropy_coef > 0)
        return metrics["objective/entropy"] / metrics["response/length_mean"]

    assert last(0.3) > last(0.0) + 0.05


def test_a_target_kl_ends_the_epochs(tmp_path: Path) -> None:
    _, free = step(make_trainer(tmp_path / "free", "gpt2", epochs=3))
    _, held = step(make_trainer(tmp_path / "held", "gpt2", epochs=3, target_kl=1e-5))
    assert (free["optimizer_steps"], free["stopped_early"]) == (6, 0)
    # The first minibatch has ratio 1, the second is past the target and takes no step.
    assert (held["optimizer_steps"], held["stopped_early"]) == (1, 1)


def test_gradients_are_clipped_and_their_norm_is_reported_before_that(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, "gpt2", epochs=1, minibatch_size=16, max_grad_norm=0.01)
    norms: list[float] = []
    inner = run.optimizer.step

    def spying() -> None:
        gradients = [p.grad.flatten() for p in run.policy.parameters() if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        inner()

    run.optimizer.step = spying
    _, metrics = step(run)
    assert norms == [pytest.approx(0.01, rel=1e-3)]
    assert metrics["grad_norm"] > 0.02


def test_the_gradient_is_that_of_the_sums_over_tokens_by_their_count(tmp_path: Path) -> None:
    run = make_trainer(
        tmp_path, "gpt2", epochs=1, minibatch_size=16, micro_batch_size=4, vf_coef=0.3, max_grad_norm=1e9
    )
    rollout = run.rollout(run.batch(0))
    mask, policy = rollout.batch.response_mask, run.unwrapped
    advantages, returns = (torch.randn(mask.shape) * mask for _ in range(2))
    scores = policy(rollout.batch, 1.0)
    # At ratio 1 and unmoved values nothing is clipped.
    loss = -(advantages * (scores.logprobs - rollout.logprobs).exp()).sum()
    loss = (loss + 0.3 * 0.5 * (scores.values - returns).square().sum()) / mask.sum()
    norm = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, [p for p in policy.parameters() if p.requires_grad])]
    )
    estimates = estimate_advantages(rollout, run.config, run.state)._replace(advantages=advantages, returns=returns)
    metrics = update(
        run.policy,
        run.optimizer,
        run.accelerator,
        make_objective(run.policy, run.accelerator, rollout, estimates, run.config, 0.0),
        run.config,
        minibatch_size=16,
        micro_batches=run.limits.computed,
        generator=torch.Generator(),
        scaler=run.scaler,
    )
    assert metrics["grad_norm"] == pytest.approx(float(norm.norm()), rel=1e-4)


def test_returns_are_not_whitened(tmp_path: Path) -> None:
    # With lambda 1, no penalty and values still 0, what is left of every token is the score of its response.
    rollout, metrics = step(make_trainer(tmp_path, "gpt2", kl_coef=0.0, lam=1.0))
    lengths = rollout.batch.response_mask.sum(dim=1)
    expected = float((rollout.scores * lengths).sum() / lengths.sum())
    assert metrics["returns/mean"] == pytest.approx(expected, abs=1e-5)
    assert metrics["advantages/mean"] == pytest.approx(expected, abs=1e-5)


@both
@either
def test_separate_values_pass_the_checks_and_share_nothing_with_the_policy(
    architecture: str, lora: bool, tmp_path: Path
) -> None:
    policy = tiny.policy(architecture, lora=lora, separate=True)
    run = make_trainer(tmp_path, architecture, policy=policy)
    rollout, _ = step(run)
    assert set(policy.trained_adapters) == ({"policy", "value"} if lora else set())
    assert lora == (policy.value_model is None)
    torch.nn.init.normal_(policy.value_head.weight)

    def reached(select: Callable[[Any], torch.Tensor]) -> set[str]:
        policy.zero_grad()
        select(policy(rollout.batch, 1.0)).sum().backward()
        return {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}

    assert reached(lambda scores: scores.values) == set(parameters(run, of_values=True))
    assert reached(lambda scores: scores.logprobs) == set(parameters(run, of_values=False))


@both
@either
@pytest.mark.parametrize("separate", [True, False])
def test_a_value_warm_up_moves_the_values_and_leaves_the_policy_to_the_bit(
    architecture: str, lora: bool, separate: bool, tmp_path: Path
) -> None:
    policy = tiny.policy(architecture, lora=lora, separate=separate)
    run = make_trainer(tmp_path, architecture, policy=policy, value_warmup_steps=2)
    before, values = parameters(run, of_values=False), parameters(run, of_values=True)
    rollout, _ = step(run)
    step(run)
    assert equal(before, parameters(run, of_values=False))
    assert not any(torch.equal(values[name], p) for name, p in parameters(run, of_values=True).items())
    assert torch.allclose(policy(rollout.batch, 1.0).logprobs, rollout.logprobs, atol=1e-5)
    step(run)
    assert not equal(before, parameters(run, of_values=False))


def test_scores_are_normalized_by_those_of_the_initial_policy(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, "gpt2", score_samples=32, kl_coef=0.0)
    run.measure_initial_scores()
    initial = score_initial_policy(
        run.unwrapped, run.tokenizer, run.reward, run.batch, run.config, run.limits, seed=run.seed, process=0
    )
    state = run.state
    assert mean_and_deviation(initial) == (state.score_mean, state.score_std)
    rollout, metrics = step(run)
    assert len(initial) == 32
    assert state.score_std is not None
    normalized = algorithm.transform_scores(initial, torch.zeros(32), mean=state.score_mean, std=state.score_std)
    assert (float(normalized.mean()), float(normalized.std(correction=0))) == pytest.approx((0, 1), abs=1e-5)
    expected = (rollout.scores - initial.mean()) / initial.std(correction=0)
    assert metrics["objective/reward"] == pytest.approx(float(expected.mean()), abs=1e-4)
    assert metrics["objective/score_mean"] == pytest.approx(float(rollout.scores.mean()), abs=1e-5)
    statistics = (state.score_mean, state.score_std)
    step(run)
    assert (state.score_mean, state.score_std) == statistics


def test_a_rollout_made_elsewhere_is_normalized_like_any_other(tmp_path: Path) -> None:
    expected = step(make_trainer(tmp_path / "own", "gpt2", score_samples=32))[1]
    elsewhere = make_trainer(tmp_path / "elsewhere", "gpt2")
    metrics = make_trainer(tmp_path / "given", "gpt2", score_samples=32).update(elsewhere.rollout(elsewhere.batch(0)))
    assert untimed(metrics) == untimed(expected)
    assert metrics["objective/reward"] != pytest.approx(metrics["objective/score_mean"], abs=0.01)


def test_initial_scores_are_measured_before_the_first_rollout_and_never_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def counting(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        calls.append(run.state.step)
        return e_rate(prompts, completions)

    run = make_trainer(tmp_path, "gpt2", reward=counting, score_samples=32, steps=2)
    run.train()
    assert calls == [0, 0, 0, 1]
    resumed = make_trainer(tmp_path, "gpt2", score_samples=32, steps=2)
    resumed.resume()
    assert (resumed.state.score_mean, resumed.state.score_std) == (run.state.score_mean, run.state.score_std)


def test_identical_scores_cannot_be_normalized(tmp_path: Path) -> None:
    run = make_trainer(
        tmp_path, "gpt2", score_samples=16, reward=lambda prompts, completions, **_: [2.5] * len(prompts)
    )
    with pytest.raises(UserError, match=r"ppo.score_samples: all 16 responses .* score 2\.5"):
        step(run)


def test_scores_are_clipped_then_scaled_and_reported_raw(tmp_path: Path) -> None:
    transformed = algorithm.transform_scores(
        torch.tensor([-5.0, 1.5, 9.0]), torch.zeros(3), mean=1.0, std=2.0, clip=1.0, scale=4.0
    )
    assert transformed.tolist() == pytest.approx([-0.25, 0.0625, 0.25])
    options = {"score_clip": 3.0, "score_scale": 2.0, "kl_coef": 0.0}
    run = make_trainer(tmp_path, "gpt2", reward=lambda prompts, completions, **_: [10.0] * len(prompts), **options)
    _, metrics = step(run)
    assert metrics["objective/reward"] == pytest.approx(1.5)
    assert metrics["objective/score_mean"] == pytest.approx(10)


@both
def test_a_missing_stop_token_is_penalized_by_the_response_alone(architecture: str, tmp_path: Path) -> None:
    policy = tiny.policy(architecture, lora=True)
    eos = int(policy.stop_ids[0])
    policy.stop_ids = torch.tensor([eos, 7, 8, 9])
    run = make_trainer(tmp_path, architecture, policy=policy, missing_eos_penalty=3.0, kl_coef=0.0)
    rows = [row | {"prompt_ids": [*row["prompt_ids"], eos]} for row in run.batch(0)]  # a stop token in every prompt
    rollout = run.rollout(rows)
    cut = [not {eos, 7, 8, 9} & set(row[mask].tolist()) for row, mask in zip(*responses(rollout), strict=True)]
    assert rollout.truncated.tolist() == cut
    assert 0 < sum(cut) < 16, "the test needs both kinds"
    assert any(7 <= int(row[mask][-1]) <= 9 for row, mask in zip(*responses(rollout), strict=True))
    expected = float(rollout.scores.mean()) - 3.0 * sum(cut) / 16
    assert run.update(rollout)["objective/reward"] == pytest.approx(expected, abs=1e-5)


def responses(rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of the responses."""
    return rollout.batch.response_ids, rollout.batch.response_mask


def test_stop_ids_are_the_tokenizers_and_the_models_own() -> None:
    model = tiny.model("gpt2")
    model.generation_config.eos_token_id = [7, 9]
    assert stop_ids(model, tiny.tokenizer("gpt2")) == [0, 7, 9]


def test_a_drawn_limit_lies_between_the_bounds_and_depends_on_the_seed(tmp_path: Path) -> None:
    limits = [token_limit(i, 3, 8, seed=0) for i in range(200)]
    assert set(limits) == {3, 4, 5, 6, 7, 8}
    assert limits == [token_limit(i, 3, 8, seed=0) for i in range(200)]
    assert limits != [token_limit(i, 3, 8, seed=1) for i in range(200)]
    assert token_limit(5, None, 8, seed=0) == 8
    run = make_trainer(tmp_path, "gpt2", min_token_limit=3)
    for run.state.step in range(4):
        assert run.rollout(run.batch(0)).batch.response_ids.shape[1] == limits[run.state.step]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_estimator_that_is_penalized_is_the_one_reported_beside_k3(estimator: str, tmp_path: Path) -> None:
    run = make_trainer(tmp_path, "gpt2", kl_estimator=estimator, kl_coef=0.5)
    step(run)
    rollout, metrics = step(run)
    per_response = {
        name: float(algorithm.kl_penalty(rollout.logprobs, rollout.ref_logprobs, name).sum(dim=1).mean())
        for name in (estimator, "k3")
    }
    assert metrics["objective/kl"] == pytest.approx(per_response[estimator], abs=1e-5)
    assert metrics["objective/kl_k3"] == pytest.approx(per_response["k3"], abs=1e-5)
    assert metrics["objective/kl_k3"] > 0
    expected = float(rollout.scores.mean()) - 0.5 * per_response[estimator]
    assert metrics["objective/reward"] == pytest.approx(expected, abs=1e-5)


def test_a_kl_target_moves_the_coefficient_and_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    options = {"kl_target": 1e-3, "kl_horizon": 16, "kl_coef": 0.5, "schedule": "constant"}
    run = make_trainer(tmp_path, "gpt2", **options)
    step(run)
    assert run.state.kl_coef == pytest.approx(0.5 * 0.8)  # no KL yet; a horizon of one batch
    _, metrics = step(run)
    assert metrics["objective/kl_coef"] == pytest.approx(0.4)
    assert metrics["objective/kl"] > 0.01
    expected = metrics["objective/score_mean"] - 0.4 * metrics["objective/kl"]
    assert metrics["objective/reward"] == pytest.approx(expected, abs=1e-5)
    assert run.state.kl_coef == pytest.approx(0.4 * 1.2)
    run.save_checkpoint()
    resumed = make_trainer(tmp_path, "gpt2", **options)
    resumed.resume()
    assert (resumed.state.step, resumed.state.kl_coef) == (2, run.state.kl_coef)
    fixed = make_trainer(tmp_path / "fixed", "gpt2")
    step(fixed)
    assert fixed.state.kl_coef == 0.01


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_both_rates_follow_the_schedule(schedule: str, tmp_path: Path) -> None:
    run = make_trainer(tmp_path, "gpt2", schedule=schedule, learning_rate=1e-3, value_learning_rate=1e-2, epochs=1)
    multipliers = {
        "linear": [1, 0.75, 0.5, 0.25],
        "cosine": [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)],
        "constant": [1, 1, 1, 1],
    }[schedule]
    for multiplier in multipliers:
        _, metrics = step(run)
        assert metrics["learning_rate"] == pytest.approx(1e-3 * multiplier)
        rates = [group["lr"] for group in run.optimizer.param_groups]
        assert rates == pytest.approx([1e-3 * multiplier, 1e-2 * multiplier])


@pytest.mark.parametrize("name", ["gpt2", "t5"])
@either
def test_gradient_checkpointing_recomputes_to_the_same_gradients(name: str, lora: bool) -> None:
    def backward(checkpointing: bool) -> tuple[dict[str, torch.Tensor], int]:
        torch.manual_seed(0)
        settings = PolicyConfig(model=f"toy:{name}", gradient_checkpointing=checkpointing)
        if not lora:
            settings.lora = None
        parts = load_trainable(settings, None, device=torch.device("cpu"))
        tokenizer = load_policy_tokenizer(settings.model)
        policy = Policy(parts.model, tokenizer, reference=parts.reference).train()
        torch.nn.init.normal_(policy.value_head.weight)
        for key, parameter in policy.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.02)
        calls: list[int] = []
        blocks = [m for m in policy.model.modules() if type(m).__name__ in ("GPT2MLP", "T5LayerFF")]
        for block in blocks:
            block.register_forward_pre_hook(lambda *_: calls.append(1))
        prompt = policy.pad_prompts([tokenizer("Anna: hello there.").input_ids, tokenizer("Hi.").input_ids])
        response, mask = torch.arange(12).reshape(2, 6) + 5, torch.arange(6) < torch.tensor([[6], [4]])
        scores = policy(Batch(*prompt, response, mask), 1.0)
        (scores.logprobs.sum() + scores.values.sum()).backward()
        gradients = {key: p.grad for key, p in policy.named_parameters() if p.grad is not None}
        return gradients, len(calls) // len(blocks)

    (plain, once), (recomputed, twice) = backward(False), backward(True)
    assert (once, twice) == (1, 2)
    assert plain.keys() == recomputed.keys()
    for key, gradient in plain.items():
        assert torch.allclose(gradient, recomputed[key], atol=1e-4), key
