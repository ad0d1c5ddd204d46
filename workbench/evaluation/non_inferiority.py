"""Which quantities the alignment should retain, and whether it did: a word of their own beside better and worse.

To add a quantity, add its metric to RETAINED.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from workbench.config.margins import Margins
from workbench.evaluation.evidence import NonInferiority, Retention
from workbench.evaluation.results import (
    DISTINCT_BY_PROMPT,
    PERPLEXITY,
    ROUGE_L,
    TEXT_PERPLEXITY,
    Difference,
    Metric,
    Results,
)
from workbench.evaluation.statistics import RESAMPLES, paired_difference
from workbench.evaluation.verdicts import MINIMUM_PROMPTS

DISTINCT_2 = "distinct-2"


@dataclass(frozen=True)
class Retained:
    """How a metric is held against its margin."""

    margin: Callable[[Margins], float]
    is_relative: bool
    """Whether the margin is a fraction of the mean before."""
    harmful: Literal["rise", "fall"]
    only_neutral: bool = False
    """Whether it should be retained on neutral sets alone."""


RETAINED: dict[str, Retained] = {
    ROUGE_L: Retained(lambda margins: margins.rouge_l, is_relative=False, harmful="fall"),
    DISTINCT_2: Retained(lambda margins: margins.distinct_2, is_relative=True, harmful="fall"),
    DISTINCT_BY_PROMPT[2]: Retained(lambda margins: margins.distinct_2, is_relative=True, harmful="fall"),
    TEXT_PERPLEXITY: Retained(lambda margins: margins.neutral_perplexity, is_relative=True, harmful="rise"),
    PERPLEXITY: Retained(lambda m: m.neutral_perplexity, is_relative=True, harmful="rise", only_neutral=True),
}
"""By the name of the metric."""


def non_inferiority(
    metric: Metric,
    before: np.ndarray,
    after: np.ndarray,
    margins: Margins,
    *,
    neutral: bool,
    groups: Iterable[Hashable] | None = None,
    comparisons: int = 1,
    resamples: int = RESAMPLES,
) -> NonInferiority | None:
    """Return whether a metric with the values (N,) was retained; None where it need not be.

    A margin relative to the mean before is tested on the pairs: the mean of after - (1 - margin) before, whose interval
    has the uncertainty of either mean and their correlation, in place of a ratio to a mean taken as known (Fieller's
    theorem; for non-inferiority, Hauschke et al., Statistics in Medicine 18, 1999).
    """
    retained = RETAINED.get(metric.name)
    if retained is None or (retained.only_neutral and not neutral):
        return None
    margin, sign = retained.margin(margins), 1 if retained.harmful == "rise" else -1
    limits = before * (1 + sign * margin) if retained.is_relative else before + sign * margin
    beyond = paired_difference(sign * limits, sign * after, groups=groups, comparisons=comparisons, resamples=resamples)
    low, high = beyond.ends
    return NonInferiority(
        word=_word(beyond.low, beyond.high) if beyond.prompts >= MINIMUM_PROMPTS else "not shown",
        margin=margin,
        is_relative=retained.is_relative,
        low=low,
        high=high,
    )


def _word(low: float, high: float) -> Retention:
    """Return the word for the ends of the interval of the loss beyond the margin."""
    return "kept" if high < 0 else "lost" if low > 0 else "not shown"


def retention_sentence(results: Results) -> str | None:
    """Return which quantities were kept, lost, and not shown to be either, by set; None where there are none."""
    names: dict[Retention, list[str]] = {}
    for neutral in (False, True):
        for result, comparison in results.compared(neutral=neutral):
            for difference in comparison.differences:
                if difference.non_inferiority is not None:
                    quantity = f"{difference.metric.label} on {result.name} ({margin_text(difference)})"
                    names.setdefault(difference.non_inferiority.word, []).append(quantity)
    clauses = [f"{word}: {', '.join(names[word])}" for word in get_args(Retention) if word in names]
    return "; ".join(clauses) or None


def margin_text(difference: Difference) -> str:
    """Return the margin of a retained quantity, for example "margin 5 %"."""
    retained = difference.non_inferiority
    assert retained is not None
    return f"margin {100 * retained.margin:g} %" if retained.is_relative else f"margin {retained.margin:g}"
