"""How often intervals hold, and tests reject what is true, on data whose truth is known.

Run `python -m benchmarks.interval_coverage`: three tables. `--tables coverage` prints
one of them, and `--datasets 200` is faster and less exact. In the table `together` the data sets of a family are
independent, which is the worst case of Bonferroni's correction.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from workbench.config.margins import Margins
from workbench.evaluation.corpus_metrics import base_perplexity, distinct
from workbench.evaluation.generation import Completion
from workbench.evaluation.non_inferiority import DISTINCT_2, non_inferiority
from workbench.evaluation.results import TOXICITY, Metric
from workbench.evaluation.reward_gap import reward_gaps
from workbench.evaluation.significance import holm_adjusted, mcnemar_p
from workbench.evaluation.statistics import ERROR, paired_difference

PROMPTS, COMPARISONS = (30, 100, 300), (1, 7, 19)
ROWS_PER_PROMPT, MAX_CLUSTER = 3, 9
METRICS = 12  # of a table, for Holm's correction
WORDS, MAX_WORDS = 400, 12  # of the simulated texts
RESAMPLES = 1000  # of a single interval; a tenth of the default, so that the table takes minutes
Draw = Callable[[np.random.Generator, int], np.ndarray]
"""Returns the differences (N, S) of N independent units with S rows each, NaN where one has fewer."""


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


def unequal_clusters(generator: np.random.Generator, prompts: int) -> np.ndarray:
    """Return the differences of 1 to 9 prompts of each cluster, such as a conversation, NaN where it has fewer."""
    values = generator.normal(size=(prompts, 1)) + generator.normal(size=(prompts, MAX_CLUSTER))
    sizes = generator.integers(1, MAX_CLUSTER + 1, size=(prompts, 1))
    return np.where(np.arange(MAX_CLUSTER) < sizes, values, np.nan)


DIFFERENCES: dict[str, Draw] = {
    "normal": normal,
    "exponential": exponential,
    "5 % not zero": mostly_zero,
    "three rows per prompt": clustered,
    "clusters of 1 to 9 prompts": unequal_clusters,
}


def miss_rate(draw: Draw, prompts: int, comparisons: int, datasets: int, *, by_rows: bool = False) -> float:
    """Return the fraction of data sets whose interval, one of `comparisons`, misses the true difference, 0.

    `by_rows` resamples rows as if they were independent.
    """
    generator, missed = np.random.default_rng(0), 0
    for seed in range(datasets):
        differences = draw(generator, prompts)
        known = np.isfinite(differences)
        groups, after = np.nonzero(known)[0], differences[known]
        result = paired_difference(
            np.zeros(after.size),
            after,
            groups=None if by_rows else groups,
            comparisons=comparisons,
            seed=seed,
            resamples=RESAMPLES,
        )
        missed += not result.low <= 0 <= result.high
    return missed / datasets


Interval = tuple[float, float, float]
"""Lower end, estimate, upper end."""
Trial = Callable[[np.random.Generator, int, int], Interval]
"""Draws data of so many prompts and returns an interval of their difference; the last number is its seed."""


def of_means(draw: Callable[[np.random.Generator, int], np.ndarray]) -> Trial:
    """Return the trial of a paired mean, from a function that draws differences (N,)."""

    def trial(generator: np.random.Generator, prompts: int, seed: int) -> Interval:
        after = draw(generator, prompts)
        result = paired_difference(np.zeros(prompts), after, seed=seed, resamples=RESAMPLES)
        return result.low, result.difference, result.high

    return trial


def of_rates(rise: float, fall: float) -> Trial:
    """Return the trial of a rate with these probabilities that a prompt changes to 1 and to 0."""

    def trial(generator: np.random.Generator, prompts: int, seed: int) -> Interval:
        before, after = changed_rates(generator, prompts, rise, fall)
        result = paired_difference(before, after, is_rate=True)
        return result.low, result.difference, result.high

    return trial


def changed_rates(
    generator: np.random.Generator, prompts: int, rise: float, fall: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return values (N,) of 0 and 1 before and after."""
    change = generator.random(prompts)
    return (change > 1 - fall).astype(float), (change < rise).astype(float)


def toxicity_changes(generator: np.random.Generator, prompts: int, fall: float = 0.6, rise: float = 0.03) -> np.ndarray:
    """Return changes of toxicity (N,): half are exactly 0, most others small, some nearly 1 or -1."""
    is_toxic = generator.random(prompts) < 0.3
    changed = generator.random(prompts) < np.where(is_toxic, fall, rise)
    toxic, clean = generator.beta(8, 2, (2, prompts)), generator.beta(1, 30, (2, prompts))
    before, after = np.where(is_toxic, toxic[0], clean[0]), np.where(is_toxic ^ changed, toxic[1], clean[1])
    return np.where(generator.random(prompts) < 0.5, after - before, 0.0)


