"""Answers of base, SFT, aligned and further models to the same prompts, with the same random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.errors import UserError
from workbench.models.policy import Policy
from workbench.models.sampling import is_truncated
from workbench.ppo.rollout import decode
from workbench.ppo.sampler import derive_seed
from workbench.run.progress import Progress


@dataclass(frozen=True)
class Answer:
    """One sampled answer to one prompt."""

    text: str
    tokens: int
    """Sampled tokens."""
    truncated: bool
    """Cut at the token limit."""
    kl: float | None
    """Estimate of KL to the reference, nats (k1); None for a model with another vocabulary."""
    base_nll: float | None
    """Minus the log-probability of its tokens under the base at temperature 1; None likewise."""
    moved: list[tuple[str, float]] | None
    """Each token as text, with its log-probability less that under the reference, nats; where it was asked for."""


@dataclass(frozen=True)
class Contestant:
    """A model whose answers are compared."""

    title: str
    policy: Policy
    variant: str
    """Its name in `policy`, see Policy.using."""
    tokenizer: PreTrainedTokenizerBase
    base: Policy | None
    """What holds the base under the name "base", and shares the vocabulary; None for a model with one of its own."""
    with_token_log_ratios: bool
    """Whether the first answer to each prompt shall say where each of its tokens moved."""


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled."""

    batch_size: int
    max_new_tokens: int
    temperature: float
    seeds: tuple[int, ...]
    """One for each answer to a prompt."""


def answer(
    contender: Contestant, rows: Sequence[dict[str, Any]], sampling: Sampling, *, accelerator: Accelerator, label: str
) -> list[list[Answer]]:
    """For each of `rows` one answer per seed, shared out over the processes.

    Prompt i is always sampled with the same random numbers for the same seed, whatever the model and the batch.
    """
    seeds = sampling.seeds
    places = [(index, seed) for index in range(len(rows)) for seed in seeds]
    found: list[Answer] = []
    progress = Progress(label, len(places), show=accelerator.is_main_process)
    with accelerator.split_between_processes(places) as mine:
        for first in range(0, len(mine), sampling.batch_size):
            part = mine[first : first + sampling.batch_size]
            found += _batch(
                contender,
                [rows[index]["prompt_ids"] for index, _ in part],
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                seeds=[derive_seed(seed, index) for index, seed in part],
                with_token_log_ratios=[contender.with_token_log_ratios and seed == seeds[0] for _, seed in part],
            )
            progress.advance(len(part) * accelerator.num_processes)
    progress.close()
    gathered = gather_object(found)
    return [gathered[first : first + len(seeds)] for first in range(0, len(places), len(seeds))]


def _batch(
    contender: Contestant,
    prompt_ids: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seeds: list[int],
    with_token_log_ratios: list[bool],
) -> list[Answer]:
    policy, tokenizer = contender.policy, contender.tokenizer
    ids, mask = policy.pad_prompts(prompt_ids)
    with policy.using(contender.variant):
        batch = policy.generate(ids, mask, max_new_tokens=max_new_tokens, temperature=temperature, seeds=seeds)
    response_mask = batch.response_mask
    texts = decode(tokenizer, batch)
    truncated = is_truncated(batch.response_ids, response_mask, policy.stop_ids).tolist()
    lengths = response_mask.sum(dim=1).tolist()
    if contender.base is None:
        return [
            Answer(text, tokens, cut, None, None, None)
            for text, tokens, cut in zip(texts, lengths, truncated, strict=True)
        ]
    own = policy.logprobs(contender.variant, batch, temperature or 1.0)
    moved = own - policy.logprobs("reference", batch, temperature or 1.0)
    base = contender.base.logprobs("base", batch, 1.0)
    if not (moved + base).isfinite().all():
        raise UserError(
            f"evaluation: {contender.title}: its answers' log-probabilities are no numbers under it, the reference or "
            "the base; weights of one of them are damaged"
        )
    kls, nats = moved.sum(dim=1).tolist(), (-base.sum(dim=1)).tolist()
    pieces = [
        _pieces(tokenizer, batch.response_ids[row][response_mask[row]], moved[row][response_mask[row]])
        if wanted
        else None
        for row, wanted in enumerate(with_token_log_ratios)
    ]
    return [Answer(*fields) for fields in zip(texts, lengths, truncated, kls, nats, pieces, strict=True)]


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Tensor, numbers: Tensor) -> list[tuple[str, float]]:
    """Tokens (T,) as what each adds to the text before it, with its number: alone, one may be half a character."""
    kept = ids.tolist()
    texts = [tokenizer.decode(kept[:end], skip_special_tokens=True) for end in range(len(kept) + 1)]
    pieces = [text[len(before) :] for before, text in pairwise(texts)]
    return [(piece, round(number, 3)) for piece, number in zip(pieces, numbers.tolist(), strict=True)]
