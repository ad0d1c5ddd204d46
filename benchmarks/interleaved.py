"""Run two commands interleaved, A B A B, and print the ratio of their medians; each prints a JSON line with step_s.

python -m benchmarks.interleaved --rounds 3 "python -m benchmarks.ppo_step --arch t5" "other/python other.py --arch t5"
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from statistics import median
from typing import Any

KEYS = ("generate_s", "update_s", "step_s", "peak_gib")


def last_line(command: str) -> dict[str, Any]:
    """Return the JSON line that a command ends with; exit with its error if it fails."""
    result = subprocess.run(shlex.split(command), capture_output=True, encoding="utf-8", check=False)
    if result.returncode:
        sys.exit(f"error: {command}: exit code {result.returncode}\n{result.stderr[-2000:]}")
    print(result.stdout.splitlines()[-1], flush=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Print every line, then the medians of both and how many times longer the second command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("commands", nargs=2)
    options = parser.parse_args()
    rounds = [[last_line(command) for command in options.commands] for _ in range(options.rounds)]
    first, second = ({key: median(line[key] for line in lines) for key in KEYS} for lines in zip(*rounds, strict=True))
    print(json.dumps({"first": first, "second": second, "ratio": {k: round(second[k] / first[k], 2) for k in KEYS}}))


if __name__ == "__main__":
    main()
