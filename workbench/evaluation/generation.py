"""Sample completions from several models for the same prompts with the same seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workbench.errors import UserError
from workbench.models.anti_expert import AntiExpert, SteeredLogits, steered_logprobs
from workbench.models.decoding import PLAIN, Decoding
from workbench.models.policy import Batch, Policy
from workbench.models.sampling import is_truncated
from workbench.models.stop_strings import StopStrings, before_texts, end_at_texts
from workbench.ppo.micro_batches import MicroBatches
from workbench.ppo.rollout import decode
from workbench.ppo.sampler import derive_seed
from workbench.ppo.scoring import sampled_ids
from workbench.run.progress import Progress

MAX_NATS_PER_TOKEN = 700.0  # its exponential is the largest perplexity that a float holds


@dataclass(frozen=True)
class Completion:
    """One sampled completion of one prompt."""

    text: str
    tokens: int
    """Sampled tokens, the stop token included."""
    truncated: bool
    """Cut at the token limit."""
    kl: float | None
    """Estimate of KL to the reference (k1), nats per completion; None for a model with another vocabulary."""
    base_nll: float | None
    """Negative log-likelihood under the base at temperature 1, nats per completion; None for another vocabulary."""
    token_log_ratios: list[tuple[str, float]] | None
    """Each token as text with its log-probability minus that under the reference, nats; None unless requested."""
    ids: list[int] | None = None
    """The sampled tokens, the stop token included; None for a text that was not sampled here."""
    leading: str = " "
    """Whitespace that was sampled in front of the text; an encoder-decoder samples none."""


@dataclass(frozen=True)
class ComparedModel:
    """A loaded model whose completions are compared."""

    title: str
    policy: Policy
    variant: str
    """Its name in `policy`; see Policy.variant."""
    tokenizer: PreTrainedTokenizerBase
    base: Policy | None
    """The policy that holds the base as "base" and shares the vocabulary; None for a model with another vocabulary."""
    with_token_log_ratios: bool
    """Whether the first completion of each prompt gets its token_log_ratios."""
    anti_expert: AntiExpert | None = None
    """What the model is steered away from; None for the model alone."""

    def logprobs(self, batch: Batch, temperature: float) -> Tensor:
        """Return log-probabilities (B, T) of responses under the model, steered where it is; 0 at masked positions."""
        if self.anti_expert is None:
            return self.policy.logprobs(self.variant, batch, temperature)
        return steered_logprobs(self.policy, self.variant, self.anti_expert, batch, temperature)


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled."""

    batch_size: int
    max_new_tokens: int
    temperature: float
    seeds: tuple[int, ...]
    """One for each completion of a prompt."""
    decoding: Decoding = PLAIN
    stop_strings: tuple[str, ...] = ()
    """Texts that end a completion, which they are no part of."""


def sample_seeds(seeds: Sequence[int], samples: int) -> tuple[int, ...]:
    """Return the seeds of `samples` completions for each of `seeds`: the first is the seed itself."""
    return tuple(seed if sample == 0 else derive_seed(seed, sample, 2) for seed in seeds for sample in range(samples))


