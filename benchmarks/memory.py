"""Compare the memory that a plan predicts for a PPO step with what the step takes, for random models of GPT-2's size.

The step runs in a process of its own, whose memory before the models are made is subtracted.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import psutil

from benchmarks.ppo_step import make_trainer, step
from workbench.config.names import PPO
from workbench.config.schema import (
    Config,
    DataSource,
    EvaluationConfig,
    LoraSettings,
    PolicyConfig,
    PPOConfig,
    PromptSet,
)
from workbench.models.memory import GIB, planned_model, stage_memory

TARGETS = {"gpt2": ["c_attn"], "t5": ["q", "v"]}
PROMPT, RESPONSE, ROWS = 96, 32, 8


def options_for(arch: str, training: str) -> Namespace:
    """Return the options of benchmarks.ppo_step."""
    sizes = {"batch": ROWS, "mini": ROWS, "prompt": PROMPT, "new": RESPONSE, "epochs": 1, "steps": 1, "depth": 1}
    return Namespace(arch=arch, dtype="float32", no_lora=training == "full", **sizes)


def measure(arch: str, training: str) -> float:
    """Return the bytes that a PPO step adds to the process at its peak."""
    before = psutil.Process().memory_info().rss
    with tempfile.TemporaryDirectory() as folder:
        step(make_trainer(options_for(arch, training), Path(folder)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def predict(arch: str, training: str) -> float:
    """Return the bytes that the plan predicts."""
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(options_for(arch, training), Path(folder))  # writes the model
        lora = None if training == "full" else LoraSettings(r=16, alpha=32, target_modules=TARGETS[arch])
        config = Config(
            "memory",
            PolicyConfig(str(Path(folder) / "model"), lora=lora, precision="fp32"),
            EvaluationConfig({"test": PromptSet("unused")}),
            ppo=PPOConfig(data=DataSource("unused")),
        )
        return stage_memory(config, PPO, planned_model(config), "fp32", PROMPT, RESPONSE).total(ROWS)


def main() -> None:
    """Print the prediction, the measurement and their ratio for each model."""
    if len(sys.argv) > 1:
        print(json.dumps({"measured": measure(*sys.argv[1:])}))
        return
    for arch in TARGETS:
        for training in ("lora", "full"):
            command = [sys.executable, "-m", "benchmarks.memory", arch, training]
            done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
            measured, predicted = json.loads(done.stdout.splitlines()[-1])["measured"], predict(arch, training)
            print(
                f"{arch} {training}: predicted {predicted / GIB:.2f} GiB, measured {measured / GIB:.2f} GiB, "
                f"ratio {predicted / measured:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
