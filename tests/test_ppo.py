"""The PPO loop: it learns, counts its steps, leaves the reference alone, and resumes as if it had never stopped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny
import torch
from trainers import both, e_rate, either, frozen_weights, interrupting, lines, make_trainer, step, trained_weights

from workbench.errors import Interrupted, RewardError, UserError
from workbench.ppo.sampler import batch_indices


@pytest.mark.parametrize(
    ("architecture", "lora", "seed"),
    [*((a, lora, 0) for a in tiny.ARCHITECTURES for lora in (True, False)), ("gpt2", True, 1), ("gpt2", True, 2)],
)
def test_it_learns_a_countable_reward(architecture: str, lora: bool, seed: int, tmp_path: Path) -> None:
    changes = {"steps": 8, "batch_size": 32, "minibatch_size": 16, "epochs": 4, "max_new_tokens": 6}
    rate = 3e-2 if lora else 1e-2
    make_trainer(tmp_path, architecture, lora=lora, seed=seed, learning_rate=rate, **changes).train()
    scores = [entry["objective/score_mean"] for entry in lines(tmp_path / "metrics.jsonl")]
    assert sum(scores[-2:]) / 2 > scores[0] + 0.3, scores


@both
def test_a_huge_kl_coefficient_pins_the_policy(architecture: str, tmp_path: Path) -> None:
    free = make_trainer(tmp_path / "free", architecture, kl_coef=0.0, learning_rate=3e-3).train()
    pinned = make_trainer(tmp_path / "pinned", architecture, kl_coef=50.0, learning_rate=3e-3).train()
    assert pinned["objective/kl_k3"] < 0.3 * free["objective/kl_k3"]


@both
@either
def test_the_first_rollout_has_no_kl_and_ratio_one(architecture: str, lora: bool, tmp_path: Path) -> None:
    run = make_trainer(tmp_path, architecture, lora=lora, epochs=1, minibatch_size=16)
    _, metrics = step(run)
    assert metrics["objective/kl_k3"] == pytest.approx(0, abs=1e-6)
    # One minibatch in one epoch: every ratio was taken before any step.
    assert metrics["policy/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["policy/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert metrics["policy/clip_fraction"] == 0


@both
def test_a_policy_that_is_not_its_reference_is_refused_before_any_update(architecture: str, tmp_path: Path) -> None:
    policy = tiny.policy(architecture, lora=True)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".policy." in name:
                parameter.mul_(3)
    run = make_trainer(tmp_path, architecture, policy=policy)
    before = trained_weights(policy)
    with pytest.raises(UserError, match="must start as a copy of its reference"):
        step(run)
    assert trained_weights(policy) == before


@both
def test_probabilities_that_change_without_an_update_are_refused(architecture: str, tmp_path: Path) -> None:
    run = make_trainer(tmp_path, architecture, policy=tiny.policy(architecture, lora=True))
    rollout = run.rollout(run.batch(0))
    with torch.no_grad():
        for name, parameter in run.unwrapped.named_parameters():
            if ".policy." in name:
                parameter.mul_(2)
    with pytest.raises(UserError, match="log ratio of new to old"):
        run.update(rollout)


@both
@either
def test_the_reference_is_unchanged_and_the_policy_is_not(architecture: str, lora: bool, tmp_path: Path) -> None:
    run = make_trainer(tmp_path, architecture, lora=lora)
    frozen, trained = frozen_weights(run.unwrapped), trained_weights(run.unwrapped)
    run.train()
    assert frozen_weights(run.unwrapped) == frozen
    assert trained_weights(run.unwrapped) != trained


@pytest.mark.parametrize(("epochs", "minibatch"), [(1, 16), (2, 8), (3, 4)])
def test_optimizer_steps_are_epochs_times_minibatches(epochs: int, minibatch: int, tmp_path: Path) -> None:
    run = make_trainer(tmp_path, "gpt2", epochs=epochs, minibatch_size=minibatch)
    _, metrics = step(run)
    assert metrics["optimizer_steps"] == epochs * 16 // minibatch
    assert metrics["skipped_steps"] == 0


@both
def test_one_minibatch_of_eight_equals_eight_accumulated_ones(architecture: str, tmp_path: Path) -> None:
    def update_with(micro_batch_size: int) -> tuple[list[torch.Tensor], dict[str, float]]:
        run = make_trainer(
            tmp_path / str(micro_batch_size),
            architecture,
            epochs=1,
            batch_size=8,
            minibatch_size=8,
            micro_batch_size=micro_batch_size,
            learning_rate=0.0,
            max_grad_norm=1e9,
        )
        torch.manual_seed(1)
        rollout = run.rollout(run.batch(0))
        gradients: list[torch.Tensor] = []
        optimizer_step = run.optimizer.step
        run.optimizer.step = lambda: (
            gradients.extend(p.grad.clone() for p in run.policy.parameters() if p.requires_grad) or optimizer_step()
        )
        return gradients, run.update(rollout)

    (whole, metrics), (parts, metrics_of_parts) = update_with(8), update_with(1)
    assert len(whole) == len(parts) > 0
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    for name in ("policy/loss", "value/loss", "policy/approx_kl", "grad_norm", "policy/clip_fraction"):
        assert metrics[name] == pytest.approx(metrics_of_parts[name], abs=1e-5), name


@both
@either
def test_a_stopped_run_resumes_to_the_same_metrics_and_weights(architecture: str, lora: bool, tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", architecture, lora=lora)
    whole.train()

    with pytest.raises(Interrupted, match="saved at step 3 of 4"):
        make_trainer(tmp_path / "stopped", architecture, lora=lora, reward=interrupting(3)).train()
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "stopped", architecture, lora=lora)
    resumed.train()

    assert trained_weights(resumed.unwrapped) == trained_weights(whole.unwrapped)
    whole_log, stopped_log = (lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "stopped"))
    assert len(whole_log) == 4
    assert stopped_log == whole_log


def test_checkpoints_are_kept_by_count(tmp_path: Path) -> None:
    make_trainer(tmp_path, "gpt2", steps=4, checkpoint_every=1).train()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_000003", "step_000004"]


def test_a_reward_that_returns_nan_stops_with_the_row_and_a_checkpoint(tmp_path: Path) -> None:
    calls = 0

    def failing(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        nonlocal calls
        calls += 1
        return [0.5] * 7 + [float("nan") if calls == 2 else 0.5] + [0.5] * (len(completions) - 8)

    with pytest.raises(RewardError, match=r"test.*row 7"):
        make_trainer(tmp_path, "gpt2", reward=failing).train()
    assert (tmp_path / "checkpoints" / "step_000001").is_dir()


def test_a_run_that_a_reward_stopped_resumes_as_if_it_had_not(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", "gpt2")
    whole.train()
    calls = 0

    def failing_once(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise TimeoutError("the scorer did not answer")
        return e_rate(prompts, completions)

    with pytest.raises(RewardError, match="TimeoutError: the scorer did not answer"):
        make_trainer(tmp_path / "stopped", "gpt2", reward=failing_once).train()
    resumed = make_trainer(tmp_path / "stopped", "gpt2")
    resumed.train()
    assert trained_weights(resumed.unwrapped) == trained_weights(whole.unwrapped)


def test_a_finished_run_started_again_returns_its_last_metrics(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, "gpt2").train()
    assert make_trainer(tmp_path, "gpt2").train() == first


def test_the_reward_gets_the_columns_of_its_rows(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def watching(prompts: list[str], completions: list[str], index: list[int], **columns: list) -> list[float]:
        seen.extend(zip(prompts, index, strict=True))
        return [0.0] * len(completions)

    run = make_trainer(tmp_path, "gpt2", reward=watching)
    rows = run.batch(0)
    run.rollout(rows)
    assert seen == [(row["prompt"], row["index"]) for row in rows]


def test_every_epoch_visits_every_row_once() -> None:
    indices = [i for step in range(5) for i in batch_indices(step, 8, 20, seed=3)]
    assert sorted(indices[:20]) == list(range(20)) == sorted(indices[20:])
    assert indices[:20] != indices[20:]
    assert indices == [i for step in range(5) for i in batch_indices(step, 8, 20, seed=3)]


def test_a_gradient_that_is_not_finite_skips_the_step_and_stops_after_a_few(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, "gpt2")
    before = trained_weights(run.unwrapped)
    for parameter in run.policy.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match="no finite gradient"):
        run.train()
    assert run.state.step == 3
    assert trained_weights(run.unwrapped) == before


@both
def test_identical_responses_and_scores_update_nothing_to_nan(architecture: str, tmp_path: Path) -> None:
    run = make_trainer(tmp_path, architecture, reward=lambda prompts, completions, **columns: [1.0] * len(completions))
    metrics = run.update(run.rollout([run.rows[0]] * 16))
    assert all(map(math.isfinite, metrics.values())), metrics


def test_more_prompts_a_batch_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="64 is above the 40 prompts"):
        make_trainer(tmp_path, "gpt2", batch_size=64)
