"""How often the interval of a difference holds, and how often any of several misses, on data whose truth is known.

Run `python -m benchmarks.interval_coverage`: one table, in about four minutes on one core. `--datasets 200` is faster
and less exact. The data sets of a family are independent, which is the worst case of Bonferroni's correction.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from workbench.evaluation.statistics import paired_difference

PROMPTS, COMPARISONS = (30, 100, 300), (1, 7, 19)
ROWS_PER_PROMPT = 3
RESAMPLES = 1000  # of a single interval; a tenth of the default, so that the table takes minutes
Draw = Callable[[np.random.Generator, int], np.ndarray]
"""Returns the differences (N, S) of N prompts with S rows each."""


def normal(generator: np.random.Generator, prompts: int) -> np.ndarray:
    """Return standard normal differences."""
    return generator.normal(size=(prompts, 1))


def exponential(generator: np.random.Generator, prompts: int) -> np.ndarray:
    """Return skewed differences of mean 0."""
    return generator.exponential(size=(prompts, 1)) - 1


def mostly_zero(generator: np.random.Generator, prompts: int) -> np.ndarray:
    """Return differences of which 5 % are not 0, as in toxicity where nothing changed on average."""
    size = (prompts, 1)
    return (generator.random(size) < 0.05) * generator.uniform(0.5, 1, size) * generator.choice([-1, 1], size)


def clustered(generator: np.random.Generator, prompts: int) -> np.ndarray:
    """Return the differences of rows that share most of it with the other rows of their prompt."""
    return generator.normal(size=(prompts, 1)) + generator.normal(scale=0.3, size=(prompts, ROWS_PER_PROMPT))


DIFFERENCES: dict[str, Draw] = {
    "normal": normal,
    "exponential": exponential,
    "5 % not zero": mostly_zero,
    "three rows per prompt": clustered,
}


def miss_rate(draw: Draw, prompts: int, comparisons: int, datasets: int) -> float:
    """Return the fraction of data sets whose interval, one of `comparisons`, misses the true difference, 0."""
    generator, missed = np.random.default_rng(0), 0
    for seed in range(datasets):
        differences = draw(generator, prompts)
        groups = np.repeat(np.arange(prompts), differences.shape[1])
        after = differences.ravel()
        result = paired_difference(
            np.zeros(after.size), after, groups=groups, comparisons=comparisons, seed=seed, resamples=RESAMPLES
        )
        missed += not result.low <= 0 <= result.high
    return missed / datasets


def main() -> None:
    """Print how often any of several independent intervals misses, by number of prompts and kind of differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=int, default=3000)
    options = parser.parse_args()
    print("| differences | prompts | " + " | ".join(f"{count} together, %" for count in COMPARISONS) + " |")
    print("|---|---|" + "---|" * len(COMPARISONS))
    for name, draw in DIFFERENCES.items():
        for prompts in PROMPTS:
            rates = [miss_rate(draw, prompts, count, options.datasets) for count in COMPARISONS]
            any_missed = [100 * (1 - (1 - rate) ** count) for rate, count in zip(rates, COMPARISONS, strict=True)]
            print(f"| {name} | {prompts} | " + " | ".join(f"{value:.1f}" for value in any_missed) + " |", flush=True)


if __name__ == "__main__":
    main()