def sample_completions(
    model: ComparedModel,
    rows: Sequence[dict[str, Any]],
    sampling: Sampling,
    *,
    accelerator: Accelerator,
    label: str,
    plain_rows: Sequence[dict[str, Any]] | None = None,
) -> list[list[Completion]]:
    """Return one completion per seed for each of `rows`; the processes share the work.

    Prompt i is always sampled with the same random numbers for the same seed, whatever the model and the batch. Where
    reference and base read other prompts, these are `plain_rows`.
    """
    seeds = sampling.seeds
    # The longest first: a batch has little padding, and one that is too large fails at once.
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["prompt_ids"]))
    jobs = [(index, seed) for index in order for seed in seeds]
    sampled: list[Completion] = []
    progress = Progress(label, len(jobs), show=accelerator.is_main_process)
    limit = MicroBatches(sampling.batch_size, "evaluation.batch_size", can_halve=True)
    with accelerator.split_between_processes(jobs) as local_jobs:

        def sample(first: int, size: int) -> list[Completion]:
            part = local_jobs[first : first + size]
            return sample_batch(
                model,
                [rows[index]["prompt_ids"] for index, _ in part],
                sampling,
                plain_ids=None if plain_rows is None else [plain_rows[index]["prompt_ids"] for index, _ in part],
                seeds=[derive_seed(seed, index) for index, seed in part],
                with_token_log_ratios=[model.with_token_log_ratios and seed == seeds[0] for _, seed in part],
            )

        while len(sampled) < len(local_jobs):
            first = len(sampled)
            sampled += limit.run(partial(sample, first))
            progress.advance((len(sampled) - first) * accelerator.num_processes)
    progress.close()
    gathered = gather_object(sampled)
    by_row = {index: gathered[len(seeds) * i : len(seeds) * (i + 1)] for i, index in enumerate(order)}
    return [by_row[index] for index in range(len(rows))]


def generate(
    model: ComparedModel, prompt_ids: list[list[int]], sampling: Sampling, seeds: list[int]
) -> tuple[Batch, list[bool]]:
    """Return a response to each prompt, with a seed for each, and whether a stop string ended it."""
    policy, stops, decoding = model.policy, sampling.stop_strings, sampling.decoding
    ids, mask = policy.pad_prompts(prompt_ids)
    if stops:
        first = 1 if policy.is_encoder_decoder else ids.shape[1]
        decoding = dataclasses.replace(decoding, stopping=StopStrings(model.tokenizer, stops, first))
    if model.anti_expert is not None:
        filters, temperature = decoding.filters(), sampling.temperature or 1.0
        steering = SteeredLogits(policy, model.variant, model.anti_expert, (ids, mask), temperature, filters)
        decoding = dataclasses.replace(decoding, top_k=None, top_p=None, steering=steering)
    with policy.variant(model.variant):
        batch = policy.generate(
            ids,
            mask,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seeds=seeds,
            decoding=decoding,
        )
    # Without stop strings no response has to be decoded once more.
    return end_at_texts(batch, model.tokenizer, stops) if stops else (batch, [False] * len(ids))


def sample_batch(
    model: ComparedModel,
    prompt_ids: list[list[int]],
    sampling: Sampling,
    *,
    seeds: list[int],
    with_token_log_ratios: list[bool],
    plain_ids: list[list[int]] | None = None,
) -> list[Completion]:
    """Return one completion for each prompt; the seeds and requests for token_log_ratios are one per prompt.

    Where reference and base read other prompts, these are `plain_ids`: model and prefix together are one policy, which
    is given the plain prompt. Raises UserError for log-probabilities that are not finite.
    """
    policy, tokenizer, stops = model.policy, model.tokenizer, sampling.stop_strings
    batch, stopped = generate(model, prompt_ids, sampling, seeds)
    response_mask = batch.response_mask
    texts = [before_texts(text, stops).strip() for text in decode(tokenizer, batch)]
    without_stop = is_truncated(batch.response_ids, response_mask, policy.stop_ids).tolist()
    truncated = [cut and not ended for cut, ended in zip(without_stop, stopped, strict=True)]
    lengths, ids = response_mask.sum(dim=1).tolist(), sampled_ids(batch)
    spaces = [" "] * len(ids) if policy.is_encoder_decoder else leading_spaces(tokenizer, prompt_ids, ids)
    if model.base is None:
        return [
            Completion(text, tokens, cut, None, None, None, token_ids, space)
            for text, tokens, cut, token_ids, space in zip(texts, lengths, truncated, ids, spaces, strict=True)
        ]
    temperature = sampling.temperature or 1.0
    plain = batch
    if plain_ids is not None:
        plain = Batch(*policy.pad_prompts(plain_ids), batch.response_ids, response_mask)
    scored: dict[tuple[Policy, str, float], Tensor] = {}

    def logprobs(scorer: Policy, variant: str, temperature: float) -> Tensor:
        """Return the log-probabilities under a variant, computed once for all that have the same weights."""
        key = (scorer, scorer.weights_of(variant), temperature)
        if key not in scored:
            scored[key] = scorer.logprobs(variant, plain, temperature)
        return scored[key]

    reference = logprobs(policy, "reference", temperature)
    is_plain = plain is batch and model.anti_expert is None
    sampled = logprobs(policy, model.variant, temperature) if is_plain else model.logprobs(batch, temperature)
    log_ratios, base_logprobs = sampled - reference, logprobs(model.base, "base", 1.0)
    if not (log_ratios + base_logprobs).isfinite().all():
        raise UserError(
            f"evaluation: {model.title}: log-probabilities of its completions are not finite under the model, the "
            "reference or the base; the weights of one of them are corrupt"
        )
    kls, base_nlls = log_ratios.sum(dim=1).tolist(), (-base_logprobs.sum(dim=1)).tolist()
    pieces = [
        _text_pieces(tokenizer, batch.response_ids[row][response_mask[row]], log_ratios[row][response_mask[row]])
        if is_requested
        else None
        for row, is_requested in enumerate(with_token_log_ratios)
    ]
    columns = (texts, lengths, truncated, kls, base_nlls, pieces, ids, spaces)
    return [Completion(*fields) for fields in zip(*columns, strict=True)]


