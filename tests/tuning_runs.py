"""A comparison of ways to tune a toy model in a few steps, for several tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recipes import tuning
from workbench.config.parsing import parse
from workbench.run.cli import launch
from workbench.tuning.plan import TuningPlan, plan_tuning

TEMPLATE = "Summarize the dialogue.\n\n{dialogue}\n\nSummary:\n"
OTHER = "Write a sentence about this chat.\n\n{dialogue}\n\nSentence: "
TASK = {"path": "toy:summaries", "split": "test", "template": TEMPLATE, "columns": {"reference": "summary"}, "limit": 6}
RESPONSE = {"columns": {"response": "summary"}}
METHODS: dict[str, Any] = {
    "full": {"method": "full"},
    "LoRA r 2": {"method": "lora", "r": 2},
    "with replay": {"method": "lora", "r": 2, "replay": True},
    "prompt": {"method": "prompt_tuning", "virtual_tokens": 4},
}


def options(folder: Path, **changes: Any) -> list[str]:
    """Return the command line of a comparison of a few steps."""
    values: dict[str, Any] = {
        "name": "ways",
        "runs": str(folder),
        "policy.model": "toy:t5",
        "policy.precision": "fp32",
        "sft.data": {"path": "toy:sft", "template": TEMPLATE, **RESPONSE, "limit": 24},
        "sft.more_data": [{"path": "toy:summaries", "template": OTHER, **RESPONSE, "share": 0.25}],
        "sft.max_steps": 4,
        "sft.batch_size": 4,
        "tuning.methods": METHODS,
        "tuning.texts": {"sentences": {"path": "toy:sentences", "split": "validation", "limit": 8}},
        "evaluation.data": {"test": TASK, "other": TASK | {"template": OTHER, "neutral": True}},
        "evaluation.judges": ["toy_lexicon"],
        "evaluation.temperature": 0,
        "evaluation.max_new_tokens": 6,
    } | changes
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return [f"--{name}={value}" for name, value in words.items()]


def planned(folder: Path, **changes: Any) -> TuningPlan:
    return plan_tuning(parse(options(folder, **changes))[0])


def run(folder: Path, *extra: str, **changes: Any) -> Path:
    """Run the recipe; return the stage's folder."""
    launch([tuning.STAGE], "", [*options(folder, **changes), *extra])
    return folder / "ways" / "tuning"
