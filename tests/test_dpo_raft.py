"""DPO and RAFT on the policy's own samples, and DPO on pairs from data: losses, selection, training and refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from plain_references import plain_logprobs
from small_runs import small
from trainers import CONFIG, both, either, interrupting, lines, make_rows, make_trainer, step, trained_weights

from recipes import ppo
from workbench.config.checks import check_ppo
from workbench.errors import Interrupted, UserError
from workbench.ppo.preferences import best_and_worst, dpo_loss
from workbench.ppo.sampler import check_batch_size
from workbench.run import cli

losses = pytest.mark.parametrize("loss", ["dpo", "raft"])
GROUPS: dict[str, Any] = {"samples_per_prompt": 4}
BETA = 0.3


def test_the_best_and_the_worst_of_each_prompt() -> None:
    rewards = torch.tensor([0.1, 0.9, 0.9, 0.0, 5.0, 5.0, 5.0, 5.0, -3.0, -1.0, -2.0, -3.0])
    best, worst, differ = best_and_worst(rewards, 4)
    assert best.tolist() == [1, 4, 9], "of equals the first"
    assert worst.tolist() == [3, 4, 8]
    assert differ.tolist() == [True, False, True]


def test_the_loss_of_a_pair_is_that_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs, reference = (torch.randn(6, 5, generator=generator).double() for _ in range(2))
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [4], [2], [5]])
    computed = dpo_loss(logprobs, reference, mask, BETA)
    for pair in range(3):
        chosen, rejected = (
            sum(float(logprobs[row, t] - reference[row, t]) for t in range(int(mask[row].sum())))
            for row in (2 * pair, 2 * pair + 1)
        )
        assert float(computed.losses[pair]) == pytest.approx(math.log1p(math.exp(-BETA * (chosen - rejected))))
        assert float(computed.chosen_rewards[pair]) == pytest.approx(BETA * chosen)
        assert float(computed.rejected_rewards[pair]) == pytest.approx(BETA * rejected)


def moved_run(folder: Path, architecture: str, **changes: Any) -> Any:
    """Return a trainer whose policy is not its reference."""
    settings = {"kl_coef": BETA, "epochs": 1, "minibatch_size": 16, "max_grad_norm": 1e9} | GROUPS | changes
    run = make_trainer(folder, architecture, lora=False, self_checks=False, **settings)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in run.unwrapped.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return run


@pytest.mark.parametrize("micro_batch_size", [None, 3])
@both
def test_dpo_has_the_gradient_of_the_naive_loss(
    micro_batch_size: int | None, architecture: str, tmp_path: Path
) -> None:
    run = moved_run(tmp_path, architecture, loss="dpo", micro_batch_size=micro_batch_size)
    rollout = run.rollout(run.batch(0))
    rollout.scores.copy_(torch.rand(16))
    rollout.scores[4:8] = 0.25  # a prompt whose responses are all equally good teaches nothing
    policy, mask = run.unwrapped, rollout.batch.response_mask
    logprobs = policy(rollout.batch, 1.0).logprobs
    naive = []
    for first in (0, 8, 12):
        group = rollout.scores[first : first + 4].tolist()
        chosen, rejected = first + group.index(max(group)), first + group.index(min(group))
        terms = [((logprobs - rollout.ref_logprobs) * mask)[row].sum() for row in (chosen, rejected)]
        naive.append(torch.log1p(torch.exp(-BETA * (terms[0] - terms[1]))))
        plain = plain_logprobs(policy.model, architecture, rollout.batch, chosen)
        torch.testing.assert_close(logprobs[chosen][mask[chosen]], plain, atol=1e-4, rtol=1e-4)
    loss = torch.stack(naive).mean()
    trained = [p for p in policy.parameters() if p.requires_grad]
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]).norm()
    metrics = run.update(rollout)
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert metrics["dpo/loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert metrics["optimizer_steps"] == 1


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
@both
def test_raft_has_the_gradient_of_the_likelihood_of_the_best(kl_in: str, architecture: str, tmp_path: Path) -> None:
    run = moved_run(tmp_path, architecture, loss="raft", kl_in=kl_in)
    rollout = run.rollout(run.batch(0))
    policy, mask = run.unwrapped, rollout.batch.response_mask
    logprobs, reference = policy(rollout.batch, 1.0).logprobs, rollout.ref_logprobs
    rollout.scores.copy_(torch.rand(16))
    totals = rollout.scores.clone()
    if kl_in == "reward":
        totals -= BETA * ((rollout.logprobs - reference) * mask).sum(dim=1)
    best = [first + int(totals[first : first + 4].argmax()) for first in range(0, 16, 4)]
    loss = -(logprobs * mask)[best].sum()
    if kl_in == "loss":
        difference = reference - logprobs
        k3 = (logprobs - rollout.logprobs).exp() * (difference.exp() - difference - 1)
        loss = loss + BETA * (k3 * mask)[best].sum()
    loss = loss / mask[best].sum()
    trained = [p for p in policy.parameters() if p.requires_grad]
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]).norm()
    assert run.update(rollout)["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


@losses
@both
@either
def test_the_policy_learns(loss: str, architecture: str, lora: bool, tmp_path: Path) -> None:
    settings = {"steps": 15, "schedule": "constant", "kl_coef": 0.05, "max_new_tokens": 12}
    run = make_trainer(tmp_path, architecture, lora=lora, loss=loss, batch_size=32, **GROUPS, **settings)
    assert run.unwrapped.value_head is None
    run.train()
    log = lines(tmp_path / "metrics.jsonl")
    assert not [name for name in log[0] if name.startswith(("value/", "returns/", "advantages/"))]
    first, last = (statistics.mean(line["objective/score_mean"] for line in part) for part in (log[:2], log[-2:]))
    assert last > first + 0.03
    # As many as PPO takes of the same batch and minibatch, but for those in which no response is better.
    assert log[0]["optimizer_steps"] == 2 * 4 or (loss == "dpo" and 0 < log[0]["optimizer_steps"] < 2 * 4)


@losses
def test_a_stopped_run_resumes_to_the_same_weights(loss: str, tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", loss=loss, **GROUPS)
    whole.train()
    with pytest.raises(Interrupted, match="saved at step 3 of 4"):
        make_trainer(tmp_path / "stopped", loss=loss, reward=interrupting(3), **GROUPS).train()
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "stopped", loss=loss, **GROUPS)
    resumed.train()
    assert trained_weights(resumed.unwrapped) == trained_weights(whole.unwrapped)


def test_a_batch_without_a_better_response_changes_nothing(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, loss="dpo", reward=lambda prompts, completions, **columns: [0.0] * 16, **GROUPS)
    before = trained_weights(run.unwrapped)
    _, metrics = step(run)
    assert trained_weights(run.unwrapped) == before
    assert metrics["objective/equal_scores_rate"] == 1
    assert metrics["dpo/loss"] == metrics["grad_norm"] == 0


def test_momentum_does_not_move_the_policy_where_no_response_is_better(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, loss="dpo", **GROUPS)
    step(run)
    before = trained_weights(run.unwrapped)
    rollout = run.rollout(run.batch(1))
    rollout.scores.fill_(0.5)
    assert run.update(rollout)["optimizer_steps"] == 0
    assert trained_weights(run.unwrapped) == before


def pairs(architecture: str) -> list[dict[str, Any]]:
    """Return prompts with a chosen response of many e and a rejected one of none."""
    tokenizer = tiny.tokenizer(architecture)
    texts = {"chosen": "eeee", "rejected": "baba ab"}
    ids = {f"{name}_ids": [*tokenizer(text).input_ids, tokenizer.eos_token_id] for name, text in texts.items()}
    if architecture == "t5":  # its tokenizer adds the EOS
        ids = {name: row[:-1] for name, row in ids.items()}
    return [row | texts | ids for row in make_rows(architecture, 40)]


@both
@either
def test_dpo_on_pairs_from_data_samples_nothing_and_needs_no_reward(
    architecture: str, lora: bool, tmp_path: Path
) -> None:
    def offline(folder: Path) -> Any:
        settings = {"loss": "dpo", "offline": True, "samples_per_prompt": 2, "kl_coef": 0.1, "steps": 6}
        run = make_trainer(folder, architecture, lora=lora, reward=None, **settings)
        run.rows = pairs(architecture)
        return run

    run = offline(tmp_path / "whole")
    rollout = run.rollout(run.batch(0))
    assert rollout.completions == ["eeee", "baba ab"] * 8
    assert rollout.prompts[0] == rollout.prompts[1]
    assert rollout.scores.tolist() == [1.0, 0.0] * 8
    for row in (0, 1):
        plain = plain_logprobs(run.unwrapped.model, architecture, rollout.batch, row)
        mask = rollout.batch.response_mask[row]
        torch.testing.assert_close(rollout.logprobs[row][mask], plain, atol=1e-4, rtol=1e-4)
    run.train()
    log = lines(tmp_path / "whole" / "metrics.jsonl")
    assert log[0]["dpo/accuracy"] < 1
    assert not [name for name in log[-1] if name.startswith("objective/kl") and name != "objective/kl_coef"]
    assert log[-1]["dpo/accuracy"] == 1
    assert log[-1]["dpo/margin"] == pytest.approx(log[-1]["dpo/chosen_reward"] - log[-1]["dpo/rejected_reward"])
    assert log[-1]["dpo/margin"] > 0.5
    again = offline(tmp_path / "again")
    again.train()
    assert trained_weights(again.unwrapped) == trained_weights(run.unwrapped)


def test_a_sanity_pair_is_scored_on_prompts_that_the_reward_gets(tmp_path: Path) -> None:
    def scored(prompts: list[str], completions: list[str], *, reference: list[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    settings = {"loss": "dpo", "offline": True, "samples_per_prompt": 2, "kl_coef": 0.1, "steps": 1}
    run = make_trainer(tmp_path, reward=scored, validation=4, **settings)
    run.rows, run.sanity_pair = pairs("gpt2"), ["longer", "short"]
    run.validation_rows = [row | {"reference": "ab"} for row in run.validation_rows]
    run.train()
    run.sanity_pair = ["short", "longer"]
    with pytest.raises(UserError, match=r"^reward\.sanity_pair: 'short' scores 5 and 'longer' scores 6"):
        run.check_start(run.rollout(run.batch(0)), {})


def test_a_sanity_pair_needs_prompts_that_the_reward_gets(in_project: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    row = {"question": "good day", "chosen": "hello", "rejected": "go away"}
    file.write_text(
        "".join(json.dumps(row | {"question": f"good day {n}"}) + "\n" for n in range(40)), encoding="utf-8"
    )
    settings = {
        "loss": "dpo",
        "offline": True,
        "samples_per_prompt": 2,
        "batch_size": 8,
        "minibatch_size": 8,
        "steps": 1,
        "data": {"path": str(file), "template": "{question}"},
    }
    options = small(
        "quickstart", tmp_path / "runs", "--reward.model", "length", "--reward.sanity_pair", '["a b c", "a"]'
    )
    cli.launch(
        [ppo.STAGE], "", [*options, "--sft", "null", "--ppo", "null", "--ppo", json.dumps(settings), "--dry_run"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "dpo"}, "ppo.samples_per_prompt: 1 leaves ppo.loss dpo no other response to compare one with"),
        ({"loss": "raft"}, "ppo.samples_per_prompt: 1 leaves ppo.loss raft no other response"),
        ({"loss": "dpo", "advantage": "rloo", **GROUPS}, "ppo.advantage: rloo is for ppo.loss clip, and it is dpo"),
        ({"loss": "raft", "clip_range": 0.1, **GROUPS}, "ppo.clip_range: 0.1 is for ppo.loss clip, and it is raft"),
        ({"loss": "raft", "entropy_coef": 0.1, **GROUPS}, "ppo.entropy_coef: 0.1 is for ppo.loss clip"),
        ({"loss": "dpo", "kl_coef": 0.0, **GROUPS}, "ppo.kl_coef: it is the beta of DPO, and 0 leaves the loss"),
        ({"loss": "dpo", "micro_batch_size": 1, **GROUPS}, "ppo.micro_batch_size: 1 is less than a pair"),
        ({"loss": "dpo", "kl_in": "reward", **GROUPS}, "ppo.kl_in: the loss of DPO contains the KL penalty"),
        ({"loss": "dpo", "kl_estimator": "k3", **GROUPS}, "ppo.kl_estimator: k3 is for a penalty in the reward"),
        ({"loss": "dpo", "value_model": "separate", **GROUPS}, "ppo.value_model: separate is about values, which"),
        ({"offline": True}, "ppo.offline: only ppo.loss dpo learns from chosen and rejected responses, and it is clip"),
        ({"loss": "dpo", "offline": True, **GROUPS}, "ppo.samples_per_prompt: 4, but with ppo.offline a prompt has"),
        (
            {"loss": "dpo", "offline": True, "samples_per_prompt": 2, "score_clip": 1.0},
            "ppo.score_clip: 1.0 is about sampled responses, and ppo.offline takes those of the data; remove it",
        ),
    ],
)
def test_settings_that_would_not_be_read_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_ppo(dataclasses.replace(CONFIG, **changes))
    assert str(error.value).startswith(message)


def test_a_policy_has_a_value_head_exactly_where_values_are_learned(tmp_path: Path) -> None:
    without, having = (tiny.policy("gpt2", lora=True, with_values=values) for values in (False, True))
    with pytest.raises(UserError, match=r"ppo\.advantage: gae learns values, and the policy has no value head"):
        make_trainer(tmp_path, policy=without)
    with pytest.raises(UserError, match=r"ppo\.advantage rloo: it learns no values, and the policy has a value head"):
        make_trainer(tmp_path, policy=having, advantage="rloo", **GROUPS)
    with pytest.raises(UserError, match=r"ppo\.loss raft: it learns no values"):
        make_trainer(tmp_path, policy=having, loss="raft", **GROUPS)


def test_a_minibatch_has_whole_prompts_on_every_process() -> None:
    config = dataclasses.replace(CONFIG, loss="dpo", **GROUPS)
    check_batch_size(config, 40, 2)
    with pytest.raises(UserError, match="minibatch_size: 8 over 4 processes must be a multiple"):
        check_batch_size(dataclasses.replace(config, batch_size=32), 40, 4)
