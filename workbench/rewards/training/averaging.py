"""Weight averaging over the last steps of training (arXiv 1803.05407)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

AVERAGE_EVERY = 5  # steps
AVERAGE_FILE = "average.pt"


class AverageWeights(TrainerCallback):
    """Ends training with the mean of the weights over the steps after the fraction `start` of all steps.

    Every AVERAGE_EVERY-th step counts, as does the last; checkpoints hold the mean so far.
    """

    def __init__(self, start: float) -> None:
        self.start, self.count = start, 0
        self.mean: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Load the mean from the checkpoint that the trainer resumes from."""
        last = get_last_checkpoint(args.output_dir) if state.global_step else None
        if last is not None:
            saved = torch.load(Path(last) / AVERAGE_FILE, map_location=args.device, weights_only=True)
            self.count, self.mean = saved["count"], saved["mean"]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Add the weights of this step to the mean."""
        counts = state.global_step >= self.start * state.max_steps and state.global_step % AVERAGE_EVERY == 0
        if not counts and state.global_step < state.max_steps:
            return
        self.count += 1
        for name, weight in model.named_parameters():
            if weight.requires_grad and name in self.mean:
                self.mean[name].lerp_(weight.detach(), 1 / self.count)
            elif weight.requires_grad:
                self.mean[name] = weight.detach().clone()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the mean to the checkpoint."""
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            torch.save({"count": self.count, "mean": self.mean}, checkpoint / AVERAGE_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Replace the final weights with the mean, unless training was stopped early."""
        if state.global_step < state.max_steps:
            return
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in self.mean:
                    weight.copy_(self.mean[name])
