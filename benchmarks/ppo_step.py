"""Time one PPO step of the real PPOTrainer on a fixed workload, and compare it with the machine's matmul throughput.

Workload: random weights (gpt2: 6 layers, 768 wide, vocabulary 50257; t5: the shape of flan-t5-small, untied), prompts
of random tokens, responses to the token limit, LoRA r 16 on c_attn / q, v. Prints one JSON line: medians over the
steps after the first. `floor_s` is the step's floating-point operations over the throughput of a large matmul of the
same dtype, measured in the same run; `floor_ratio` is how many times longer the step took.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from workbench.config.schema import PolicyConfig, PPOConfig
from workbench.config.sources import DataSource
from workbench.config.tuning import LoraSettings
from workbench.models.adapters import load_trainable
from workbench.models.loading import policy_precision
from workbench.models.policy import Policy
from workbench.models.precision import autocast_dtype
from workbench.ppo.trainer import PPOTrainer

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "auto": "auto"}
SHAPES = {
    "gpt2": ({"n_layer": 6, "bos_token_id": 50256, "eos_token_id": 50256}, 50257, 50256, 50256),
    "t5": (
        {
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 1024,
            "num_layers": 8,
            "num_heads": 6,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
            "eos_token_id": 1,
        },
        32128,
        0,
        1,
    ),
}  # configuration, vocabulary, pad id, stop id


def arguments() -> argparse.Namespace:
    """Parse the flags of the workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=SHAPES, default="gpt2")
    parser.add_argument("--batch", type=int, default=32, help="prompts per step")
    parser.add_argument("--mini", type=int, default=8, help="responses per optimizer step")
    parser.add_argument("--prompt", type=int, default=32, help="tokens per prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens per response")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one warm-up step")
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32")
    parser.add_argument("--no-lora", action="store_true", help="train every weight")
    parser.add_argument("--depth", type=int, default=1, help="multiplies the layers")
    return parser.parse_args()


def save_model(folder: Path, arch: str, depth: int) -> PreTrainedTokenizerFast:
    """Save a model with random weights in `folder` and return a tokenizer of words t0, t1, ..."""
    shape, vocabulary, pad, stop = SHAPES[arch]
    torch.manual_seed(0)
    if arch == "gpt2":
        GPT2LMHeadModel(GPT2Config(**shape | {"n_layer": 6 * depth})).save_pretrained(folder)
    else:
        config = T5Config(vocab_size=vocabulary, **shape | {"num_layers": 8 * depth})
        T5ForConditionalGeneration(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t3"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=f"t{pad}", eos_token=f"t{stop}")


def make_trainer(options: argparse.Namespace, folder: Path) -> PPOTrainer:
    """Return a trainer built as in the PPO recipe."""
    tokenizer = save_model(folder / "model", options.arch, options.depth)
    settings = PolicyConfig(
        model=str(folder / "model"),
        precision=PRECISIONS[options.dtype],
        lora=None
        if options.no_lora
        else LoraSettings(r=16, alpha=32, target_modules={"gpt2": ["c_attn"], "t5": ["q", "v"]}[options.arch]),
    )
    accelerator = Accelerator(mixed_precision="no")
    parts = load_trainable(settings, None, device=accelerator.device)
    precision = policy_precision(settings, accelerator.device, parts.model.config)
    tokens = torch.randint(5, len(tokenizer) - 5, (options.batch * 4, options.prompt))
    return PPOTrainer(
        Policy(parts.model, tokenizer, reference=parts.reference, autocast=autocast_dtype(precision)),
        tokenizer,
        lambda prompts, completions, **columns: [float(i % 3) for i in range(len(completions))],
        [{"prompt": "", "prompt_ids": row} for row in tokens.tolist()],
        PPOConfig(
            data=DataSource(path=""),
            steps=options.steps + 1,
            batch_size=options.batch,
            minibatch_size=options.mini,
            epochs=options.epochs,
            max_new_tokens=options.new,
            learning_rate=1e-5,
        ),
        accelerator=accelerator,
        folder=folder,
        seed=0,
    )


def step(trainer: PPOTrainer) -> tuple[float, float, dict[str, float]]:
    """Take a step; return the seconds of generation and of everything after it, and the metrics."""
    start = time.perf_counter()
    rollout = trainer.rollout(trainer.batch(trainer.state.step))
    metrics = trainer.update(rollout)
    total = time.perf_counter() - start
    return rollout.seconds["generate"], total - rollout.seconds["generate"], metrics


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the floating-point operations per second of a large matmul, the best of several runs."""
    size, best = 2048, 0.0
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(8):
        start = time.perf_counter()
        (a @ b).sum().item()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def main() -> None:
    """Run the workload and print the JSON line."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options, Path(folder))
        with FlopCounterMode(display=False) as counter:
            step(trainer)
        timed = [step(trainer) for _ in range(options.steps)]
        # Before the matmul, which would set the peak of a small workload.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if trainer.accelerator.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**30
        rate = matrix_rate(trainer.unwrapped.autocast_dtype or torch.float32, trainer.accelerator.device)
    generate, update = (median(times) for times in list(zip(*timed, strict=True))[:2])
    floor = counter.get_total_flops() / rate
    lengths = {timed[-1][2][f"response/length_{end}"] for end in ("min", "max")}
    result = {
        "system": "workbench",
        "arch": options.arch,
        "dtype": options.dtype,
        "lora": not options.no_lora,
        "generate_s": round(generate, 2),
        "update_s": round(update, 2),
        "step_s": round(generate + update, 2),
        "episodes_per_s": round(options.batch / (generate + update), 3),
        "resp_lens": sorted(lengths),
        "peak_gib": round(peak, 2),
        "tflop": round(counter.get_total_flops() / 1e12, 3),
        "tflop_per_s": round(rate / 1e12, 3),
        "floor_s": round(floor, 2),
        "floor_ratio": round((generate + update) / floor, 2),
        "seconds": {name: value for name, value in timed[-1][2].items() if name.startswith("seconds/")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
