"""What test_processes starts in two processes, each scenario by its name; the first process writes the results."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import io
import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from small_runs import drop, small
from torch import Tensor
from trainers import VALUES, e_rate, initial_policy, make_rows, make_trainer, minibatches_in_order, untimed

from recipes import evaluation, ppo
from workbench.config.derived import scores_prefixes
from workbench.config.schema import PPOConfig
from workbench.config.sources import DataSource
from workbench.errors import Interrupted, UserError
from workbench.evaluation.generation import ComparedModel, Sampling, sample_completions
from workbench.models.policy import Batch, Policy
from workbench.models.sampling import is_truncated
from workbench.models.sharding import full_tensor
from workbench.ppo import trainer as trainer_module
from workbench.ppo import update as update_module
from workbench.ppo.rollout import Rollout, decode, score_tokens
from workbench.ppo.trainer import PPOTrainer
from workbench.rewards.arguments import RewardLog
from workbench.run import cli
from workbench.run.distributed import reset_accelerate
from workbench.run.process import quiet_libraries

PROCESSES = 2
Kind = tuple[str, bool, str]  # architecture, lora, and the value model, or what learns without values
KINDS: list[Kind] = list(itertools.product(tiny.ARCHITECTURES, (True, False), VALUES))
# Every pair of values is among these, but for full fine-tuning without values.
RUN_KINDS: list[Kind] = [
    *(("gpt2", True, "shared"), ("gpt2", False, "separate"), ("gpt2", True, "rloo")),
    *(("t5", True, "separate"), ("t5", False, "shared"), ("t5", True, "rloo")),
]
CONFIG = PPOConfig(
    data=DataSource(path="unused"),
    steps=4,
    batch_size=16,
    minibatch_size=8,
    micro_batch_size=3,
    epochs=2,
    learning_rate=1e-2,
    max_new_tokens=8,
    checkpoint_every=4,
)


def name(architecture: str, lora: bool, values: str) -> str:
    """Return one of KINDS as a file name."""
    return f"{architecture}-{'lora' if lora else 'full'}-{values}"


def trainer(folder: Path, kind: Kind, prepare: Callable[[Policy], None] | None = None, **options: Any) -> PPOTrainer:
    """Return a trainer of a tiny policy, the same in every process, after `prepare` has changed it."""
    architecture, lora, values = kind
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, **VALUES[values])
    policy = initial_policy(architecture, config, lora=lora)
    if policy.value_head is not None:
        torch.nn.init.normal_(policy.value_head.weight, std=0.1)
    if prepare is not None:
        prepare(policy)
    return make_trainer(folder, architecture, config=config, policy=policy, **options)


def uneven_rollout(run: PPOTrainer) -> Rollout:
    """Return this process's part of a rollout: short responses in its first half, long ones in the other."""
    policy, size = run.unwrapped, run.config.batch_size
    generator = torch.Generator().manual_seed(7)
    lengths = torch.tensor([1 + i % 2 if i < size // 2 else 6 + i % 3 for i in range(size)])
    first = run.accelerator.process_index * run.batch_size
    part = slice(first, first + run.batch_size)
    longest = int(lengths[part].max())
    ids = torch.randint(5, len(run.tokenizer), (size, run.config.max_new_tokens), generator=generator)[part, :longest]
    mask = torch.arange(longest) < lengths[part].unsqueeze(1)
    ids = ids.masked_fill(~mask, policy.pad_id)
    batch = Batch(*policy.pad_prompts([row["prompt_ids"] for row in run.rows[part]]), ids, mask)
    scores = torch.randn(size, generator=generator)
    prefix_scores = torch.randn(size, run.config.max_new_tokens, generator=generator)[part, :longest]
    return Rollout(
        batch=batch,
        **score_tokens(policy, batch, run.config.temperature, size)._asdict(),
        scores=scores[part],
        sampled_scores=scores[part],
        terms={},
        weights={},
        log=RewardLog(len(mask), {"everywhere": [2.0]} | ({"main": [1.0]} if first == 0 else {})),
        truncated=is_truncated(ids, mask, policy.stop_ids),
        prompts=[row["prompt"] for row in run.rows[part]],
        completions=decode(run.tokenizer, batch),
        prefix_scores=prefix_scores if scores_prefixes(run.config) else None,
        seconds={"generate": 1.0},
    )


def first_update(
    folder: Path, kind: Kind, prepare: Callable[[Policy], None] | None = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return metrics and weights after the update on the same uneven rollout, however many processes divide it."""
    # Adam's step on a gradient near 0 is a fraction of the rate by rounding, which the tolerance of 1e-5 must exceed.
    run = trainer(folder, kind, prepare, entropy_coef=0.01, value_clip_range=0.05, learning_rate=1e-3)
    with mock.patch.object(update_module, "minibatches", partial(minibatches_in_order, PROCESSES)):
        metrics = run.update(uneven_rollout(run))
    trained = {key: value for key, value in run.unwrapped.named_parameters() if value.requires_grad}
    return metrics, {key: full_tensor(value.detach()) for key, value in trained.items()}


def completions(architecture: str, prompts: int) -> list[list[dict[str, Any]]]:
    """Return the adapter's completions of the first `prompts` prompts, twice each, in their order."""
    policy = tiny.policy(architecture, lora=True)
    sampled = sample_completions(
        ComparedModel("aligned", policy, "policy", tiny.tokenizer(architecture), policy, with_token_log_ratios=True),
        make_rows(architecture, prompts),
        Sampling(batch_size=2, max_new_tokens=8, temperature=1.0, seeds=(3, 4)),
        accelerator=Accelerator(cpu=True),
        label="test",
    )
    return [[dataclasses.asdict(completion) for completion in row] for row in sampled]


def updates(folder: Path) -> None:
    """Take first_update of every kind; both processes must come to the same weights."""
    for kind in KINDS:
        metrics, weights = first_update(folder / name(*kind), kind)
        everyone = gather_object([{key: value.clone() for key, value in weights.items()}])
        for key, value in everyone[0].items():
            assert torch.equal(value, everyone[1][key]), f"{kind}: {key} differs between the processes"
        if Accelerator(cpu=True).is_main_process:
            torch.save({"metrics": metrics, "weights": weights}, folder / f"{name(*kind)}.pt")


def lengths(folder: Path) -> None:
    """Train with responses of one token on one process and of the limit on the other, alternating by step."""
    for number, kind in enumerate(RUN_KINDS):
        run = trainer(
            folder / name(*kind),
            kind,
            validation=(1, 5)[number % 2],
            steps=3,
            batch_size=8,
            minibatch_size=4,
            checkpoint_every=1,
            score_samples=8,
            min_token_limit=2,
            target_kl=1e-4,
            kl_target=1.0,
            value_warmup_steps=1,
            reward=lambda prompts, completions, **columns: [float(len(text)) for text in completions],
        )

        def uneven(
            prompt_ids: Tensor, mask: Tensor, *, max_new_tokens: int, run: PPOTrainer = run, **options: Any
        ) -> Batch:
            if (run.state.step + run.accelerator.process_index) % 2:
                ids = run.unwrapped.stop_ids[:1].expand(len(prompt_ids), 1)
            else:
                ids = torch.randint(5, 30, (len(prompt_ids), max_new_tokens))
            return Batch(prompt_ids, mask, ids, torch.ones_like(ids, dtype=torch.bool))

        with mock.patch.object(run.unwrapped, "generate", uneven):
            run.train()


def resumes(folder: Path) -> None:
    """Stop a run on one process alone, by a reward that fails or a signal, and resume it."""
    changes = {"batch_size": 8, "minibatch_size": 4, "epochs": 1}
    for kind in RUN_KINDS:
        whole = trainer(folder / name(*kind) / "whole", kind, **changes)
        whole.train()
        stopped, by_signal = folder / name(*kind) / "stopped", kind[1]
        calls = 0

        def stopping(
            prompts: list[str], completions: list[str], by_signal: bool = by_signal, **columns: list
        ) -> list[float]:
            nonlocal calls
            calls += 1
            if calls == 3 and os.environ["RANK"] == "1":
                if not by_signal:
                    raise TimeoutError("the scorer did not answer")
                os.kill(os.getpid(), signal.SIGINT)
            return e_rate(prompts, completions)

        errors = errors_of(trainer(stopped, kind, reward=stopping, **changes))
        torch.manual_seed(99)
        resumed = trainer(stopped, kind, **changes)
        resumed.resume()
        step = resumed.state.step
        resumed.train()
        equal = [torch.equal(a, b) for a, b in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True)]
        if whole.accelerator.is_main_process:
            result = {"errors": errors, "step": step, "equal": all(equal)}
            (folder / f"{name(*kind)}.json").write_text(json.dumps(result))


def errors_of(run: PPOTrainer) -> list[str]:
    """Train, and return the error that each process ends with."""
    try:
        run.train()
    except (Interrupted, UserError) as error:
        return gather_object([f"{type(error).__name__}: {error}"])
    raise AssertionError("nothing stopped it")


def failures(folder: Path) -> None:
    """Fail on one process outside of a rollout: at the sanity pair, at the initial scores and at a write."""
    kind = RUN_KINDS[0]
    is_main = os.environ["RANK"] == "0"

    def failing_for(text: str) -> Any:
        def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
            if not is_main and completions[0] == text:
                raise TimeoutError("the scorer did not answer")
            return e_rate(prompts, completions)

        return reward

    def never(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        if not is_main:
            raise TimeoutError("the scorer did not answer")
        return e_rate(prompts, completions)

    def full_disk(*arguments: Any) -> None:
        raise UserError("metrics.jsonl: cannot be written: No space left on device")

    pair = trainer(folder / "pair", kind, steps=1, reward=failing_for("eee"))
    pair.sanity_pair = ["eee", "xxx"]
    errors = {"pair": errors_of(pair)}
    errors["initial scores"] = errors_of(trainer(folder / "scores", kind, steps=1, score_samples=16, reward=never))
    with mock.patch.object(trainer_module, "append_text", full_disk):
        errors["log"] = errors_of(trainer(folder / "log", kind, steps=1))
    if is_main:
        (folder / "errors.json").write_text(json.dumps(errors))


def evaluations(folder: Path) -> None:
    """Sample completions of more prompts than the processes divide, and of fewer than there are processes."""
    for architecture, prompts in itertools.product(tiny.ARCHITECTURES, (1, 7)):
        sampled = completions(architecture, prompts)
        if Accelerator(cpu=True).is_main_process:
            (folder / f"{architecture}-{prompts}.json").write_text(json.dumps(sampled))


def failing_reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """The reward that the recipe finds by its name; it fails on the process that the environment names."""
    if os.environ.get("FAILING_RANK") == os.environ["RANK"] and list(Path(os.environ["CHECKPOINTS"]).glob("step_*")):
        raise TimeoutError("the scorer did not answer")
    return [float(len(text)) for text in completions]


def recipes(folder: Path) -> None:
    """Run PPO as a command that fails on one process, again to its end, and its evaluation twice."""
    options = drop(small("quickstart", folder), "--sft.max_steps", "--sft.batch_size", "--sft.data.limit")
    options += ["--sft", "null", "--reward.model", "two_processes:failing_reward", "--ppo.steps", "3"]
    options += ["--ppo.checkpoint_every", "1"]
    run = folder / "quickstart"
    os.environ["CHECKPOINTS"] = str(run / "ppo" / "checkpoints")
    outputs, codes = {}, {}

    def command(title: str, stage: cli.Stage, *more: str) -> None:
        output = io.StringIO()
        with (
            mock.patch.object(sys, "argv", [f"recipes/{stage.name}.py", *options, *more]),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            try:
                cli.main([stage], "")
            except SystemExit as leaving:
                codes[title] = gather_object([leaving.code])
        outputs[title] = gather_object([output.getvalue()])
        reset_accelerate()

    with mock.patch.dict(os.environ, FAILING_RANK="1"):
        command("failed", ppo.STAGE)
    if os.environ["RANK"] == "0":
        shutil.copytree(run / "ppo" / "checkpoints", folder / "checkpoints")
    command("resumed", ppo.STAGE)
    torch.set_num_threads(1 + int(os.environ["RANK"]))  # as on unlike machines
    command("evaluated", evaluation.STAGE)
    results = run / "evaluation" / "results.json"
    if os.environ["RANK"] == "0":
        shutil.copy(results, folder / "first_results.json")
    command("evaluated again", evaluation.STAGE, "--force", "evaluation")
    torch.set_num_threads(1)
    if os.environ["RANK"] == "0":
        (folder / "commands.json").write_text(json.dumps({"outputs": outputs, "codes": codes}))


SCENARIOS = (updates, lengths, resumes, failures, evaluations, recipes)


def run(
    folder: Path,
    rank: int,
    port: int,
    limit: int,
    processes: int = PROCESSES,
    scenarios: Sequence[Callable[[Path], None]] = SCENARIOS,
) -> None:
    """Run the scenarios as one of the processes, which meet at the port; a hang ends itself after `limit` seconds."""
    faulthandler.dump_traceback_later(limit, exit=True)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {key: str(value) for key, value in (ranks | meeting).items()}
    quiet_libraries()
    assert Accelerator(cpu=True).num_processes == processes
    for scenario in scenarios:
        scenario_folder = folder / scenario.__name__
        scenario_folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        scenario(scenario_folder)
        print(f"{scenario.__name__}: done in {time.monotonic() - start:.1f} s", flush=True)


def check_first_update(folder: Path, kind: Kind, file: Path) -> dict[str, float]:
    """Assert that the metrics and weights in a file are those of one process's first update; return its metrics."""
    metrics, weights = first_update(folder, kind)
    of_several = torch.load(file)
    assert set(weights) == set(of_several["weights"])
    for key, value in weights.items():
        assert torch.allclose(value, of_several["weights"][key], rtol=0, atol=1e-5), key
    assert set(metrics) == set(of_several["metrics"])
    for key, value in untimed(metrics).items():
        assert of_several["metrics"][key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    return metrics
