"""What test_sharding starts in several processes, each scenario by its name; the first process writes the results."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import tiny
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, gather_object
from safetensors.torch import load_file
from small_runs import CHAIN, drop, small
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from trainers import make_rows
from two_processes import Kind, first_update, name, trainer, uneven_rollout

from recipes import ppo, sft
from reward_models import network
from workbench.errors import UserError
from workbench.models.loading import save_model
from workbench.models.policy import Policy
from workbench.models.sharding import full_state_dict, full_tensor, shard_model
from workbench.ppo.checkpoint import load_latest
from workbench.ppo.policy_files import save_policy
from workbench.ppo.sharded_policy import gathered, shard_policy
from workbench.run import cli, distributed, hf_trainer
from workbench.run.distributed import fail_with_main
from workbench.run.stage_record import BEGUN

KINDS: list[Kind] = list(itertools.product(tiny.ARCHITECTURES, (False,), ("shared", "separate")))
# Kinds of runs that another number of processes resumes, the last one with adapters, which are not sharded.
RESUMED: list[Kind] = [("gpt2", False, "separate"), ("t5", False, "shared"), ("gpt2", True, "shared")]
RUN = {"batch_size": 8, "minibatch_size": 4, "epochs": 1, "checkpoint_every": 2, "checkpoints_kept": 9}
ROLLOUTS = 200
RECIPES = ("quickstart", "quickstart_gpt2")


def updates(folder: Path) -> None:
    """Take the first update of each kind as two_processes does, sharded."""
    for kind in KINDS:
        metrics, weights = first_update(folder / name(*kind), kind, prepare=shard_policy)
        if Accelerator(cpu=True).is_main_process:
            torch.save({"metrics": metrics, "weights": weights}, folder / f"{name(*kind)}.pt")


def scaled_updates(folder: Path) -> None:
    """Take updates in fp16 from a loss scale that overflows, whole and sharded."""
    for sharded in (False, True):

        def in_fp16(policy: Policy, sharded: bool = sharded) -> None:
            policy.autocast_dtype = torch.float16
            if sharded:
                shard_policy(policy)

        run = trainer(folder / str(sharded), KINDS[0], in_fp16, self_checks=False)
        metrics = [run.update(uneven_rollout(run)) for _ in range(3)]
        everyone = gather_object([[(step["loss_scale"], step["skipped_steps"], step["grad_norm"]) for step in metrics]])
        if run.accelerator.is_main_process:
            (folder / f"{sharded}.json").write_text(json.dumps(everyone))


class Inner(nn.Module):
    """A block that another one contains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, states: Tensor) -> Tensor:
        """Return new states."""
        return self.layer(states).tanh()


