"""Checkpoints from which a PPO run resumes as if it had never stopped."""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from workbench.config.names import PPO
from workbench.errors import UserError
from workbench.models.optimizer import is_paged
from workbench.models.sharding import full_tensor, like
from workbench.run.checksums import readable_hash
from workbench.run.distributed import fail_together, precision_warning, processes_warning
from workbench.run.files import (
    UNTOUCHED,
    atomic_folder,
    content_hash,
    is_present,
    remove_partial,
    unreadable,
    write_text,
    writing,
)

MAX_NONFINITE_UPDATES = 3
"""A run stops after so many updates in a row without a finite gradient."""
NAME = re.compile(r"step_(\d{6,})")
# What torch's AdamW and bitsandbytes' paged one call their moments.
MOMENTS = (("exp_avg", "state1"), ("exp_avg_sq", "state2"))


@dataclass
class TrainState:
    """What the loop carries from step to step, besides the weights, the optimizer and the random states."""

    kl_coef: float
    step: int = 0
    """Updates so far."""
    nonfinite_updates: int = 0
    """Updates in a row without a finite gradient."""
    score_mean: float = 0.0
    """Mean used to normalize scores."""
    score_std: float | None = None
    """Standard deviation used to normalize scores; None until it is measured."""
    best_objective: float | None = None
    """Highest validation objective so far."""
    validation_due: bool = False
    """Whether the validation of the last step is still pending."""
    precision: str = "fp32"
    """Precision of the last update."""
    loss_scale: dict[str, float] = field(default_factory=dict)
    """State of the loss scaling of fp16; empty in other precisions."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last step."""

    def count_update(self, metrics: dict[str, float], loss_scale: dict[str, float]) -> None:
        """Count a finished update with its metrics, and the updates in a row that had no finite gradient."""
        self.loss_scale = loss_scale
        # The scale of fp16 starts too high, and steps are skipped until it fits.
        is_searching = metrics.get("loss_scale", 0.0) >= 1
        is_nonfinite = metrics["skipped_steps"] == metrics["optimizer_steps"] > 0 and not is_searching
        self.nonfinite_updates = self.nonfinite_updates + 1 if is_nonfinite else 0
        self.step += 1

    def change_precision(self, precision: str) -> str | None:
        """Go on in another precision; return a warning if it is another one."""
        before, self.precision = self.precision, precision
        if before != precision:
            self.loss_scale = {}
        return precision_warning(PPO, before, precision, "policy.precision")


