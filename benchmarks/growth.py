"""How a PPO step grows with batch, response length and model size: runs ppo_step at 1x, 2x and 4x and plots it.

python -m benchmarks.growth docs/growth.svg     (needs the extra `plot`; about ten minutes on two cores)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt

FACTORS = (1, 2, 4)
# A flag and its value at 1x. Minibatches grow with the batch, so that the number of optimizer steps is constant.
AXES = {"batch": 16, "new": 16, "depth": 1}
TITLES = {"batch": "prompts per step", "new": "tokens per response", "depth": "layers (6 and 8 at 1x)"}


def measure(arch: str, axis: str, factor: int) -> float:
    """Return the seconds of a bf16 step."""
    values = AXES | {axis: AXES[axis] * factor}
    flags = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    flags += ["--mini", str(values["batch"] // 4), "--arch", arch, "--dtype", "bfloat16", "--steps", "1"]
    command = [sys.executable, "-m", "benchmarks.ppo_step", *flags]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    measured = json.loads(result.stdout.splitlines()[-1])
    print(arch, axis, factor, measured["step_s"], measured["floor_s"], flush=True)
    return measured["step_s"]


def main() -> None:
    """Measure, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="file to write, .svg or .png")
    picture = parser.parse_args().picture
    figure, panels = plt.subplots(1, len(AXES), figsize=(10, 3.2), sharey=True, layout="constrained")
    for panel, (axis, at_one) in zip(panels, AXES.items(), strict=True):
        for arch in ("gpt2", "t5"):
            seconds = [measure(arch, axis, factor) for factor in FACTORS]
            panel.plot([at_one * factor for factor in FACTORS], seconds, marker="o", label=arch)
        panel.set_xlabel(TITLES[axis])
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.set_yticks([2, 4, 8], ["2", "4", "8"])
        panel.set_xticks([at_one * f for f in FACTORS], [str(at_one * f) for f in FACTORS])
    panels[0].set_ylabel("seconds per step")
    panels[0].legend()
    figure.savefig(picture)


if __name__ == "__main__":
    main()
