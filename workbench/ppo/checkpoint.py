"""Checkpoints from which a PPO run goes on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from workbench.errors import UserError
from workbench.run.files import atomic_folder, remove_partial, write_text, writing

NAME = re.compile(r"step_(\d{6})")


@dataclass
class TrainState:
    """What the loop carries from step to step beside weights and optimizer."""

    kl_coef: float
    nonfinite_updates: int = 0
    """Updates in a row without a finite gradient."""
    score_mean: float = 0.0
    score_std: float | None = None
    """Statistics that scores are normalized by; None until they are taken."""
    best: float | None = None
    """Highest validation objective so far."""
    validation_due: bool = False
    """Whether the last step's policy has yet to answer the validation prompts."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last step."""


def save(
    folder: Path,
    step: int,
    *,
    keep: int,
    accelerator: Accelerator,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: TrainState,
) -> None:
    """Write `folder`/step_NNNNNN as a whole, then remove all but the newest `keep`.

    Holds trainable parameters, optimizer, counters and the random states of every process, and their checksum.
    """
    states = accelerator.gather_for_metrics([random_state()], use_gather_object=True)
    if accelerator.is_main_process:
        module = accelerator.unwrap_model(policy)
        # By the optimizer, because switching adapters switches requires_grad.
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        state = {
            "step": step,
            "trainable": {name: p.detach().cpu() for name, p in module.named_parameters() if id(p) in trained},
            "optimizer": optimizer.state_dict(),
            "counters": asdict(counters),
            "random": states,
        }
        place = folder / f"step_{step:06}"
        # A reward that fails right after a checkpoint asks for the same one again; to replace it would risk it.
        if not is_intact(place):
            with atomic_folder(place) as partial:
                torch.save(state, partial / "state.pt")
                (partial / "sha256").write_text(sha256(partial / "state.pt"))
        for old in existing(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        remove_partial(folder, "step_")
    accelerator.wait_for_everyone()


def load_latest(
    folder: Path,
    *,
    accelerator: Accelerator,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> tuple[int, TrainState] | None:
    """Restore the newest whole checkpoint in place and return its step and counters; None when there is none."""
    # One process looks, so that all of them find the same.
    found = broadcast_object_list([newest_intact(folder) if accelerator.is_main_process else None])
    if found[0] is None:
        return None
    place = folder / found[0]
    state = torch.load(place / "state.pt", map_location="cpu", weights_only=True)
    if len(state["random"]) != accelerator.num_processes:
        raise UserError(
            f"{place}: saved by {len(state['random'])} processes, resumed by {accelerator.num_processes}; "
            "launch with the same number"
        )
    parameters = dict(accelerator.unwrap_model(policy).named_parameters())
    with torch.no_grad():
        for name, value in state["trainable"].items():
            parameters[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    restore_random_state(state["random"][accelerator.process_index])
    return state["step"], TrainState(**state["counters"])


def newest_intact(folder: Path) -> str | None:
    """Name of the newest checkpoint that is whole; torn ones are said and set aside, to be removed at the next save."""
    remove_partial(folder, "step_")
    places = existing(folder)
    for place in reversed(places):
        if is_intact(place):
            return place.name
        print(f"ppo: {place} is torn (its checksum does not fit); looking at the one before it", flush=True)
        with writing(place):  # under its own name it would count among those to keep
            place.replace(folder / f".{place.name}.torn")
    if places:
        print(f"ppo: no whole checkpoint in {folder}; starting from the beginning", flush=True)
    return None


def truncate_log(file: Path, step: int) -> None:
    """Keep of a log of JSON lines those that are whole and of no later step."""
    if not file.exists():
        return
    kept = []
    for line in file.read_bytes().split(b"\n"):  # splitlines would also split at separators within a text
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line.decode() + "\n")
        except (ValueError, TypeError, KeyError):
            continue  # the end of a file, or what a process killed while it wrote left there
    write_text(file, "".join(kept))


def is_intact(place: Path) -> bool:
    """Whether a checkpoint is what was written."""
    try:
        return (place / "sha256").read_bytes() == sha256(place / "state.pt").encode()
    except OSError:
        return False


def sha256(file: Path) -> str:
    """Checksum of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def existing(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
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