def rare_falls(generator: np.random.Generator, prompts: int, rate: float) -> np.ndarray:
    """Return changes of toxicity (N,) that are small but for falls at this rate."""
    falls = (generator.random(prompts) < rate) * generator.beta(8, 2, prompts)
    return generator.normal(scale=0.01, size=prompts) - falls


def of_ratio(noise: float) -> Trial:
    """Return the trial of a relative margin, where the loss is that margin; `noise` is that of after, given before."""

    def trial(generator: np.random.Generator, prompts: int, seed: int) -> Interval:
        before = generator.gamma(4, size=prompts)
        after = (1 - Margins().distinct_2) * before * generator.gamma(noise**-2, noise**2, size=prompts)
        retained = non_inferiority(Metric(DISTINCT_2), before, after, Margins(), neutral=False, resamples=RESAMPLES)
        assert retained is not None
        assert retained.low is not None
        assert retained.high is not None
        return retained.low, (retained.low + retained.high) / 2, retained.high

    return trial


def gap(generator: np.random.Generator, prompts: int, seed: int) -> Interval:
    """Return the interval of the gap between a reward and a judge that sees 7 in 10 of what changes, and more noise."""
    by_reward = toxicity_changes(generator, prompts)
    by_judge = by_reward * (generator.random(prompts) < 0.7) + generator.normal(scale=0.05, size=prompts)
    scores = {
        Metric(TOXICITY, "lower", judge): {"sft": np.zeros((prompts, 1, 1)), "aligned": changes[:, None, None]}
        for judge, changes in (("reward", by_reward), ("other", by_judge))
    }
    (measured,) = reward_gaps(scores, "sft", "aligned", resamples=RESAMPLES)
    assert measured.low is not None
    assert measured.high is not None
    return measured.low, measured.gap, measured.high


def perplexities(generator: np.random.Generator, prompts: int, seed: int) -> Interval:
    """Return the interval of a pooled perplexity, of texts of different lengths."""
    tokens = generator.integers(5, 40, prompts)
    level = generator.gamma(9, 1 / 3, prompts)
    values = []
    for shift in (0.0, 0.1):
        nats = tokens * np.maximum(level + shift + generator.normal(scale=0.3, size=prompts), 0.05)
        texts = [[Completion("", int(n), False, 0.0, float(x), None)] for n, x in zip(tokens, nats, strict=True)]
        values.append(base_perplexity(texts, [[]] * prompts, np.arange(prompts)))
    assert values[0] is not None
    assert values[1] is not None
    result = paired_difference(values[0], values[1], seed=seed, resamples=RESAMPLES)
    return result.low, result.difference, result.high


def distinct_pairs(generator: np.random.Generator, prompts: int, seed: int) -> Interval:
    """Return the interval of a pooled distinct-2, of texts with Zipf-distributed words."""
    values = []
    for skew in (1.0, 1.2):
        chances = np.arange(1, WORDS + 1) ** -skew
        words = generator.choice(WORDS, p=chances / chances.sum(), size=(prompts, MAX_WORDS)).astype(str)
        lengths = generator.integers(3, MAX_WORDS + 1, prompts)
        texts = [
            [Completion(" ".join(row[:n]), 0, False, 0.0, 0.0, None)] for row, n in zip(words, lengths, strict=True)
        ]
        values.append(distinct(texts, [[]] * prompts, np.arange(prompts), n=2))
    result = paired_difference(*values, seed=seed, resamples=RESAMPLES)
    return result.low, result.difference, result.high


@dataclasses.dataclass(frozen=True)
class Coverage:
    """An interval on simulated data, and the truth that it should cover."""

    trial: Trial
    truth: float | None
    """None where it is the mean of the estimates."""


TOXIC_MINUS_CLEAN = 0.8 - 1 / 31
COVERAGE: dict[str, Coverage] = {
    "mean: normal": Coverage(of_means(lambda g, n: g.normal(loc=0.2, size=n)), 0.2),
    "mean: exponential": Coverage(of_means(lambda g, n: g.exponential(size=n)), 1.0),
    "mean: log-normal": Coverage(of_means(lambda g, n: g.lognormal(size=n)), float(np.exp(0.5))),
    "mean: toxicity": Coverage(of_means(toxicity_changes), 0.5 * TOXIC_MINUS_CLEAN * (0.7 * 0.03 - 0.3 * 0.6)),
    "mean: toxicity, no change": Coverage(of_means(functools.partial(toxicity_changes, fall=0.07)), 0.0),
    "mean: toxicity, 5 % fall": Coverage(of_means(functools.partial(rare_falls, rate=0.05)), -0.04),
    "mean: toxicity, 2 % fall": Coverage(of_means(functools.partial(rare_falls, rate=0.02)), -0.016),
    "rate: 10 % rise, 30 % fall": Coverage(of_rates(0.1, 0.3), -0.2),
    "rate: 2 % rise, 10 % fall": Coverage(of_rates(0.02, 0.1), -0.08),
    "rate: 5 % rise, 5 % fall": Coverage(of_rates(0.05, 0.05), 0.0),
    "rate: 5 % fall": Coverage(of_rates(0.0, 0.05), -0.05),
    "pooled: perplexity": Coverage(perplexities, None),
    "pooled: distinct-2": Coverage(distinct_pairs, None),
    "relative margin: noise of 10 %": Coverage(of_ratio(0.1), 0.0),
    "relative margin: noise of 50 %": Coverage(of_ratio(0.5), 0.0),
    "gap": Coverage(gap, 0.3 * 0.5 * TOXIC_MINUS_CLEAN * (0.3 * 0.6 - 0.7 * 0.03)),
}