class Outer(nn.Module):
    """A block with another one inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.layer = Inner(), nn.Linear(4, 4)

    def forward(self, states: Tensor) -> Tensor:
        """Return new states."""
        return self.layer(self.inner(states))


def nested_blocks(folder: Path) -> None:
    """Shard a model whose blocks contain blocks."""
    torch.manual_seed(0)
    sharded, whole = nn.Sequential(Outer(), Outer()), nn.Sequential(Outer(), Outer())
    whole.load_state_dict(sharded.state_dict())
    shard_model(sharded, {"Inner", "Outer"})
    for model in (sharded, whole):
        model(torch.ones(2, 4)).sum().backward()
    for one, other in zip(sharded.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(full_tensor(one.grad), other.grad)
    (folder / os.environ["RANK"]).touch()


def models_without_blocks(folder: Path) -> None:
    """Save a model that is divided as a whole, after a forward pass that leaves it gathered, and one with blocks."""
    for blocks in ({"GPT2Block"}, set()):
        model = tiny.model("gpt2")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        shard_model(model, blocks)
        with torch.no_grad():
            model(input_ids=torch.ones(2, 4, dtype=torch.long))
        weights = full_state_dict(model)
        assert weights is not None
        if os.environ["RANK"] == "0":
            save_model(model, folder / f"{len(blocks)}", weights)
            saved = load_file(folder / f"{len(blocks)}" / "model.safetensors")
            assert all(torch.equal(value, before[name]) for name, value in saved.items())
            (folder / f"{len(blocks)}.txt").write_text(str(len(saved)))
        PartialState().wait_for_everyone()


def rollouts(folder: Path) -> None:
    """Sample with another number of forward passes, tokens and rows on each process, as an unsharded policy does."""
    for architecture in tiny.ARCHITECTURES:
        sharded, whole = (tiny.policy(architecture, lora=False) for _ in range(2))
        shard_policy(sharded)
        rank = PartialState().process_index
        rows = make_rows(architecture, 6)
        for step in range(ROLLOUTS // 2):
            part = rows[: 1 + (step * (rank + 1)) % 5]
            prompts = sharded.pad_prompts([row["prompt_ids"] for row in part])
            options: dict[str, Any] = {
                "max_new_tokens": 1 + (step + 3 * rank) % 7,
                "temperature": 1.0,
                "seeds": [100 * step + 10 * rank + row for row in range(len(part))],
            }
            with gathered(sharded):
                for _ in range(1 + (step + rank) % 2):
                    batch = sharded.generate(*prompts, **options)
            assert torch.equal(batch.response_ids, whole.generate(*prompts, **options).response_ids), step
            if step % 20 == 0:  # gathered and divided weights stay what they are
                scores, expected = sharded(batch, 1.0), whole(batch, 1.0)
                assert torch.allclose(scores.logprobs, expected.logprobs, atol=1e-6)
        (folder / f"{architecture}-{rank}").touch()


def failures(folder: Path) -> None:
    """Fail on one process before it samples, where the other one is about to."""
    run = trainer(folder / "run", KINDS[0], shard_policy, self_checks=False)
    rows = run.batch(0)
    if os.environ["RANK"] == "1":
        rows = [rows[0] | {"prompt_ids": [1] * 64}, *rows[1:]]
    try:
        with run.saved_on_failure():
            run.rollout(rows)
        raise AssertionError("nothing failed")
    except UserError as error:
        errors = gather_object([str(error)])
    try:
        with fail_with_main():
            if os.environ["RANK"] == "0":
                raise UserError("the data has changed")
        raise AssertionError("nothing failed")
    except UserError as error:
        errors += gather_object([str(error)])
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(errors))


def weights_of(policy: Policy) -> dict[str, Tensor]:
    """Return the trained weights in full."""
    return {key: full_tensor(value.detach()).clone() for key, value in policy.named_parameters() if value.requires_grad}


def runs(folder: Path) -> None:
    """Train, resume in the middle, and save what is left as files."""
    for kind in RESUMED:
        prepare = None if kind[1] else shard_policy
        whole = trainer(folder / name(*kind) / "whole", kind, prepare=prepare, validation=5, **RUN)
        whole.train()
        half, stopped = folder / name(*kind) / "half", folder / name(*kind) / "stopped"
        if whole.accelerator.is_main_process:
            shutil.copytree(folder / name(*kind) / "whole", half)
            shutil.rmtree(half / "checkpoints" / "step_000004")
            shutil.copytree(half, stopped)
        whole.accelerator.wait_for_everyone()
        resumed = trainer(stopped, kind, prepare=prepare, validation=5, **RUN)
        resumed.train()
        weights, again = weights_of(whole.unwrapped), weights_of(resumed.unwrapped)
        save_policy(whole.unwrapped, whole.tokenizer, folder / name(*kind) / "saved")
        if whole.accelerator.is_main_process:
            equal = {key: torch.equal(value, again[key]) for key, value in weights.items()}
            torch.save({"weights": weights, "equal": equal}, folder / f"{name(*kind)}.pt")


def resumes(folder: Path) -> None:
    """Resume runs of two processes, with another number of them, at their second step, and train to the end."""
    for kind in RESUMED:
        run = trainer(folder / name(*kind) / "half", kind, prepare=None if kind[1] else shard_policy, **RUN)
        state = load_latest(
            run.folder / "checkpoints", accelerator=run.accelerator, policy=run.policy, optimizer=run.optimizer
        )
        assert state is not None
        restored = {"step": state.step, "weights": weights_of(run.unwrapped), "moments": moments(run.optimizer)}
        run.train()
        if run.accelerator.is_main_process:
            torch.save(restored, folder / f"{name(*kind)}.pt")


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the optimizer's moments in full, in the order of its parameters."""
    entries = optimizer.state_dict()["state"].values()
    return [full_tensor(entry[key]).clone() for entry in entries for key in ("exp_avg", "exp_avg_sq")]


