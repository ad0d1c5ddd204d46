"""Small runs for the tests of what the course's labs do wrong."""

from __future__ import annotations

from pathlib import Path

import tiny
from accelerate import Accelerator
from small_runs import drop, small
from trainers import make_rows

from workbench.evaluation.generation import ComparedModel, Sampling, sample_completions

REWARD_STAGE = (
    *("--reward.train.data.limit", "--reward.train.validation.limit", "--reward.train.epochs"),
    *("--reward.train.clean_data", "--reward.train.clean_validation.limit"),
)


def quickstart(folder: Path, *options: str) -> list[str]:
    """Return the options of a short quickstart without a trained reward."""
    return drop(small("quickstart", folder, *options), *REWARD_STAGE)


def completions(architecture: str, seed: int, limit: int) -> list[tuple[str, bool]]:
    """Return the seeded completions of a tiny policy to twelve prompts, and whether each was cut."""
    policy, tokenizer = tiny.policy(architecture, lora=True), tiny.tokenizer(architecture)
    model = ComparedModel("sft", policy, "sft", tokenizer, None, with_token_log_ratios=False)
    sampling = Sampling(batch_size=5, max_new_tokens=limit, temperature=1.0, seeds=(seed,))
    rows = make_rows(architecture, 12)
    by_prompt = sample_completions(model, rows, sampling, accelerator=Accelerator(cpu=True), label="")
    return [(completion.text, completion.truncated) for (completion,) in by_prompt]


def vowels(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """Score a completion of one vowel."""
    return [float(text in tuple("aeiou")) for text in completions]
