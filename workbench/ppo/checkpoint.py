"""Checkpoints from which a PPO run goes on as if it had never stopped."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from torch import nn

from workbench.errors import UserError
from workbench.runs import atomic_folder

KEEP = 2
NAME = re.compile(r"step_(\d{6})")


def save(
    folder: Path,
    step: int,
    *,
    accelerator: Accelerator,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: dict[str, Any],
) -> None:
    """Write `folder`/step_NNNNNN as a whole, then remove all but the newest two.

    Holds trainable parameters, optimizer, counters and the random states of every process.
    """
    states = accelerator.gather_for_metrics([random_state()], use_gather_object=True)
    if accelerator.is_main_process:
        module = accelerator.unwrap_model(policy)
        state = {
            "step": step,
            "trainable": {name: p.detach().cpu() for name, p in module.named_parameters() if p.requires_grad},
            "optimizer": optimizer.state_dict(),
            "counters": counters,
            "random": states,
        }
        with atomic_folder(folder / f"step_{step:06}") as partial:
            torch.save(state, partial / "state.pt")
        for old in existing(folder)[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_latest(
    folder: Path,
    *,
    accelerator: Accelerator,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest checkpoint in place and return its step and counters; None when there is none."""
    found = existing(folder)
    if not found:
        return None
    state = torch.load(found[-1] / "state.pt", map_location="cpu", weights_only=True)
    if len(state["random"]) != accelerator.num_processes:
        raise UserError(
            f"{found[-1]}: saved by {len(state['random'])} processes, resumed by {accelerator.num_processes}; "
            "launch with the same number"
        )
    parameters = dict(accelerator.unwrap_model(policy).named_parameters())
    with torch.no_grad():
        for name, value in state["trainable"].items():
            parameters[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    restore_random_state(state["random"][accelerator.process_index])
    return state["step"], state["counters"]


def existing(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*") if NAME.fullmatch(path.name))


def random_state() -> dict[str, Any]:
    """The states of python's, numpy's and torch's generators, in types that load without pickle."""
    state = numpy.random.get_state(legacy=False)
    assert isinstance(state, dict)
    return {
        "python": random.getstate(),
        "numpy": state | {"state": state["state"] | {"key": torch.from_numpy(state["state"]["key"].astype("int64"))}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo `random_state`."""
    random.setstate(state["python"])
    keys = state["numpy"]["state"]["key"].numpy().astype("uint32")
    numpy.random.set_state(state["numpy"] | {"state": state["numpy"]["state"] | {"key": keys}})
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
