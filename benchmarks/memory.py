"""Compare the memory that a plan predicts for each stage with what the stage takes, for models with random weights.

The models have the shapes of GPT-2 with six layers, Flan-T5-small and SmolLM2-135M. Each stage runs from its plan to
its end in a process of its own, whose memory before the stage is subtracted. The prediction is the highest of the
plan's peaks; --precision bf16 or fp16 takes a machine that computes fast in it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import ppo_step
from recipes import evaluation, ppo, reward, sft
from workbench.config.parsing import parse
from workbench.config.schema import Config
from workbench.errors import UserError
from workbench.models.loading import load_policy_tokenizer
from workbench.models.memory import GIB, Peak
from workbench.models.memory_plan import planned_model, policy_peaks, reward_peak
from workbench.run.cli import execute

STAGES = {stage.name: stage for stage in (sft.STAGE, reward.STAGE, ppo.STAGE, evaluation.STAGE)}
TARGETS = {"gpt2": ["c_attn"], "t5": ["q", "v"], "smollm2": ["q_proj", "v_proj"]}
PROMPT, RESPONSE, ROWS, VOCABULARY, MAX_TOKENS = 48, 16, 8, 49152, 128


def save_model(folder: Path, arch: str) -> None:
    """Save a model and a tokenizer of the words that `word` writes."""
    if arch == "smollm2":
        save_smollm2(folder)
        vocabulary, pad, stop = VOCABULARY, 0, 0
    else:
        ppo_step.save_model(folder, arch, 1)
        _, vocabulary, pad, stop = ppo_step.SHAPES[arch]
    words = Tokenizer(models.WordLevel({word(index): index for index in range(vocabulary)}, unk_token=word(2)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if arch == "t5":  # its classifier reads the state at the end of the text
        end = word(stop)
        words.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, stop)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=word(stop), pad_token=word(pad), unk_token=word(2), model_max_length=512
    )
    tokenizer.save_pretrained(folder)


def word(token: int) -> str:
    """Return the word of a token, as long as all others: a special token would also be found inside a longer one."""
    return f"t{token:05}"


def save_smollm2(folder: Path) -> None:
    """Save a model of SmolLM2-135M's shape."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        **sizes | ids,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def save_rows(file: Path) -> None:
    """Save rows whose prompts and responses all have as many words."""
    words = iter(range(5, 10**9))

    def text(length: int) -> str:
        return " ".join(word(5 + next(words) % 1000) for _ in range(length))

    rows = [{"prompt": text(PROMPT), "response": text(RESPONSE), "label": f"l{row % 2}"} for row in range(64)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def configuration(folder: Path, arch: str, training: str, precision: str, stage: str) -> Config:
    """Return a configuration of all stages, each of a few steps; the reward is trained in that stage alone."""
    source: dict[str, Any] = {"path": str(folder / "rows.jsonl"), "template": "{prompt}"}
    lora = {"r": 16, "alpha": 32, "target_modules": TARGETS[arch]} if training == "lora" else None
    settings: dict[str, Any] = {
        "name": f"{arch}_{training}",
        "runs": str(folder / "runs"),
        "policy": {"model": str(folder / arch), "lora": lora, "precision": precision},
        "sft": {
            "data": source,
            "batch_size": ROWS,
            "max_steps": 2,
            "learning_rate": 1e-5,
        },
        "reward": {
            "model": "length",
            "train": {
                "model": str(folder / arch),
                "precision": precision,
                "data": {"path": source["path"], "columns": {"text": "prompt"}},
                "validation": {"path": source["path"], "columns": {"text": "prompt"}},
                "target_label": "l0",
                "batch_size": ROWS,
                "max_tokens": MAX_TOKENS,
                "trainer_args": {"max_steps": 2},
            },
        },
        "ppo": {
            "data": source,
            "steps": 2,
            "batch_size": 2 * ROWS,
            "minibatch_size": ROWS,
            "epochs": 1,
            "max_new_tokens": RESPONSE,
            "learning_rate": 1e-6,
            "self_checks": False,
        },
        "evaluation": {
            "data": {"test": source | {"limit": 2 * ROWS}},
            "batch_size": 2 * ROWS,
            "max_new_tokens": RESPONSE,
        },
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    config = parse(["--config", str(file)])[0]
    if stage != "reward":
        return config
    assert config.reward is not None
    return replace(config, name=f"{config.name}_reward", reward=replace(config.reward, model=None))


def measure(stage: str, config: Config) -> float:
    """Return the bytes that the stage adds to the process at its peak."""
    STAGES[stage].plan(config)  # imports what the stage will
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew, as Linux has it
    before = psutil.Process().memory_info().rss
    # A reward trained on noise is refused, after it was trained.
    with suppress(UserError) if stage == "reward" else nullcontext():
        execute([STAGES[stage]], config, None)
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return 1024 * int(status["VmHWM"].removesuffix("kB")) - before


def predict(stage: str, config: Config, precision: str, rows: Path) -> Peak:
    """Return the highest peak of the plan."""
    tokenizer = load_policy_tokenizer(config.policy.model)
    texts = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    prompt, response = (max(len(tokenizer(row[name]).input_ids) for row in texts) for name in ("prompt", "response"))
    if stage == "reward":
        assert config.reward is not None
        assert config.reward.train is not None
        return reward_peak(config.reward.train, min(prompt, MAX_TOKENS))
    # SFT trains the stop token, too; sampling ends at its limit.
    peaks = policy_peaks(
        config, stage, planned_model(config), precision, prompt, response + 1 if stage == "sft" else RESPONSE
    )
    return max(peaks, key=lambda peak: peak.total)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the prediction, the measurement and their ratio for each model and stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--arch", nargs="*", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--measured", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measured:
        folder, arch, training, stage = options.measured
        print(json.dumps(measure(stage, configuration(Path(folder), arch, training, options.precision, stage))))
        return
    print(
        "| model | training | stage | predicted, GiB | measured, GiB | ratio |\n|---|---|---|---|---|---|", flush=True
    )
    for arch in options.arch:
        for training in ("lora", "full"):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                save_model(folder / arch, arch)
                save_rows(folder / "rows.jsonl")
                for stage in STAGES:
                    if stage == "reward" and training == "lora":  # it trains every weight of the classifier
                        continue
                    config = configuration(folder, arch, training, options.precision, stage)
                    command = [
                        sys.executable,
                        "-m",
                        "benchmarks.memory",
                        "--precision",
                        options.precision,
                        "--measured",
                    ]
                    words = [str(folder), arch, training, stage]
                    done = subprocess.run([*command, *words], capture_output=True, encoding="utf-8", env=os.environ)
                    if done.returncode:
                        raise SystemExit(done.stderr)
                    measured = json.loads(done.stdout.splitlines()[-1])
                    predicted = predict(stage, config, options.precision, folder / "rows.jsonl")
                    print(
                        f"| {arch} | {training} | {stage} | {predicted.total / GIB:.2f} | {measured / GIB:.2f} | "
                        f"{predicted.total / measured:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
