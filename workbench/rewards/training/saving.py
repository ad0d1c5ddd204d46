"""What the `reward` stage saves in its folder: the model, its report and its temperature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, Trainer

from workbench.rewards.training.calibration import FILE
from workbench.run.files import write_text, writing


def save_reward_model(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path, max_tokens: int) -> None:
    """Write an ordinary transformers folder, any adapter merged, whose tokenizer keeps the `max_tokens` of training."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    tokenizer.model_max_length = min(max_tokens, tokenizer.model_max_length)
    if trainer.is_world_process_zero():
        with writing(folder):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write report.json, and for a classifier calibration.json, whose temperature the reward's judge uses."""
    write_text(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if report["kind"] == "classifier":
        temperature = {"temperature": report["calibration"]["temperature"]}
        write_text(folder / FILE, json.dumps(temperature) + "\n")
