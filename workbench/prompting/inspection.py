"""What a way to generate does to each token's probabilities: the likeliest candidates before and after."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.evaluation.generation import ComparedModel, Sampling, generate
from workbench.models.policy import Batch
from workbench.models.sampling import RepetitionPenalty

MAX_STEPS = 30
CANDIDATES = 8
# How byte-level tokenizers write bytes in the names of their tokens: those that are no visible character from U+0100.
VISIBLE_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHER_BYTES = [byte for byte in range(0x100) if byte not in VISIBLE_BYTES]
BYTES = {chr(byte): byte for byte in VISIBLE_BYTES} | {chr(0x100 + i): byte for i, byte in enumerate(OTHER_BYTES)}


@dataclass(frozen=True)
class Candidate:
    """A token that may come next."""

    text: str
    before: float
    """Its probability under the model."""
    after: float | None
    """Its probability after repetition penalty, temperature, top-k and top-p; None in a beam search."""


@dataclass(frozen=True)
class Step:
    """One token of a completion."""

    text: str
    candidates: list[Candidate]
    """The likeliest ones before, and the token itself."""
    possible: int | None
    """How many tokens may be sampled; None in a beam search."""


@dataclass(frozen=True)
class Inspection:
    """The first steps of one completion."""

    set: str
    index: int
    title: str
    """The variant."""
    prompt: str
    tokens: int
    """How many the completion has."""
    steps: list[Step]


def inspect_steps(model: ComparedModel, prompt_ids: list[int], sampling: Sampling, seed: int) -> tuple[int, list[Step]]:
    """Return the number of tokens of the completion that is sampled with a seed, and its first MAX_STEPS steps."""
    batch, _ = generate(model, [prompt_ids], sampling, [seed])
    logits = model.policy.response_logits(model.variant, batch)[0]
    tokens = int(batch.response_mask.sum())
    return tokens, [step(model, batch, sampling, logits[index], index) for index in range(min(tokens, MAX_STEPS))]


def step(model: ComparedModel, batch: Batch, sampling: Sampling, logits: Tensor, index: int) -> Step:
    """Return the token at `index` of a response and its candidates, from the logits (V,) that predict it."""
    before, token = torch.softmax(logits, dim=0), int(batch.response_ids[0, index])
    after = None if sampling.decoding.num_beams > 1 else sampled_from(model, batch, sampling, logits, index)
    likeliest = before.topk(min(CANDIDATES, len(before))).indices.tolist()
    candidates = [
        Candidate(token_text(model, i), float(before[i]), None if after is None else float(after[i]))
        for i in dict.fromkeys([*likeliest, token])
    ]
    return Step(token_text(model, token), candidates, None if after is None else int((after > 0).sum()))


def sampled_from(model: ComparedModel, batch: Batch, sampling: Sampling, logits: Tensor, index: int) -> Tensor:
    """Return the probabilities (V,) that the token at `index` is drawn from, given the logits (V,)."""
    policy, decoding = model.policy, sampling.decoding
    scores = logits[None].clone()
    if index < decoding.min_new_tokens:
        scores[:, policy.stop_ids] = -torch.inf
    if decoding.repetition_penalty != 1:
        start = torch.zeros_like(batch.response_ids[:, :1])
        first = start if policy.is_encoder_decoder else batch.prompt_ids
        occurred = torch.zeros_like(start, dtype=torch.bool) if policy.is_encoder_decoder else batch.prompt_mask
        ids = torch.cat((first, batch.response_ids[:, :index]), dim=1)
        scores = RepetitionPenalty(decoding.repetition_penalty, occurred)(ids, scores)
    if sampling.temperature == 0:
        return torch.zeros_like(logits).index_fill(0, scores[0].argmax(), 1.0)
    scores = scores / sampling.temperature
    for filter_ in decoding.filters():
        scores = filter_(batch.response_ids[:, :index], scores)
    return torch.softmax(scores[0], dim=0)


def token_text(model: ComparedModel, token: int) -> str:
    """Return the text that a token adds to a text, or the name of a special one.

    Bytes that are only a part of a character stand as \\xe2, or as the tokenizer calls them.
    """
    decode, name = model.tokenizer.decode, str(model.tokenizer.convert_ids_to_tokens(token))
    # Twice, because decoders drop the space at the beginning of a text.
    alone, twice = (
        str(decode([token] * count, skip_special_tokens=True, clean_up_tokenization_spaces=False)) for count in (1, 2)
    )
    added = twice[len(alone) :]
    if "\ufffd" not in alone:
        return added or name
    is_byte_level = all(character in BYTES for character in name)
    return bytes(map(BYTES.__getitem__, name)).decode(errors="backslashreplace") if is_byte_level else name
