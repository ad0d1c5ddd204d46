"""Exact samples of a softmax whose noise is a function of seed, step and token alone, whatever batch and device.

Each token's exponential number E is the time at which it arrives; the first to arrive, at E / p, is a sample of p (the
Gumbel-max trick, arXiv 1611.01144, in other words). Blocks of tokens first get the number of their earliest token, so
that most of the vocabulary need not be looked at. Shapes: B rows, V vocabulary, K blocks, N pairs of row and block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 128
BLOCKS_AT_ONCE = 8
# Multipliers and shifts of the integer hash triple32 (Wellons, https://github.com/skeeto/hash-prospector); between its
# rounds enters the second half of the key. The others are odd numbers far from each other, to tell counters apart.
MULTIPLIERS, SHIFTS = (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB), (17, 11, 15, 14)
COUNTER, STEP = 0x9E3779B1, (0x85EBCA6B, 0xC2B2AE35)
# Tokens are counted from 0, the two numbers of a block from the ends of the 32-bit integers.
EARLIEST, WHICH = -(2**31), -(2**30)


class Streams(NamedTuple):
    """The two 32-bit keys of each row's noise."""

    first: Tensor  # (B,) int32
    second: Tensor  # (B,) int32

    def at(self, step: int) -> Streams:
        """Return the keys of a step."""
        return Streams(self.first + _int32(step * STEP[0]), self.second + _int32(step * STEP[1]))

    def rows(self, index: Tensor) -> Streams:
        """Return the keys of the rows at `index`."""
        return Streams(self.first[index], self.second[index])


class Arrivals(NamedTuple):
    """The earliest token of each block and its exponential number."""

    times: Tensor  # (B, K) float32
    offsets: Tensor  # (B, K) int64, of the token in its block


def make_streams(seeds: list[int], device: torch.device) -> Streams:
    """Return the keys of rows with these seeds, non-negative integers below 2**64."""
    mixed = [_mix64(seed) for seed in seeds]
    keys = torch.tensor([[_int32(key), _int32(key >> 32)] for key in mixed], dtype=torch.int32, device=device)
    return Streams(*keys.unbind(1))


def sample_softmax(logits: Tensor, streams: Streams, *, prune: bool) -> Tensor:
    """Return a sample (B,) of softmax(logits), logits (B, V); `prune` skips blocks that cannot hold it.

    Both ways give the same samples. Pruning draws a fraction of the noise, but waits for the device.
    """
    rows, vocabulary = logits.shape
    missing = -vocabulary % BLOCK
    whole = pad(logits.float(), (0, missing), value=-torch.inf) if missing else logits.float()  # pad copies even by 0
    blocks = whole.view(rows, -1, BLOCK)
    earliest = earliest_tokens(streams, vocabulary)
    if not prune:
        row, block = torch.cartesian_prod(*(torch.arange(size, device=logits.device) for size in blocks.shape[:2])).T
        return best_by_row(row, *best_in_blocks(blocks, earliest, streams, row, block), rows)[1]
    # No token of a block can score higher than its largest logit at the block's earliest time.
    bounds = blocks.amax(dim=2) - earliest.times.log()
    first = bounds.topk(min(BLOCKS_AT_ONCE, bounds.shape[1]), dim=1).indices
    row, block = torch.arange(rows, device=logits.device).repeat_interleave(first.shape[1]), first.flatten()
    scores, tokens = best_in_blocks(blocks, earliest, streams, row, block)
    reached, _ = best_by_row(row, scores, tokens, rows)
    more_row, more_block = (bounds.scatter(1, first, -torch.inf) > reached.unsqueeze(1)).nonzero(as_tuple=True)
    more_scores, more_tokens = best_in_blocks(blocks, earliest, streams, more_row, more_block)
    pairs = (torch.cat((row, more_row)), torch.cat((scores, more_scores)), torch.cat((tokens, more_tokens)))
    return best_by_row(*pairs, rows)[1]


def best_by_row(row: Tensor, scores: Tensor, tokens: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return the highest of the scores (N,) of each row (B,), and its token (B,)."""
    best = torch.full((rows,), -torch.inf, device=scores.device).scatter_reduce(0, row, scores, "amax")
    winners = torch.where(scores == best[row], tokens, -1)
    return best, torch.full_like(best, -1, dtype=torch.long).scatter_reduce(0, row, winners, "amax").clamp(min=0)


def best_in_blocks(
    blocks: Tensor, earliest: Arrivals, streams: Streams, row: Tensor, block: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the highest perturbed logit (N,) and its token (N,) in the blocks (N,) of rows (N,)."""
    counters = block.unsqueeze(1) * BLOCK + torch.arange(BLOCK, device=block.device)  # (N, BLOCK)
    first = earliest.times[row, block].unsqueeze(1)
    # The exponential distribution has no memory: the others arrive later by an exponential number of their own.
    times = first + exponentials(streams.rows(row), counters.int())
    times.scatter_(1, earliest.offsets[row, block].unsqueeze(1), first)
    scores, offsets = (blocks[row, block] - times.log_()).max(dim=1)
    return scores, block * BLOCK + offsets


def earliest_tokens(streams: Streams, vocabulary: int) -> Arrivals:
    """Return which token of each block arrives first, and when: at an exponential number of rate its size."""
    device = streams.first.device
    counters = torch.arange(-(-vocabulary // BLOCK), dtype=torch.int32, device=device).expand(len(streams.first), -1)
    sizes = (vocabulary - counters.long() * BLOCK).clamp(max=BLOCK)
    offsets = (uniforms(streams, counters + WHICH) * sizes).long().minimum(sizes - 1)
    return Arrivals(exponentials(streams, counters + EARLIEST) / sizes, offsets)


def exponentials(streams: Streams, counters: Tensor) -> Tensor:
    """Return the exponential numbers (N, M) with mean 1 of counters (N, M) in streams (N,)."""
    return uniforms(streams, counters).log_().neg_()


def uniforms(streams: Streams, counters: Tensor) -> Tensor:
    """Return the uniform numbers (N, M), float32 in (0, 1), of int32 counters (N, M) in streams (N,)."""
    # 23 bits and a half: with one more, the largest would round to 1, whose exponential number is 0.
    return (
        hash_counters(streams, counters).bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float().add_(0.5).mul_(2**-23)
    )


def hash_counters(streams: Streams, counters: Tensor) -> Tensor:
    """Return 32 random bits (N, M), int32, for each counter (N, M) in streams (N,); products wrap around."""
    state = (counters * _int32(COUNTER)).add_(streams.first.unsqueeze(1))
    for number, shift in enumerate(SHIFTS):
        state ^= (state >> shift).bitwise_and_((1 << (32 - shift)) - 1)  # a logical shift
        if number == 1:
            state += streams.second.unsqueeze(1)
        if number < len(MULTIPLIERS):
            state *= _int32(MULTIPLIERS[number])
    return state


def _mix64(number: int) -> int:
    """Return 64 well mixed bits of a 64-bit integer (the finalizer of SplitMix64, doi 10.1145/2660193.2660195)."""
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


def _int32(number: int) -> int:
    """Return the lowest 32 bits as a signed integer."""
    return (number + 2**31) % 2**32 - 2**31
