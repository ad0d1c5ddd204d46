"""The noise of sampling: what it is on paper, the softmax it samples, and that it depends on nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.models import noise
from workbench.models.noise import exponentials, hash_counters, make_streams, sample_softmax, uniforms

CPU = torch.device("cpu")


def hash_in_python(seed: int, step: int, counter: int) -> int:
    """Return the bits of a counter, from the definitions of the two hashes, in integers without a limit."""
    mixed = (seed + 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    mixed ^= mixed >> 31
    first, second = (mixed + step * 0x85EBCA6B) % 2**32, ((mixed >> 32) + step * 0xC2B2AE35) % 2**32
    state = (counter * 0x9E3779B1 + first) % 2**32
    state = (state ^ (state >> 17)) * 0xED5AD4BB % 2**32
    state = (((state ^ (state >> 11)) + second) * 0xAC4C1B51) % 2**32
    state = (state ^ (state >> 15)) * 0x31848BAB % 2**32
    return state ^ (state >> 14)


def test_the_bits_are_those_of_the_definition() -> None:
    seeds, counters = [0, 1, 2**40 + 17, 2**63 - 1], [0, 1, 255, 50_256, 151_935, -(2**31), -(2**30) + 5]
    for step in (0, 1, 4095):
        streams = make_streams(seeds, CPU).at(step)
        made = hash_counters(streams, torch.tensor(counters, dtype=torch.int32).expand(len(seeds), -1))
        expected = [[hash_in_python(seed, step, counter) for counter in counters] for seed in seeds]
        assert (made.long() % 2**32).tolist() == expected


def test_numbers_are_uniform_and_those_of_other_counters_steps_and_seeds_independent() -> None:
    count = 100_000
    counters = torch.arange(count, dtype=torch.int32)[None]
    streams = make_streams([5], CPU)
    numbers = uniforms(streams, counters)[0]
    assert 0 < numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    distance = (numbers.sort().values - (torch.arange(count) + 0.5) / count).abs().max()
    assert distance < 1.95 / math.sqrt(count), "Kolmogorov-Smirnov at 0.1 %"
    others = {
        "the next counter": numbers.roll(1),
        "the next block": numbers.roll(noise.BLOCK),
        "the next step": uniforms(streams.at(1), counters)[0],
        "the next seed": uniforms(make_streams([6], CPU), counters)[0],
    }
    for name, other in others.items():
        pairs = torch.stack((numbers, other)) - 0.5
        correlation = torch.corrcoef(pairs)[0, 1]
        high_and_low = ((pairs[0] > 0) == (pairs[1] > 0)).double().mean()
        assert abs(correlation) < 3.5 / math.sqrt(count), name
        assert abs(high_and_low - 0.5) < 3.5 * 0.5 / math.sqrt(count), name


def test_no_number_is_so_large_that_it_decides_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    streams, counters = make_streams([0], CPU), torch.zeros(1, 1, dtype=torch.int32)
    for bits in (-1, 2**31 - 1, 0, -(2**31)):
        monkeypatch.setattr(noise, "hash_counters", lambda *arguments, bits=bits: torch.tensor([[bits]]).int())
        assert 0 < uniforms(streams, counters).item() < 1, "at 1 the exponential number is 0, and the score infinite"
        assert exponentials(streams, counters).item() > 0


@pytest.mark.parametrize("vocabulary", [3, 256, 600])
@pytest.mark.parametrize("prune", [True, False])
def test_samples_follow_the_softmax(vocabulary: int, prune: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "BLOCK", 64)
    monkeypatch.setattr(noise, "BLOCKS_AT_ONCE", 2)
    draws = 60_000
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(0)) * 1.5
    keys = make_streams(list(range(draws)), CPU)
    sampled = sample_softmax(logits.repeat(draws, 1), keys, prune=prune)
    expected = logits.double().softmax(dim=0) * draws
    counts = sampled.bincount(minlength=vocabulary)
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    freedom = vocabulary - 1
    assert abs(chi_squared - freedom) < 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("vocabulary", [5, 255, 257, 3000])
@pytest.mark.parametrize("scale", [0.0, 1.0, 6.0, 30.0])
def test_pruning_changes_no_sample(vocabulary: int, scale: float) -> None:
    logits = torch.randn(200, vocabulary, generator=torch.Generator().manual_seed(1)) * scale
    logits[::3, : vocabulary // 2] = -torch.inf
    streams = make_streams(list(range(200)), CPU)
    for step in range(3):
        pruned, whole = (sample_softmax(logits, streams.at(step), prune=prune) for prune in (True, False))
        assert torch.equal(pruned, whole)
    assert (pruned[::3] >= vocabulary // 2).all(), "a token without probability is never sampled"


def test_a_row_depends_on_its_seed_alone() -> None:
    logits = torch.randn(50, 700, generator=torch.Generator().manual_seed(2))
    together = sample_softmax(logits, make_streams(list(range(50)), CPU).at(3), prune=True)
    for rows in ([7], [49, 3, 20], list(range(50))[::-1]):
        some = sample_softmax(logits[rows], make_streams(rows, CPU).at(3), prune=True)
        assert torch.equal(some, together[rows])


def test_models_that_nearly_agree_sample_nearly_the_same() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4000, 500, generator=generator)
    other = logits + 0.05 * torch.randn(4000, 500, generator=generator)
    streams = make_streams(list(range(4000)), CPU)
    agreement = (
        (sample_softmax(logits, streams, prune=True) == sample_softmax(other, streams, prune=True)).double().mean()
    )
    distance = 0.5 * (logits.softmax(1) - other.softmax(1)).abs().sum(1).mean()
    assert agreement > (1 - distance) / (1 + distance) - 0.02, "the bound of Gumbel coupling"
