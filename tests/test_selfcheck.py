"""What would fail silently is refused before the first update, and odd input is refused or stays finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from trainers import both, make_trainer, step

from workbench.data.templates import PROMPT_MESSAGES
from workbench.errors import RewardError, UserError
from workbench.models.policy import Batch, Policy
from workbench.ppo.plan import missing_columns_line


@both
@pytest.mark.parametrize("shared", ["nothing frozen", "one weight", "all weights"])
def test_a_reference_that_would_follow_the_policy_is_refused(architecture: str, shared: str, tmp_path: Path) -> None:
    model, reference = tiny.model(architecture), tiny.model(architecture)
    if shared == "one weight":
        reference.set_input_embeddings(model.get_input_embeddings())
    references = {"nothing frozen": None, "one weight": reference, "all weights": model}
    policy = Policy(model, tiny.tokenizer(architecture), reference=references[shared])
    with pytest.raises(UserError, match="the reference shares weights with the policy"):
        step(make_trainer(tmp_path, architecture, policy=policy))


@both
def test_an_adapter_that_no_gradient_reaches_is_refused_by_name(architecture: str, tmp_path: Path) -> None:
    policy = tiny.policy(architecture, lora=True)
    name, layer = next((n, m) for n, m in policy.named_modules() if isinstance(m, BaseTunerLayer))
    with torch.no_grad():  # without its adapter the layer must still say what the reference's says
        for adapter in ("sft", "policy"):
            layer.lora_B[adapter].weight.zero_()
    layer.forward = layer.get_base_layer().forward
    with pytest.raises(UserError, match=rf"no gradient reaches 2 of the trained weights \(first: {name}"):
        step(make_trainer(tmp_path, architecture, policy=policy))


@both
@pytest.mark.parametrize(("fraction", "refused"), [(0.3, False), (0.7, True)])
def test_adapters_at_zero_gradient_are_refused_when_they_are_most(
    architecture: str, fraction: float, refused: bool, tmp_path: Path
) -> None:
    policy = tiny.policy(architecture, lora=True)
    lora_b = [p for name, p in policy.named_parameters() if "lora_B" in name and ".policy." in name]
    for parameter in lora_b[: round(fraction * len(lora_b))]:
        parameter.register_hook(lambda gradient: gradient * 0)
    run = make_trainer(tmp_path, architecture, policy=policy)
    if refused:
        with pytest.raises(UserError, match="no gradient reaches"):
            step(run)
    else:
        step(run)


def half_precision(architecture: str) -> Policy:
    """Return a policy whose products are in bf16."""
    return Policy(tiny.policy(architecture, lora=True).model, tiny.tokenizer(architecture), autocast=torch.bfloat16)


@both
def test_another_order_of_summation_is_no_error(architecture: str, tmp_path: Path) -> None:
    run = make_trainer(tmp_path, architecture, policy=half_precision(architecture), micro_batch_size=8)
    rollout = run.rollout(run.batch(0))
    noise = torch.randn(rollout.logprobs.shape, generator=torch.Generator().manual_seed(0)) * 0.065
    assert noise[rollout.batch.response_mask].abs().max() > 0.15, "more than any single token may be off"
    rollout.logprobs.add_(noise * rollout.batch.response_mask)
    run.update(rollout)


@both
@pytest.mark.parametrize("is_half", [False, True])
def test_dropout_is_an_error_in_any_precision(architecture: str, is_half: bool, tmp_path: Path) -> None:
    policy = half_precision(architecture) if is_half else tiny.policy(architecture, lora=True)
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    run = make_trainer(tmp_path, architecture, policy=policy, micro_batch_size=8)
    rollout = run.rollout(run.batch(0))
    policy.train()
    with pytest.raises(UserError, match="is dropout on"):
        run.update(rollout)


def test_a_sanity_pair_the_wrong_way_round_is_refused_unless_checks_are_off(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, "gpt2")
    run.sanity_pair = ["xxx", "eee"]
    with pytest.raises(UserError, match=r"reward.sanity_pair: 'xxx' scores 0 and 'eee' scores 1"):
        step(run)
    unchecked = make_trainer(tmp_path, "gpt2", self_checks=False)
    unchecked.sanity_pair = ["xxx", "eee"]
    step(unchecked)
    run.sanity_pair = ["eee", "xxx"]
    step(run)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([], "a rollout needs prompts"),
        ([3, 0], "row 1 has a prompt without tokens"),
        ([3, 57], "row 1 has 57 prompt tokens, which with 8 response tokens exceed the model's context length of 64"),
    ],
)
def test_prompts_without_room_for_a_response_are_refused(lengths: list[int], message: str, tmp_path: Path) -> None:
    rows = [{"prompt": "a" * length, "prompt_ids": [5] * length} for length in lengths]
    with pytest.raises(UserError, match=message):
        make_trainer(tmp_path, "gpt2").rollout(rows)
    fitting = [{"prompt": "a" * 56, "prompt_ids": [5] * 56}]
    assert len(make_trainer(tmp_path, "gpt2").rollout(fitting)) == 1


def test_the_plan_names_columns_that_validation_prompts_lack() -> None:
    row = {"prompt": "a", "prompt_ids": [5], "topic": "work", "reference": "b"}
    assert missing_columns_line([row], [row | {"another": "column"}]) == []
    assert missing_columns_line([row | {PROMPT_MESSAGES: []}], [row]) == []  # only the training prompts are a chat
    assert missing_columns_line([row], []) == []
    (line,) = missing_columns_line([row], [{"prompt": "a", "prompt_ids": [5]}])
    assert line.startswith("ppo.validation: has no column reference, topic, which ppo.data has")


@both
def test_a_response_that_stops_at_once_is_counted_and_learned_from(architecture: str, tmp_path: Path) -> None:
    run = make_trainer(tmp_path, architecture)
    policy, eos = run.unwrapped, int(run.unwrapped.stop_ids[0])
    generate = policy.generate

    def stopping_at_once(*arguments: Any, **options: Any) -> Batch:
        batch = generate(*arguments, **options)
        ids, mask = batch.response_ids, batch.response_mask
        ids[:8], mask[:8] = policy.pad_id, False
        ids[:8, 0], mask[:8, 0] = eos, True
        return batch

    policy.generate = stopping_at_once
    rollout, metrics = step(run)
    assert rollout.completions[:8] == [""] * 8
    assert metrics["response/empty_rate"] >= 0.5
    assert metrics["response/length_min"] == 1
    assert (rollout.logprobs[:8, 0] < 0).all()
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("returned", "message"), [([0.5], "1 numbers for 16 texts"), ([math.nan] * 16, "row 0"), (["good"] * 16, "'good'")]
)
def test_a_reward_that_does_not_keep_its_contract_is_named(returned: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=message):
        step(make_trainer(tmp_path, "gpt2", reward=lambda prompts, completions, **_: returned))
