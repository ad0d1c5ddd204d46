"""Time and memory of RealToxicityPrompts' protocol: 25 samples of 20 tokens with top-p 0.9, for more and more prompts.

Prints the seconds of sampling, the share of it that noise and nucleus take, the seconds of scoring under the base, and
by how much the memory of the process had risen at its peak.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from workbench.config.schema import PolicyConfig
from workbench.config.sources import DataSource
from workbench.data.prompts import load_configured_prompts
from workbench.evaluation.generation import ComparedModel, Sampling, sample_completions, sample_seeds
from workbench.models.architecture import checked_policy
from workbench.models.decoding import Decoding
from workbench.models.loading import load_config, load_model, load_policy_tokenizer, policy_precision
from workbench.models.policy import Policy
from workbench.models.positions import model_context
from workbench.models.precision import autocast_dtype
from workbench.models.sampling import SeededSampling

SAMPLES, TOKENS, TOP_P = 25, 20, 0.9
MEBIBYTE = 1024  # ru_maxrss is in KiB


@contextmanager
def timed(cls: type, method: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add up in `seconds` what the calls of a method take."""
    original = getattr(cls, method)

    def wrapped(*arguments: object, **options: object) -> object:
        start = time.perf_counter()
        result = original(*arguments, **options)
        seconds[method] = seconds.get(method, 0.0) + time.perf_counter() - start
        return result

    setattr(cls, method, wrapped)
    try:
        yield
    finally:
        setattr(cls, method, original)


def main() -> None:
    """Sample and score for each number of prompts, the smallest first, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--data", default="data/realtoxicity_prompts_more/nontoxic_train.jsonl")
    parser.add_argument("--prompts", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--batch_size", type=int, default=250)
    options = parser.parse_args()
    config, accelerator = PolicyConfig(options.model), Accelerator()
    tokenizer = load_policy_tokenizer(options.model)
    context = model_context(load_config(options.model), tokenizer)
    source = DataSource(options.data)
    rows, _ = load_configured_prompts("data", source, tokenizer, max_new_tokens=TOKENS, context=context)
    precision = policy_precision(config, accelerator.device)
    model = load_model(config, device=accelerator.device)
    policy = checked_policy(model, tokenizer, autocast=autocast_dtype(precision))
    compared = ComparedModel("base", policy, "base", tokenizer, policy, with_token_log_ratios=False)
    sampling = Sampling(options.batch_size, TOKENS, 1.0, sample_seeds([0], SAMPLES), Decoding(top_p=TOP_P))
    print(f"{options.model}, {precision}, {torch.get_num_threads()} threads, batches of {options.batch_size}")
    before = peak_memory()
    for count in itertools.takewhile(lambda count: count <= len(rows), sorted(options.prompts)):
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        with timed(SeededSampling, "__call__", seconds), timed(Policy, "logprobs", seconds):
            sample_completions(compared, rows[:count], sampling, accelerator=accelerator, label=f"{count} prompts")
        total = time.perf_counter() - start
        scoring, risen = seconds["logprobs"], (peak_memory() - before) / MEBIBYTE
        share = seconds["__call__"] / (total - scoring)
        print(
            f"{count} prompts: {total / 60:.1f} min, of which scoring {scoring / 60:.1f}; noise and nucleus take "
            f"{share:.1%} of sampling; peak memory +{risen:.0f} MiB"
        )


def peak_memory() -> float:
    """Return the largest resident memory of the process so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
