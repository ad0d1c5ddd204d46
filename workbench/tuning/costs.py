"""What the training of a method takes, over all launches that it took."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from workbench.run.files import is_present, read_json, write_text
from workbench.run.folder import TRAINER_CHECKPOINT
from workbench.run.peak_memory import PeakMemory

FILE = "costs.json"


@dataclass(frozen=True)
class Costs:
    """What led to a state of the training; what a killed launch did after its last checkpoint is no part of it."""

    minutes: float = 0.0
    peak_memory_bytes: int | None = 0
    """The most over all launches; None where one of them could not measure it."""

    def plus(self, minutes: float, peak: int | None) -> Costs:
        """Return the costs with those of a further launch."""
        known = None if peak is None or self.peak_memory_bytes is None else max(peak, self.peak_memory_bytes)
        return Costs(self.minutes + minutes, known)


class CostCallback(TrainerCallback):
    """Keep the costs in every checkpoint, and continue from those of the one that training resumes from.

    Its callbacks run before those that write a checkpoint's checksums.
    """

    def __init__(self, folder: Path, peak: PeakMemory) -> None:
        self.folder, self.peak = folder, peak
        self.start, self.before = time.monotonic(), Costs()

    def total(self) -> Costs:
        """Return the costs up to here."""
        return self.before.plus((time.monotonic() - self.start) / 60, self.peak.measure())

    def file(self, state: TrainerState) -> Path:
        """Return the file of the checkpoint of a state."""
        return self.folder / f"{TRAINER_CHECKPOINT}{state.global_step}" / FILE

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the costs of the checkpoint that training resumes from."""
        if state.global_step and is_present(self.file(state)):
            self.before = Costs(**read_json(self.file(state), remedy="redo the stage with --force tuning"))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the costs up to here into the new checkpoint."""
        if state.is_world_process_zero:
            write_text(self.file(state), json.dumps(asdict(self.total())) + "\n")
