"""Seconds per step, peak memory and seconds until toxicity has halved: this project's GRPO and RLOO against TRL's.

Both get the same model, adapter weights, prompts in the same order, reward, precision, threads and settings (those of
a shipped configuration with `--KEY VALUE` over them, as a recipe takes them). Every training runs in a process of its
own. A round trains each algorithm with both systems, one after the other, the first of them in turn; its seed is its
number. Adapters are saved every few steps while the clock stands still. A further process samples the validation
prompts under them with this project's sampler and one seed, and a judge that nothing was trained on reads the samples,
until their mean toxicity has halved, and those of the last adapter.
A step is the samples, their scores and all updates on them; the first of each training is left out of the medians.

What differs, because it is how the two work:
- GRPO has TRL's loss exactly (`tests/test_trl_losses.py`) but for its weight: TRL divides by the mean number of tokens
  of a minibatch, this project by the minibatch's own. TRL makes the minibatches once per step, this project in every
  epoch anew. Both update `epochs` times on all responses.
- RLOO clips the ratio of whole responses in TRL, and averages over responses; here it clips tokens and averages over
  them. The advantages are the same.
- TRL gives the model no positions where it scores responses, so that GPT-2 sees those of shorter prompts shifted by the
  padding. Models with rotary positions, such as SmolLM2, only see distances.
- TRL's defaults for speed stay: its fused optimizer, attention and head. Its gradient checkpointing, which trades speed
  for memory, is off, because it is off here. In bf16 both keep the frozen base in bf16.
- This project checks its first rollout (`ppo.self_checks`), logs every step and keeps samples; that is in its seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from workbench.config.derived import configured_stages
from workbench.config.names import SFT
from workbench.config.parsing import dump, parse
from workbench.config.schema import Config
from workbench.run.files import write_text
from workbench.run.process import run_recipe

ALGORITHMS = ("grpo", "rloo")
SYSTEMS = ("workbench", "trl")
PARTS = ("generate", "score", "update")
GIB = 2**30
COMMON = (
    "--ppo.samples_per_prompt 4 --ppo.schedule constant --ppo.score_clip null --ppo.score_scale 1 "
    "--ppo.value_model shared --ppo.value_learning_rate null"
)


@dataclass(frozen=True)
class Model:
    """A model to train, and what that takes."""

    config: str
    settings: str
    """Changes to the configuration."""
    stages: tuple[str, ...]
    """Recipes that make the start and the reward, once."""
    steps: int
    every: int
    """Steps between measurements of toxicity."""
    rounds: int


MODELS = {
    "toy:gpt2": Model(
        config="quickstart_gpt2",
        # Full fine-tuning, so that both systems start from a folder with a whole model.
        settings="--sft.learning_rate 1e-3 --ppo.learning_rate 1e-4 --ppo.kl_coef 0.05 --ppo.batch_size 32",
        stages=("sft", "reward"),
        steps=20,
        every=1,
        rounds=2,
    ),
    "smollm2": Model(config="smollm2_cpu", settings="", stages=("reward",), steps=30, every=2, rounds=1),
}


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the benchmark's own options, and changes to the configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", choices=MODELS, default="toy:gpt2")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--rounds", type=int, help="trainings of each algorithm and system")
    parser.add_argument("--steps", type=int, help="steps per training")
    parser.add_argument("--every", type=int, help="steps between measurements of toxicity")
    parser.add_argument("--validation", type=int, default=100, help="prompts on which toxicity is measured")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=Path("runs/time_to_target"))
    parser.add_argument("--block", help=argparse.SUPPRESS)
    options, changes = parser.parse_known_args(argv)
    model = MODELS[options.model]
    options.steps, options.every = options.steps or model.steps, options.every or model.every
    options.rounds = options.rounds or model.rounds
    options.folder = options.folder / options.model.replace(":", "_")
    return options, changes


def start_config(options: argparse.Namespace, changes: Sequence[str]) -> Config:
    """Return the configuration of the stages that make the start and the reward, which no setting of PPO changes."""
    model = MODELS[options.model]
    stored = ["--config", f"recipes/configs/{model.config}.yaml", "--name", "start", "--runs", str(options.folder)]
    config = parse([*stored, *model.settings.split(), *changes])[0]
    return replace(config, policy=replace(config.policy, lora=None), ppo=None)


def block_config(options: argparse.Namespace, changes: Sequence[str], algorithm: str) -> Config:
    """Return the configuration that both systems train with."""
    model = MODELS[options.model]
    settings = f"{model.settings} {COMMON} --ppo.advantage {algorithm} --ppo.steps {options.steps}".split()
    config = parse(["--config", f"recipes/configs/{model.config}.yaml", *settings, *changes])[0]
    if config.sft is None:
        return config
    return replace(config, policy=replace(config.policy, model=str(options.folder / "start" / SFT)))


def run_block(options: argparse.Namespace, changes: Sequence[str]) -> dict[str, Any]:
    """Return the result of the training, or the judge's measurements, that `options.block` names."""
    import torch

    from benchmarks.contestants import load_rewards, load_untrained, load_workload, snapshot, toxicity, train

    torch.set_num_threads(options.threads)
    kind, algorithm, seed = options.block.split("-")
    workload = load_workload(block_config(options, changes, algorithm), options.validation)
    reward, judge = load_rewards(workload.config, options.folder / "start")
    if kind != "judge":
        return train(workload, reward, kind, int(seed), options.every, block_folder(options, options.block))
    files = {system: partial(snapshot, block_folder(options, f"{system}-{algorithm}-{seed}")) for system in SYSTEMS}
    if files["workbench"](0).read_bytes() != files["trl"](0).read_bytes():
        raise SystemExit(f"error: the systems start {algorithm} from different adapters")
    measure = partial(toxicity, workload, judge, load_untrained(workload))
    steps = [*range(options.every, options.steps, options.every), options.steps]
    untrained = measure(files["trl"](0))
    return {system: curve(measure, files[system], untrained, steps) for system in SYSTEMS}


