"""Probabilities under no difference: Student's t, McNemar's and the score interval of paired rates, Holm's correction.

Shapes: N prompts, M metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

# The interval of a rate is found by halving [-1, 1] this often, to the last digit of a double.
HALVINGS = 60
TINY = 1e-300


def student_tail(statistic: float, freedom: int) -> float:
    """Return the probability with which Student's t exceeds a statistic of at least 0, to 1e-8 of it.

    Half the incomplete beta function at freedom / (freedom + statistic^2) (Abramowitz and Stegun, 1964, 26.7.1), whose
    continued fraction (26.5.8) is evaluated from the front (Lentz, Applied Optics 15, 1976).
    """
    if statistic == 0:
        return 0.5
    a, b, x = freedom / 2, 0.5, freedom / (freedom + statistic**2)
    # The fraction converges fast below the mean of the beta distribution, and its mirror image above.
    if x > (a + 1) / (a + b + 2):
        return 0.5 * (1 - _incomplete_beta(b, a, statistic**2 / (freedom + statistic**2), x))
    return 0.5 * _incomplete_beta(a, b, x, statistic**2 / (freedom + statistic**2))


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Return the regularized incomplete beta function at x, with rest = 1 - x."""
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    numerator, denominator = 1.0, 1.0 / (1 - (a + b) * x / (a + 1))
    fraction, step = denominator, 0
    while True:
        step += 1
        even = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        change = 1.0
        for term in (even, odd):
            denominator = 1 / ((1 + term * denominator) or TINY)
            numerator = (1 + term / numerator) or TINY
            change *= numerator * denominator
        fraction *= change
        if abs(change - 1) < 1e-15 or step > 100_000:
            return math.exp(logarithm) * fraction / a


def mcnemar_p(rose: int, fell: int) -> float:
    """Return McNemar's exact p of a rate, from how many prompts changed to 1 and how many to 0.

    Without a difference each change goes either way with probability 1/2, so that p is that of a two-sided binomial
    test on the prompts that changed (McNemar, Psychometrika 12, 1947).
    """
    changed = rose + fell
    tail = sum(math.comb(changed, count) for count in range(min(rose, fell) + 1))
    return min(1.0, 2 * tail / 2**changed)


def paired_rate_interval(rose: int, fell: int, prompts: int, tail: float) -> tuple[float, float]:
    """Return the ends beyond which the change of a rate lies with probability `tail` each.

    They are those of the differences that a score test does not reject (Tango, Statistics in Medicine 17, 1998): it has
    its level where a bootstrap has not, since it does not estimate the variance from the few prompts that changed.
    """
    reach, change = NormalDist().inv_cdf(1 - tail), (rose - fell) / prompts
    ends = []
    for sign in (-1, 1):
        inside, outside = change, float(sign)
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            is_inside = sign * _rate_score(rose, fell, prompts, middle) > -reach
            inside, outside = (middle, outside) if is_inside else (inside, middle)
        ends.append((inside + outside) / 2)
    return ends[0], ends[1]


def paired_rate_p(rose: int, fell: int) -> float:
    """Return the smallest error, of both tails, at which the interval of a rate's change excludes zero."""
    return math.erfc(abs(rose - fell) / math.sqrt(2 * (rose + fell))) if rose + fell else 1.0


def _rate_score(rose: int, fell: int, prompts: int, difference: float) -> float:
    """Return the standardized score of a change of the rate by `difference`, whose variance is that under it."""
    # The probability of a fall where likelihood is largest, among those with this difference.
    square, linear = 2 * prompts, -rose - fell + (2 * prompts - rose + fell) * difference
    constant = -fell * difference * (1 - difference)
    falls = (math.sqrt(max(linear**2 - 4 * square * constant, 0.0)) - linear) / (2 * square)
    variance = prompts * max(2 * falls + difference * (1 - difference), 0.0)
    distance = rose - fell - prompts * difference
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0


def holm_adjusted(values: Sequence[float | None]) -> list[float | None]:
    """Return p values (M,) adjusted so that the error of all M together is that of one; None where there is none.

    The smallest counts M times, the next M - 1 times, and none less than a smaller one (Holm, Scandinavian Journal of
    Statistics 6, 1979): whatever the dependence between the metrics, at no loss against Bonferroni.
    """
    ordered = sorted((value, index) for index, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, index) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * value))
        adjusted[index] = largest
    return adjusted
