"""How often an interval of the difference between two algorithms misses the truth, trained with few seeds each.

Run `python -m benchmarks.seed_coverage`: one table, in about five minutes on one core. Every value is the sum of what
its prompt, its algorithm, its seed and the pair of prompt and seed contribute; the true difference is 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from workbench.comparison.intervals import difference_over_seeds
from workbench.evaluation.statistics import paired_difference

PROMPTS = 100
SEEDS = (2, 3, 5)
SEED_DEVIATIONS = {"no effect of the seed": (0.0, 0.0), "as prompts": (0.1, 0.1), "three times": (0.3, 0.3)}
SEED_DEVIATIONS |= {"three times, of one row only": (0.0, 0.3)}
"""Standard deviations of the seeds of both rows; that of the mean over prompts is 0.1."""
RESAMPLES = 400
Interval = tuple[float, float]


def draw(generator: np.random.Generator, seeds: int, deviations: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the values (N, S) of both algorithms."""
    prompts = generator.normal(size=(PROMPTS, 1))
    before, after = (
        prompts
        + generator.normal(scale=0.7, size=(PROMPTS, 1))
        + generator.normal(scale=deviation, size=(1, seeds))
        + generator.normal(scale=0.5, size=(PROMPTS, seeds))
        for deviation in deviations
    )
    return before, after


def over_prompts(before: np.ndarray, after: np.ndarray) -> Interval:
    """Return the interval that averages seeds per prompt."""
    result = paired_difference(before.mean(axis=1), after.mean(axis=1), resamples=RESAMPLES)
    return result.low, result.high


def hierarchical(before: np.ndarray, after: np.ndarray) -> Interval:
    """Return the percentiles of a bootstrap that resamples the seeds of each row, and prompts."""
    generator, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        prompts = generator.integers(PROMPTS, size=PROMPTS)
        sides = [values[:, generator.integers(values.shape[1], size=values.shape[1])] for values in (before, after)]
        means.append(float(np.mean(sides[1][prompts]) - np.mean(sides[0][prompts])))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def over_both(before: np.ndarray, after: np.ndarray) -> Interval:
    """Return the interval of the comparison of algorithms."""
    result = difference_over_seeds(before, after)
    return result.low, result.high


INTERVALS: dict[str, Callable[[np.ndarray, np.ndarray], Interval]] = {
    "over prompts": over_prompts,
    "hierarchical bootstrap": hierarchical,
    "Student's t over seeds and prompts": over_both,
}


def main() -> None:
    """Print how often each interval misses, and how long it is, by number of seeds and the seeds' deviation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=int, default=1000)
    options = parser.parse_args()
    print("| deviation over seeds | seeds | " + " | ".join(f"{name}: misses, % (length)" for name in INTERVALS) + " |")
    print("|---|---|" + "---|" * len(INTERVALS))
    for name, deviations in SEED_DEVIATIONS.items():
        for seeds in SEEDS:
            generator = np.random.default_rng(0)
            data = [draw(generator, seeds, deviations) for _ in range(options.datasets)]
            cells = []
            for interval in INTERVALS.values():
                ends = np.array([interval(before, after) for before, after in data])
                missed = 100 * np.mean((ends[:, 0] > 0) | (ends[:, 1] < 0))
                cells.append(f"{missed:.1f} ({np.mean(ends[:, 1] - ends[:, 0]):.2f})")
            print(f"| {name} | {seeds} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
