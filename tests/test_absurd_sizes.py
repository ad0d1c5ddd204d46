"""Sizes that no machine can train are refused, what this machine cannot hold is a warning, and large is not absurd."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from configs import GOOD, VALIDATION, load
from small_runs import small

from recipes import ppo, reward, sft
from reward_models import compare as reward_compare
from reward_models import serve
from workbench import compare
from workbench.config.parsing import parse
from workbench.errors import UserError
from workbench.export import command as export
from workbench.models import memory_plan
from workbench.playground import command as playground
from workbench.report import run_list

BILLION = "1000000000"
TRAIN = "{model: m, data: {path: p}, validation: {path: p}, target_label: a, lora: {}}"
SECTIONS = ["--reward.train", TRAIN, "--sft", "{data: {path: s}}", *VALIDATION]
LARGEST = {
    **{f"{section}.epochs": 100_000 for section in ("sft", "reward.train")},
    **{f"{section}.learning_rate": 10 for section in ("sft", "reward.train", "ppo")},
    **{f"{section}.batch_size": 2**20 for section in ("sft", "reward.train", "ppo", "evaluation")},
    **{f"{section}.max_new_tokens": 2**20 for section in ("ppo", "evaluation")},
    **{f"{section}.temperature": 100 for section in ("ppo", "evaluation")},
    **{f"{section}.lora.{name}": 2**16 for section in ("policy", "reward.train") for name in ("r", "alpha")},
    "sft.max_steps": 10_000_000,
    "ppo.steps": 10_000_000,
    "ppo.epochs": 1000,
    "ppo.value_learning_rate": 10,
    "sft.micro_batch_size": 2**20,
    "ppo.minibatch_size": 2**20,
    "ppo.micro_batch_size": 2**20,
    "reward.train.max_tokens": 2**20,
    "ppo.min_token_limit": 2**20,
    "ppo.score_samples": 1_000_000,
    "evaluation.samples": 10_000,
    "evaluation.seeds": 2**32 - 1,
    "seed": 2**32 - 1,
}


@pytest.mark.parametrize("key", LARGEST)
def test_an_absurd_size_is_refused_with_its_limit(key: str, tmp_path: Path) -> None:
    value = f"[{10**12}]" if key == "evaluation.seeds" else str(10**12)
    with pytest.raises(
        UserError, match=rf"^{key}(\[0\])?: {10**12}(\.0)? must be (0 or )?(between .* and|at most) {LARGEST[key]}"
    ):
        load(tmp_path, GOOD, *SECTIONS, f"--{key}", value)


def test_what_a_large_machine_could_do_is_allowed(tmp_path: Path) -> None:
    large = {"policy.lora.r": 4096, "ppo.steps": 1_000_000, "ppo.batch_size": 65_536, "ppo.max_new_tokens": 131_072}
    off = {"ppo.clip_range": BILLION, "ppo.max_grad_norm": BILLION, "ppo.checkpoint_every": BILLION}
    options = [f"--{key}={value}" for key, value in (large | off).items()]
    config = load(tmp_path, GOOD, *options, "--ppo.minibatch_size", "1024", "--evaluation.samples", "1000")
    assert config.ppo is not None
    assert config.ppo.batch_size == 65_536


def test_a_warmup_of_the_values_that_never_ends_is_refused(tmp_path: Path) -> None:
    load(tmp_path, GOOD, "--ppo.value_warmup_steps", "99")
    with pytest.raises(UserError, match=r"ppo\.value_warmup_steps: 100 of 100 ppo\.steps .* never change; lower it"):
        load(tmp_path, GOOD, "--ppo.value_warmup_steps", "100")


def test_an_adapter_of_a_higher_rank_than_every_weight_is_refused(tmp_path: Path) -> None:
    for rank, message in ((128, ""), (60_000, r"policy\.lora\.r: 60000 is above \d+, the rank of the largest weight")):
        config = parse(small("quickstart", tmp_path, "--policy.lora.r", str(rank)))[0]
        if not message:
            sft.STAGE.plan(config)
            continue
        with pytest.raises(UserError, match=message):
            sft.STAGE.plan(config)


@pytest.mark.parametrize(("stage", "key"), [(sft.STAGE, "sft.micro_batch_size"), (ppo.STAGE, "ppo.micro_batch_size")])
def test_the_memory_is_that_of_the_longest_texts_and_too_much_is_a_warning(
    stage: object, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(*options: str) -> list[str]:
        return stage.plan(parse(small("quickstart", tmp_path, *options))[0]).lines  # type: ignore[attr-defined]

    def tokens(*options: str) -> int:
        (line,) = [line for line in lines(*options) if line.startswith("memory about")]
        return int(line.split()[-2])

    assert not [line for line in lines() if "warning" in line]
    if stage is ppo.STAGE:
        assert tokens("--ppo.max_new_tokens", "100") == tokens("--ppo.max_new_tokens", "40") + 60
    monkeypatch.setattr(memory_plan, "machine_memory", lambda: 2**20)
    warning = "warning: this machine has 0.0 GiB of memory; shorten the texts"
    assert [line for line in lines() if line.startswith(warning)]
    monkeypatch.setattr(memory_plan, "machine_memory", lambda: 20 * 2**20)
    assert [line for line in lines() if re.search(rf"memory; set {key} to \d+$", line)]


def test_early_stopping_that_never_evaluates_is_refused(tmp_path: Path) -> None:
    options = small("quickstart", tmp_path, "--reward.model", "null", "--reward.train.early_stopping", "1")
    with pytest.raises(UserError, match=r"early_stopping: .*save_every 200 steps, but training has only 2; lower"):
        reward.STAGE.plan(parse(options)[0])
    reward.STAGE.plan(parse([*options, "--reward.train.save_every", "1"])[0])


@pytest.mark.parametrize(
    "value", ["a" * 300, "runs/" + "b" * 300, "a/" * 2000, " ", "a\nb"], ids=lambda value: value[:6]
)
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (run_list.main, []),
        (run_list.main, ["--folder"]),
        (compare.main, ["runs"]),
        (compare.main, ["a", "b", "--output"]),
        (export.main, ["--to", "x", "--run"]),
        (export.main, ["--run", "x", "--to"]),
        (playground.main, ["--run"]),
        (reward_compare.main, ["--models", "length", "toy_lexicon", "--data"]),
        (reward_compare.main, ["--models", "length", "toy_lexicon", "--data", "x", "--save"]),
        (serve.serve, ["--model"]),
    ],
)
def test_a_path_that_no_file_can_have_is_one_line(
    command: Callable[[list[str]], None], arguments: list[str], value: str
) -> None:
    with pytest.raises(UserError, match=r"is (too long|blank)|has a control character") as refusal:
        command([*arguments, value])
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