def curve(
    measure: Callable[[Path], float], file: Callable[[int], Path], untrained: float, steps: Sequence[int]
) -> dict[int, float]:
    """Return the toxicity by step: until it is at most half of `untrained`, and after the last step."""
    measured = {0: untrained}
    for step in steps:
        if min(measured.values()) > untrained / 2 or step == steps[-1]:
            measured[step] = measure(file(step))
    return measured


def block_folder(options: argparse.Namespace, block: str) -> Path:
    """Return the folder of a training."""
    return options.folder / "blocks" / block


def start_block(argv: Sequence[str], options: argparse.Namespace, block: str) -> dict[str, Any]:
    """Return the JSON line of a block, run in a process of its own; exit with its error if it fails."""
    command = [sys.executable, "-m", "benchmarks.time_to_target", *argv, "--block", block]
    print(f"{block} ...", file=sys.stderr, flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"error: {block}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_rounds(argv: Sequence[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all trainings, and write what has been measured after each pair of them."""
    blocks: list[dict[str, Any]] = []
    for turn in range(options.rounds):
        for index, algorithm in enumerate(options.algorithms):
            order = SYSTEMS if (turn + index) % 2 == 0 else SYSTEMS[::-1]
            pair = []
            for system in order:
                block = f"{system}-{algorithm}-{turn}"
                folder = block_folder(options, block)
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                pair.append(start_block(argv, options, block))
            curves = start_block(argv, options, f"judge-{algorithm}-{turn}")
            blocks += [result | {"toxicity": curves[result["system"]]} for result in pair]
            (options.folder / "results.json").write_text(json.dumps(blocks, indent=1) + "\n", encoding="utf-8")
    return blocks


def time_to_half(block: dict[str, Any]) -> str:
    """Return the seconds and steps up to the first measurement of at most half the untrained toxicity, as a text."""
    for step, value in block["toxicity"].items():
        if value <= block["toxicity"]["0"] / 2:
            return f"{sum(seconds['total'] for seconds in block['steps'][: int(step)]):.1f} (step {step})"
    return f"not within {len(block['steps'])} steps"


def table(blocks: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table with a row for each algorithm and system, and lines of ratios and of what was used."""
    heads = ["algorithm", "system", "seconds per step (quartiles)", *PARTS, "peak GiB (before training)"]
    heads += ["seconds to half the toxicity", "toxicity, first to last"]
    lines, ratios = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], []
    for algorithm in dict.fromkeys(block["algorithm"] for block in blocks):
        medians = {}
        for system in SYSTEMS:
            rounds = [block for block in blocks if (block["algorithm"], block["system"]) == (algorithm, system)]
            steps = [seconds for block in rounds for seconds in block["steps"][1:]]
            totals = [seconds["total"] for seconds in steps]
            quarter, medians[system], three_quarters = quantiles(totals, n=4) if len(totals) > 1 else [totals[0]] * 3
            cells = [algorithm, system, f"{medians[system]:.2f} ({quarter:.2f} to {three_quarters:.2f})"]
            cells += [f"{median(seconds[part] for seconds in steps):.2f}" for part in PARTS]
            peak, loaded = (max(block[name] for block in rounds) / GIB for name in ("peak_bytes", "loaded_bytes"))
            cells += [f"{peak:.2f} ({loaded:.2f})", ", ".join(map(time_to_half, rounds))]
            ends = [list(block["toxicity"].values()) for block in rounds]
            cells.append("; ".join(f"{values[0]:.3f} to {values[-1]:.3f}" for values in ends))
            lines.append(f"| {' | '.join(cells)} |")
        ratios.append(f"{algorithm}: TRL takes {medians['trl'] / medians['workbench']:.2f} times as long per step")
    settings = ", ".join(f"{name} {value}" for name, value in blocks[0]["settings"].items())
    return "\n".join([*lines, "", *ratios, settings])


def main(argv: list[str]) -> None:
    """Make the start and the reward unless they exist, run the rounds and print the table."""
    options, changes = arguments(argv)
    if options.block:
        print(json.dumps(run_block(options, changes)))
        return
    config, file = start_config(options, changes), options.folder / "start.yaml"
    options.folder.mkdir(parents=True, exist_ok=True)
    write_text(file, dump(config))
    for stage in MODELS[options.model].stages:
        if stage in configured_stages(config):
            command = [sys.executable, "-m", f"recipes.{stage}", "--config", str(file)]
            if code := subprocess.run(command, stdout=sys.stderr, check=False).returncode:
                raise SystemExit(code)
    print(table(run_rounds(argv, options)))
    print(f"\n{options.folder / 'results.json'}")


if __name__ == "__main__":
    run_recipe(main)