def save(
    folder: Path,
    state: TrainState,
    *,
    keep: int,
    accelerator: Accelerator,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write `folder`/step_NNNNNN atomically, then remove all but the newest `keep`.

    It holds the trainable parameters, optimizer, train state and every process's random states, with a checksum. A
    sharded policy and its optimizer are saved in full, so that any number of processes can resume.
    """
    random_states = accelerator.gather_for_metrics([random_state()], use_gather_object=True)
    # Taken from the optimizer, because switching adapters changes requires_grad.
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = accelerator.unwrap_model(policy).named_parameters()
    is_main = accelerator.is_main_process
    trainable = {name: full_on_cpu(p.detach(), keep=is_main) for name, p in named if id(p) in trained}
    optimizer_state = optimizer.state_dict()
    optimizer_state["state"] = {
        index: {name: full_on_cpu(value, keep=is_main) for name, value in entries.items()}
        for index, entries in optimizer_state["state"].items()
    }
    with fail_together(accelerator):
        if is_main:
            content = {
                "train_state": asdict(state),
                "trainable": trainable,
                "optimizer": optimizer_state,
                "random": random_states,
            }
            checkpoint = folder / f"step_{state.step:06}"
            # If a reward fails right after a checkpoint, the same step is saved again; replacing it could lose it.
            if not is_intact(checkpoint):
                with atomic_folder(checkpoint) as partial:
                    torch.save(content, partial / "state.pt")
                    (partial / "sha256").write_text(str(content_hash(partial / "state.pt")), encoding="utf-8")
            for old in existing(folder)[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
            remove_partial(folder, "step_")


def load_latest(
    folder: Path, *, accelerator: Accelerator, policy: nn.Module, optimizer: torch.optim.Optimizer
) -> TrainState | None:
    """Restore the newest intact checkpoint in place and return its train state; None if there is none.

    Another number of processes may have saved it. Raises UserError if another version did.
    """
    # One process decides for all, and one that fails ends all.
    with fail_together(accelerator):
        newest = newest_intact(folder) if accelerator.is_main_process else None
    (name,) = broadcast_object_list([newest])
    if name is None:
        return None
    content = torch.load(folder / name / "state.pt", map_location="cpu", weights_only=True)
    if content.get("train_state", {}).keys() != {item.name for item in fields(TrainState)}:
        raise UserError(f"{folder / name}: saved by another version of this project; start over with --force ppo")
    before, now = len(content["random"]), accelerator.num_processes
    warning = processes_warning(PPO, before, now, "samples")
    if warning is not None:
        accelerator.print(warning, flush=True)
    parameters = dict(accelerator.unwrap_model(policy).named_parameters())
    with torch.no_grad():
        for key, value in content["trainable"].items():
            parameters[key].copy_(like(value, parameters[key]))
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    restored = optimizer.state_dict() | {
        "state": {
            index: moments_like(entries, trained[index], is_paged=is_paged(optimizer))
            for index, entries in content["optimizer"]["state"].items()
        }
    }
    optimizer.load_state_dict(restored)
    restore_random_state(content["random"][accelerator.process_index % before])
    return TrainState(**content["train_state"])


def moments_like(entries: dict[str, Any], parameter: torch.Tensor, *, is_paged: bool) -> dict[str, Any]:
    """Return a parameter's state as its optimizer stores it, which may be the other one than the one that saved it."""
    first, second = (entries[torch_name] if torch_name in entries else entries[paged] for torch_name, paged in MOMENTS)
    step = entries["step"]
    if is_paged:
        return {"step": int(step), "state1": first, "state2": second}
    return {
        "step": torch.as_tensor(step, dtype=torch.float32),
        "exp_avg": like(first, parameter),
        "exp_avg_sq": like(second, parameter),
    }


def full_on_cpu(value: Any, *, keep: bool) -> Any:
    """Return a tensor in full on the CPU, or None on a process that does not keep it; every process must call it."""
    whole = full_tensor(value)
    return (whole.cpu() if isinstance(whole, torch.Tensor) else whole) if keep else None


def newest_intact(folder: Path) -> str | None:
    """Return the name of the newest intact checkpoint; newer corrupt ones are reported and set aside."""
    remove_partial(folder, "step_")
    checkpoints = existing(folder)
    for checkpoint in reversed(checkpoints):
        if is_intact(checkpoint):
            return checkpoint.name
        print(f"ppo: {checkpoint} is corrupt (checksum mismatch); trying the one before it", flush=True)
        with writing(checkpoint):  # its own name would make it count towards `keep`; the next save removes it
            checkpoint.replace(folder / f".{checkpoint.name}.corrupt")
    if checkpoints:
        print(f"ppo: no intact checkpoint in {folder}; starting from the beginning", flush=True)
    return None


def nonfinite_failure(state: TrainState) -> UserError:
    """Return the error for a run whose last updates had no finite gradient."""
    return UserError(
        f"ppo: {MAX_NONFINITE_UPDATES} updates in a row had no finite gradient; saved at step {state.step}; lower "
        "ppo.learning_rate or use policy.precision fp32"
    )


def truncate_log(file: Path, step: int) -> None:
    """Remove incomplete lines and lines of later steps from a JSON-lines log."""
    if not file.exists():
        return
    lines = []
    for line in file.read_bytes().split(b"\n"):  # splitlines would also split at separators inside texts
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line.decode() + "\n")
        except (ValueError, TypeError, KeyError):
            continue  # the end of the file, or the remains of a killed process's last write
    write_text(file, "".join(lines))


def is_intact(checkpoint: Path) -> bool:
    """Return whether a checkpoint's checksum matches; raises UserError if it cannot be read, which says nothing."""
    digest, recorded = readable_hash(checkpoint / "state.pt", UNTOUCHED), checkpoint / "sha256"
    if digest is None or not is_present(recorded):
        return False
    try:
        return recorded.read_bytes() == digest.encode()
    except OSError as error:
        raise unreadable(recorded, error, UNTOUCHED) from error


def existing(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first."""
    steps = {path: int(match[1]) for path in folder.glob("step_*") if (match := NAME.fullmatch(path.name))}
    return sorted(steps, key=lambda path: steps[path])


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators, in types that load without pickle."""
    state = numpy.random.get_state(legacy=False)
    assert isinstance(state, dict)
    return {
        "python": random.getstate(),
        "numpy": state | {"state": state["state"] | {"key": torch.from_numpy(state["state"]["key"].astype("int64"))}},
        "torch": torch.get_rng_state(),
        # Of this process's device alone: another machine may have another number of them.
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the generators to what `random_state` returned."""
    random.setstate(state["python"])
    keys = state["numpy"]["state"]["key"].numpy().astype("uint32")
    numpy.random.set_state(state["numpy"] | {"state": state["numpy"]["state"] | {"key": keys}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