def leading_spaces(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[list[int]], ids: Sequence[list[int]]
) -> list[str]:
    """Return the whitespace between each prompt and its completion; some tokenizers drop it from the latter alone."""
    whole = [before + after for before, after in zip(prompt_ids, ids, strict=True)]
    prompts, texts = (tokenizer.batch_decode(rows, skip_special_tokens=True) for rows in (prompt_ids, whole))
    added = [text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]
    return [text[: len(text) - len(text.lstrip())] for text in added]


def _text_pieces(tokenizer: PreTrainedTokenizerBase, ids: Tensor, values: Tensor) -> list[tuple[str, float]]:
    """Return the text that each token (T,) adds, with its value: decoded alone, a token may be half a character."""
    tokens = ids.tolist()
    texts = [tokenizer.decode(tokens[:end], skip_special_tokens=True) for end in range(len(tokens) + 1)]
    pieces = [text[len(before) :] for before, text in pairwise(texts)]
    return [(piece, round(value, 3)) for piece, value in zip(pieces, values.tolist(), strict=True)]


def perplexity(nats: float, tokens: int) -> float:
    """Return the perplexity of all tokens together; 1 without tokens."""
    return math.exp(min(nats / max(tokens, 1), MAX_NATS_PER_TOKEN))


def reference_perplexity(
    base: Policy, pairs: Sequence[tuple[list[int], list[int]]], batch_size: int, *, accelerator: Accelerator
) -> float | None:
    """Return the perplexity under the base at temperature 1 of all references together; None without any.

    Each of `pairs` holds the ids of a prompt and of its reference, which ends with EOS as a sampled completion does.
    The processes share the work.
    """
    if not pairs:
        return None
    nats: list[float] = []
    with accelerator.split_between_processes(list(pairs)) as local_pairs:
        for first in range(0, len(local_pairs), batch_size):
            prompt_ids, reference_ids = zip(*local_pairs[first : first + batch_size], strict=True)
            batch: Batch = base.make_batch(prompt_ids, reference_ids)
            nats += (-base.logprobs("base", batch, 1.0).sum(dim=1)).tolist()
    total = sum(gather_object(nats)[: len(pairs)])  # with fewer pairs than processes, accelerate repeats the last one
    if not math.isfinite(total):
        raise UserError(
            "evaluation: log-probabilities of the references are not finite; the base's weights are corrupt"
        )
    return perplexity(total, sum(len(ids) for _, ids in pairs))
