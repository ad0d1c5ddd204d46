"""Values that are the reward's scores of the text so far: what each token changes is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from small_runs import small
from trainers import both, e_rate, make_trainer

from recipes import ppo
from workbench.config.algorithm_checks import check_algorithm
from workbench.config.schema import PPOConfig
from workbench.config.sources import DataSource
from workbench.errors import RewardError, UserError
from workbench.ppo.advantages import estimate_advantages, normalized
from workbench.ppo.algorithm import transform_scores
from workbench.ppo.prefix_values import scale_to_unit, score_prefixes, values_of_prefixes
from workbench.ppo.scoring import UNTRAINED, sampled_ids
from workbench.rewards.contract import CheckedReward
from workbench.run import cli

MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
SCORES = torch.tensor([[1.0, 1.0, -2.0, -1.0], [3.0, 0.5, 9.0, 9.0], [2.0, 9.0, 9.0, 9.0]])


def letters(prompts: list[str], completions: list[str], *, index: list[int], **columns: Any) -> list[float]:
    """Return the number of e's, plus a hundredth of the row's column: a prefix gets the columns of its response."""
    return [text.count("e") + number / 100 for text, number in zip(completions, index, strict=True)]


def options(**changes: Any) -> PPOConfig:
    """Return a configuration with the reward as value function."""
    return PPOConfig(data=DataSource(path="unused"), value_model="reward", **changes)


@both
def test_every_prefix_gets_the_score_of_its_text(architecture: str, tmp_path: Path) -> None:
    run = make_trainer(tmp_path, architecture, reward=letters, value_model="reward")
    rows = run.batch(0)
    rollout = run.rollout(rows)
    assert rollout.prefix_scores is not None
    for row, (ids, scores) in enumerate(zip(sampled_ids(rollout.batch), rollout.prefix_scores, strict=True)):
        texts = [run.tokenizer.decode(ids[: end + 1], skip_special_tokens=True).strip() for end in range(len(ids))]
        expected = [text.count("e") + rows[row]["index"] / 100 for text in texts]
        assert scores[: len(ids)].tolist() == pytest.approx(expected)
        assert scores[len(ids) - 1].item() == rollout.scores[row].item()
        assert not scores[len(ids) :].any()


def test_a_text_that_ends_within_a_character_has_the_score_of_the_text_before_it() -> None:
    class Bytes:
        """A tokenizer with a token for each byte."""

        def batch_decode(self, ids: list[list[int]], skip_special_tokens: bool) -> list[str]:
            return [bytes(tokens).decode(errors="replace") for tokens in ids]

    def length(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        assert not any("\N{REPLACEMENT CHARACTER}" in text for text in completions)
        return [float(len(text)) for text in completions]

    ids = list("a\N{WHITE SMILING FACE}\N{LATIN SMALL LETTER E WITH ACUTE}b".encode())
    batch = tiny.policy("gpt2", lora=True).make_batch([[5]], [ids])
    rows, scores = [{"prompt": "a", "prompt_ids": [5]}], torch.tensor([4.0])
    tokenizer: Any = Bytes()
    prefixes = score_prefixes(CheckedReward(length, "test"), tokenizer, rows, batch, scores, UNTRAINED)
    assert prefixes.tolist() == [[1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 4.0]]


def test_a_reward_that_fails_on_an_unfinished_text_says_so(tmp_path: Path) -> None:
    def finished(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        unfinished = len(completions) > 16
        return [None if unfinished else float(len(text)) for text in completions]

    run = make_trainer(tmp_path, "gpt2", reward=finished, value_model="reward")
    with pytest.raises(RewardError, match=r"an unfinished response; ppo\.value_model shared scores none"):
        run.rollout(run.batch(0))


def test_responses_of_one_token_ask_the_reward_for_no_prefix() -> None:
    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        raise AssertionError

    policy, tokenizer = tiny.policy("gpt2", lora=True), tiny.tokenizer("gpt2")
    batch = policy.make_batch([[5], [6]], [[7], [8]])
    rows = [{"prompt": "a", "prompt_ids": [5]}, {"prompt": "b", "prompt_ids": [6]}]
    scores = torch.tensor([1.0, 2.0])
    prefixes = score_prefixes(CheckedReward(reward, "test"), tokenizer, rows, batch, scores, UNTRAINED)
    assert prefixes.tolist() == [[1.0], [2.0]]


def test_the_value_before_a_token_is_the_score_before_it() -> None:
    values = values_of_prefixes(SCORES, MASK)
    assert values[:, 0].tolist() == [2.0, 2.0, 2.0]  # the mean score after the first token
    assert values[0, 1:].tolist() == [1.0, 1.0, -2.0]
    assert values[1].tolist() == [2.0, 3.0, 0.0, 0.0]
    assert not values[~MASK].any()


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_advantages_are_the_discounted_changes_of_the_score(lam: float, tmp_path: Path) -> None:
    config = {"value_model": "reward", "lam": lam, "kl_coef": 0.0, "score_clip": 2.0, "score_scale": 4.0}
    run = make_trainer(tmp_path, "gpt2", reward=letters, **config)
    rollout = run.rollout(run.batch(0))
    advantages = estimate_advantages(rollout, run.config, run.state).advantages
    assert rollout.prefix_scores is not None
    assert advantages is not None
    scores = transform_scores(rollout.prefix_scores, torch.tensor(False), clip=2.0, scale=4.0)
    start = scores[:, 0].mean().item()
    for mask, row, got in zip(rollout.batch.response_mask, scores.tolist(), advantages.tolist(), strict=True):
        length = int(mask.sum())
        before = [start, *row[: length - 1]]
        changes = [after - earlier for after, earlier in zip(row[:length], before, strict=True)]
        expected = [sum(lam**k * change for k, change in enumerate(changes[t:])) for t in range(length)]
        assert got[:length] == pytest.approx(expected, abs=1e-6)
        assert not any(got[length:])


def test_a_token_that_changes_nothing_has_no_advantage(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, "gpt2", reward=letters, value_model="reward", lam=0.0, kl_coef=0.0)
    rollout = run.rollout(run.batch(0))
    mask = rollout.batch.response_mask
    estimates = normalized(estimate_advantages(rollout, run.config, run.state), mask, run.config)
    assert rollout.prefix_scores is not None
    assert estimates.advantages is not None
    is_same = torch.zeros_like(mask)
    is_same[:, 1:] = mask[:, 1:] & (rollout.prefix_scores.diff(dim=1) == 0)
    assert is_same.any()
    assert not estimates.advantages[is_same].any()
    assert estimates.advantages[mask].square().mean().item() == pytest.approx(1, abs=1e-4)


def test_two_processes_scale_and_start_as_one_does() -> None:
    def of_both(function: Any) -> list[torch.Tensor]:
        partial_sums: list[torch.Tensor] = []
        for part in (slice(0, 1), slice(1, 3)):
            function(SCORES[part], MASK[part], lambda sums: partial_sums.append(sums) or sums)
        total = torch.stack(partial_sums).sum(dim=0)
        return [function(SCORES[part], MASK[part], lambda _: total) for part in (slice(0, 1), slice(1, 3))]

    for function in (scale_to_unit, values_of_prefixes):
        assert torch.allclose(torch.cat(of_both(function)), function(SCORES, MASK))


def test_scaling_divides_by_the_root_mean_square_and_shifts_nothing() -> None:
    scaled = scale_to_unit(SCORES, MASK)
    assert torch.allclose(scaled[MASK], SCORES[MASK] / SCORES[MASK].square().mean().sqrt())
    assert not scaled[~MASK].any()
    assert not scale_to_unit(torch.zeros(3, 4), MASK).any()


@both
def test_the_policy_learns_what_the_reward_asks_for(architecture: str, tmp_path: Path) -> None:
    run = make_trainer(tmp_path, architecture, reward=e_rate, value_model="reward", steps=12, kl_coef=0.0)
    before = run.rollout(run.batch(0)).scores.mean()
    run.train()
    assert run.rollout(run.batch(0)).scores.mean() > before + 0.2


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"vf_coef": 0.5}, "ppo.vf_coef"),
        ({"value_warmup_steps": 2}, "ppo.value_warmup_steps"),
        ({"value_learning_rate": 1e-3}, "ppo.value_learning_rate"),
        ({"value_clip_range": 0.5}, "ppo.value_clip_range"),
        ({"advantage": "rloo", "samples_per_prompt": 2}, "ppo.value_model"),
        ({"loss": "raft", "samples_per_prompt": 2}, "ppo.value_model"),
    ],
)
def test_settings_that_it_would_not_read_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        check_algorithm(options(**changes))


def test_the_plan_says_what_it_costs(tmp_path: Path, in_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        *small("quickstart", tmp_path),
        "--sft",
        "null",
        "--ppo.value_model",
        "reward",
        "--ppo.value_learning_rate",
        "null",
    ]
    cli.launch([ppo.STAGE], "", [*options, "--ppo.batch_size", "8", "--ppo.max_new_tokens", "6", "--dry_run"])
    output = capsys.readouterr().out
    assert "values from the reward" in output
    assert "ppo.value_model: the reward scores up to 40 unfinished responses a step, beside 8 whole ones" in output


def test_discount_and_lambda_are_its_own() -> None:
    check_algorithm(options(lam=0.9, gamma=0.99))