def start_on_gpus(self: PartialState, *arguments: Any, start: Any = PartialState.__init__, **options: Any) -> None:
    """Say that the processes of a launch with FSDP have GPUs, where alone Accelerate shards."""
    start(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU and "ACCELERATE_USE_FSDP" in os.environ:
        self.distributed_type = DistributedType.MULTI_GPU


def launch(stages: list[cli.Stage], options: list[str]) -> tuple[list[Any], list[str]]:
    """Run a recipe as a launch with FSDP2 does; return every process's exit code and output."""
    output = io.StringIO()
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    with (
        mock.patch.dict(os.environ, fsdp),
        mock.patch.object(sys, "argv", ["recipes/detox.py", *options]),
        mock.patch.object(PartialState, "__init__", start_on_gpus),
        mock.patch.object(distributed, "has_gpus", return_value=True),
        mock.patch.object(FSDPModule, "set_requires_gradient_sync", side_effect=AssertionError("whole gradients")),
        mock.patch.object(network, "process_device", return_value=torch.device("cpu")),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            cli.main(stages, "")
        except SystemExit as leaving:
            code = leaving.code
        AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True)
    return gather_object([code]), gather_object([output.getvalue()])


def recipe_options(recipe: str, folder: Path) -> list[str]:
    """Return options of a small chain that fine-tunes in full; one of them trains its reward too."""
    reward = ["--reward.model", "null"] if recipe == "quickstart" else []
    fine_tuning = ["--sft.save_every", "2", "--sft.micro_batch_size", "2"]
    options = small(recipe, folder, "--policy.lora", "null", *reward, *fine_tuning)
    return drop(options, "--reward.train.data.limit")


def chains(folder: Path) -> None:
    """Run chains whose SFT stops before its last step, and again to their ends."""
    for recipe in RECIPES:
        options, commands = recipe_options(recipe, folder), {}
        stages = CHAIN if recipe == "quickstart" else [sft.STAGE, ppo.STAGE]
        with stopped_after(2):
            commands["stopped"] = launch(stages, options)
        if os.environ["RANK"] == "0":
            shutil.copytree(folder / recipe, folder / "stopped" / recipe)
        begun = folder / recipe / "sft" / BEGUN
        text = begun.read_text()
        PartialState().wait_for_everyone()
        begun.write_text("{}")
        commands["refused"] = launch(stages, options)
        begun.write_text(text)
        PartialState().wait_for_everyone()
        commands["resumed"] = launch(stages, options)
        if os.environ["RANK"] == "0":
            (folder / f"{recipe}.json").write_text(json.dumps(commands))


@contextlib.contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Stop a Hugging Face trainer as a signal does, after so many of its steps."""
    calls = itertools.count(1)

    @contextlib.contextmanager
    def stop_requests() -> Iterator[Callable[[], bool]]:
        yield lambda: next(calls) >= steps

    with mock.patch.object(hf_trainer, "stop_requests", stop_requests):
        yield


def fine_tunings(folder: Path) -> None:
    """Resume the SFT stages that chains of two processes stopped, with another number of them."""
    for recipe in RECIPES:
        commands = {"resumed": launch([sft.STAGE], recipe_options(recipe, folder))}
        if os.environ["RANK"] == "0":
            (folder / f"{recipe}.json").write_text(json.dumps(commands))


OF_TWO = (
    updates,
    scaled_updates,
    nested_blocks,
    models_without_blocks,
    rollouts,
    failures,
    runs,
    chains,
)
