"""More responses are sampled than learned from: those that differ are learned from, and the metrics are of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import both, e_rate, lines, make_trainer, trained_weights

from workbench.comparison.matrix import planned_responses
from workbench.config.algorithm_checks import check_algorithm
from workbench.config.derived import normalizing_responses
from workbench.config.schema import PPOConfig
from workbench.config.sources import DataSource
from workbench.errors import UserError
from workbench.ppo.sampler import check_batch_size, response_indices
from workbench.ppo.selection import furthest_from_median, most_different_groups

REWARD_VALUES: dict[str, Any] = {"value_model": "reward"}
GROUPS: dict[str, Any] = {"advantage": "rloo", "samples_per_prompt": 4}
kinds = pytest.mark.parametrize("options", [REWARD_VALUES, GROUPS], ids=["reward", "rloo"])


def ppo_config(**changes: Any) -> PPOConfig:
    """Return a configuration with these changes."""
    return PPOConfig(data=DataSource(path="unused"), **changes)


def test_the_scores_furthest_from_the_median_are_taken() -> None:
    scores = torch.tensor([2.0, -1.0, 2.0, 2.0, 0.5, 2.0, 9.0, 1.9])
    assert furthest_from_median(scores, 3).tolist() == [1, 4, 6]
    assert furthest_from_median(torch.ones(5), 2).tolist() == [0, 1]
    assert furthest_from_median(scores, 8).tolist() == list(range(8))


def test_the_groups_whose_scores_differ_most_are_taken_whole() -> None:
    scores = torch.tensor([1.0, 1.0, 0.0, 9.0, 2.0, 2.5, 5.0, 0.0])
    assert most_different_groups(scores, 4, 2).tolist() == [2, 3, 6, 7]


@kinds
@both
def test_an_update_learns_from_batch_size_of_them(architecture: str, options: dict[str, Any], tmp_path: Path) -> None:
    run = make_trainer(tmp_path, architecture, oversampling=2, **options)
    rows = run.batch(0)
    assert len(rows) == 32
    rollout = run.rollout(rows)
    assert len(rollout) == len(rollout.prompts) == len(rollout.scores) == len(rollout.batch.response_ids) == 16
    assert rollout.scores.tolist() == pytest.approx(e_rate([], rollout.completions))
    assert len(rollout.sampled_scores) == 32
    spread = rollout.scores.var() if "samples_per_prompt" not in options else rollout.scores.view(-1, 4).var(1).mean()
    of_all = rollout.sampled_scores
    assert spread >= (of_all.var() if "samples_per_prompt" not in options else of_all.view(-1, 4).var(1).mean())
    metrics = run.update(rollout)
    assert metrics["objective/score_mean"] == pytest.approx(rollout.sampled_scores.mean().item())
    assert metrics["objective/score_std"] == pytest.approx(rollout.sampled_scores.std(correction=0).item())


def test_columns_and_prompts_stay_with_their_responses(tmp_path: Path) -> None:
    def reward(prompts: list[str], completions: list[str], *, index: list[int], **columns: Any) -> list[float]:
        columns["log_extra"]("row", index)
        return [float(number) for number in index]

    run = make_trainer(tmp_path, "gpt2", reward=reward, oversampling=2, **REWARD_VALUES)
    rollout = run.rollout(run.batch(0))
    by_prompt = {number: row["prompt"] for number, row in enumerate(run.rows)}
    assert rollout.prompts == [by_prompt[int(score)] for score in rollout.scores]
    assert rollout.log.extra["row"] == [int(score) for score in rollout.scores]
    assert rollout.prefix_scores is not None
    for scores, mask, score in zip(rollout.prefix_scores, rollout.batch.response_mask, rollout.scores, strict=True):
        assert set(scores[mask].tolist()) == {score.item()}, "the columns of a prefix are those of its response"


@kinds
def test_a_stopped_run_resumes_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    options = options | {"oversampling": 2, "score_samples": 32}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    first = make_trainer(tmp_path / "stopped", **options)
    first.measure_initial_scores()
    for _ in range(2):
        first.update(first.rollout(first.batch(first.state.step)))
    first.save_checkpoint()
    resumed = make_trainer(tmp_path / "stopped", **options)
    resumed.train()
    assert trained_weights(resumed.unwrapped) == trained_weights(whole.unwrapped)
    assert len(lines(tmp_path / "whole" / "metrics.jsonl")) == whole.config.steps


def test_every_prompt_is_sampled_before_one_is_again() -> None:
    config = ppo_config(batch_size=4, oversampling=2, **REWARD_VALUES)
    indices = [index for step in range(5) for index in response_indices(step, config, 20, seed=3)]
    assert sorted(indices[:20]) == sorted(indices[20:]) == list(range(20))


def test_a_rollout_needs_as_many_prompts_as_it_samples() -> None:
    check_batch_size(ppo_config(batch_size=8, oversampling=2, **REWARD_VALUES), 16, 1)
    with pytest.raises(UserError, match=r"^ppo\.batch_size: 8 with ppo\.oversampling 2 takes 16 prompts, which"):
        check_batch_size(ppo_config(batch_size=8, oversampling=2, **REWARD_VALUES), 15, 1)


def test_scores_are_normalized_by_whole_rollouts() -> None:
    assert normalizing_responses(ppo_config(batch_size=8, oversampling=4, score_samples=40)) == 64


def test_settings_that_need_every_response_are_refused() -> None:
    with pytest.raises(UserError, match=r"^ppo\.kl_target: 5\.0 is for the KL of all sampled responses"):
        check_algorithm(ppo_config(oversampling=2, kl_target=5.0, **REWARD_VALUES))
    with pytest.raises(UserError, match=r"^ppo\.oversampling: 2 reads the sum"):
        check_algorithm(ppo_config(oversampling=2, advantage="gdpo", samples_per_prompt=4))


def test_all_of_them_may_be_sampled_at_once(tmp_path: Path) -> None:
    sampled = make_trainer(tmp_path, oversampling=2, rollout_batch_size=24, **REWARD_VALUES).limits.sampled.rows
    assert sampled == 24
    assert make_trainer(tmp_path, oversampling=2, **REWARD_VALUES).limits.sampled.rows == 16


def test_a_comparison_counts_what_is_sampled_and_scored() -> None:
    config = ppo_config(steps=3, batch_size=8, max_new_tokens=5, oversampling=4, **REWARD_VALUES)
    assert planned_responses(config) == (96, 96 + 3 * 8 * 4)
    assert planned_responses(ppo_config(steps=3, batch_size=8, oversampling=2, **GROUPS)) == (48, 48)


@pytest.mark.parametrize("changes", [{}, {"loss": "dpo", "offline": True, "samples_per_prompt": 2}])
def test_where_nothing_may_be_left_out_it_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^ppo\.oversampling: 2 "):
        check_algorithm(ppo_config(oversampling=2, **changes))


def test_groups_and_values_of_the_reward_may_leave_responses_out() -> None:
    for changes in (REWARD_VALUES, GROUPS, {"loss": "raft", "samples_per_prompt": 4}):
        check_algorithm(ppo_config(oversampling=4, **changes))