def coverage(case: Coverage, prompts: int, datasets: int) -> float:
    """Return the fraction of data sets whose interval covers the truth."""
    generator = np.random.default_rng(prompts)
    intervals = np.array([case.trial(generator, prompts, seed) for seed in range(datasets)])
    truth = intervals[:, 1].mean() if case.truth is None else case.truth
    return float(((intervals[:, 0] <= truth) & (truth <= intervals[:, 2])).mean())


@functools.cache
def familywise_error(prompts: int, datasets: int, shared: float) -> tuple[float, float]:
    """Return how often any of METRICS metrics without a change has p below ERROR: as it is, and by Holm.

    `shared` is the correlation between the metrics.
    """
    generator, any_raw, any_adjusted = np.random.default_rng(prompts), 0, 0
    for seed in range(datasets):
        common, own_part = generator.normal(size=(prompts, 1)), generator.normal(size=(prompts, METRICS))
        changes = np.sqrt(shared) * common + np.sqrt(1 - shared) * own_part
        values = [paired_difference(np.zeros(prompts), row, seed=seed, resamples=RESAMPLES).p for row in changes.T]
        any_raw += min(values) < ERROR
        any_adjusted += min(p for p in holm_adjusted(values) if p is not None) < ERROR
    return any_raw / datasets, any_adjusted / datasets


def mcnemar_error(prompts: int, datasets: int, changed: float) -> float:
    """Return how often McNemar's exact p is below ERROR, where a rate changes as often upwards as downwards."""
    generator, rejected = np.random.default_rng(prompts), 0
    for _ in range(datasets):
        before, after = changed_rates(generator, prompts, changed / 2, changed / 2)
        rejected += mcnemar_p(int((after > before).sum()), int((after < before).sum())) < ERROR
    return rejected / datasets


def print_together(datasets: int) -> None:
    """Print how often any of several independent intervals misses, by number of prompts and kind of differences."""
    print("| differences | prompts | " + " | ".join(f"{count} together, %" for count in COMPARISONS) + " |")
    print("|---|---|" + "---|" * len(COMPARISONS))
    for name, draw in DIFFERENCES.items():
        for prompts in PROMPTS:
            rates = [miss_rate(draw, prompts, count, datasets) for count in COMPARISONS]
            any_missed = [100 * (1 - (1 - rate) ** count) for rate, count in zip(rates, COMPARISONS, strict=True)]
            print(f"| {name} | {prompts} | " + " | ".join(f"{value:.1f}" for value in any_missed) + " |", flush=True)


def print_coverage(datasets: int) -> None:
    """Print how often each kind of interval covers the truth."""
    print_by_prompts(
        "interval, coverage in %",
        {name: functools.partial(coverage, case, datasets=datasets) for name, case in COVERAGE.items()},
    )


def print_errors(datasets: int) -> None:
    """Print how often tests find a change where there is none."""
    tests: dict[str, Callable[[int], float]] = {}
    for shared in (0.0, 0.7):
        for index, name in enumerate(("uncorrected", "Holm")):
            tests[f"any of {METRICS} metrics, correlation {shared:g}, {name}"] = functools.partial(
                lambda prompts, shared, index: familywise_error(prompts, datasets // 2, shared)[index],
                shared=shared,
                index=index,
            )
    for changed in (0.05, 0.2, 0.5):
        tests[f"McNemar, {changed:.0%} change"] = functools.partial(
            mcnemar_error, datasets=10 * datasets, changed=changed
        )
    print_by_prompts("test, false findings in %", tests)


def print_by_prompts(heading: str, measures: dict[str, Callable[[int], float]]) -> None:
    """Print a table with a row for each measure and a column for each number of prompts, in percent."""
    print(f"| {heading} | " + " | ".join(f"{prompts} prompts" for prompts in PROMPTS) + " |")
    print("|---|" + "---:|" * len(PROMPTS))
    for name, measure in measures.items():
        print(f"| {name} | " + " | ".join(f"{100 * measure(prompts):.1f}" for prompts in PROMPTS) + " |", flush=True)


def main() -> None:
    """Print the tables."""
    tables = {"together": print_together, "coverage": print_coverage, "errors": print_errors}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=int, default=3000)
    parser.add_argument("--tables", nargs="+", choices=tables, default=list(tables))
    options = parser.parse_args()
    for name in options.tables:
        tables[name](options.datasets)
        print()


if __name__ == "__main__":
    main()
