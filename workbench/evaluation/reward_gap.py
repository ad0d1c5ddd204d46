"""The gap: how much further toxicity fell according to the reward than according to each independent judge."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from workbench.evaluation.evidence import RewardGap
from workbench.evaluation.results import REWARD, TOXICITY, Results, Scores, SetResult
from workbench.evaluation.statistics import RESAMPLES, PairedDifference, paired_difference, prompt_numbers, sample_means


def reward_gaps(
    scores: Scores,
    before: str,
    after: str,
    groups: Sequence[Hashable] | None = None,
    comparisons: int = 1,
    resamples: int = RESAMPLES,
) -> list[RewardGap]:
    """Return the gap to every judge other than the reward; none where the reward did not judge both models.

    Falls are paired by prompt before they are subtracted, so that what makes both judges see a larger fall in the same
    prompt does not widen the interval.
    """
    falls = {
        metric.judge: sample_means(by_title[before]) - sample_means(by_title[after])
        for metric, by_title in scores.items()
        if metric.name == TOXICITY and metric.judge is not None and before in by_title and after in by_title
    }
    by_reward = falls.pop(REWARD, None)
    if by_reward is None:
        return []
    numbers = prompt_numbers(groups, by_reward.size)
    paired = {
        judge: paired_difference(by_judge, by_reward, groups=numbers, comparisons=comparisons, resamples=resamples)
        for judge, by_judge in falls.items()
    }
    return [_gap(judge, difference) for judge, difference in paired.items()]


def gaps_by_set(results: Results) -> Iterator[tuple[SetResult, RewardGap]]:
    """Yield the gap to every independent judge on every set that is not neutral."""
    for result, comparison in results.compared(neutral=False):
        for gap in comparison.gaps:
            if gap.judge in results.settings.judges:
                yield result, gap


def describe_gap(gap: RewardGap) -> str:
    """Return the gap with its interval, and the falls that it lies between."""
    interval = "" if gap.low is None or gap.high is None else f" [{gap.low:+.3f}, {gap.high:+.3f}]"
    first, second = ("fell" if fall >= 0 else "rose" for fall in (gap.fall_by_reward, gap.fall_by_judge))
    by_reward = f"{first} by {abs(gap.fall_by_reward):.3f} according to the reward"
    by_judge = f"{second} by" if second != first else "by"
    judged = f"{by_judge} {abs(gap.fall_by_judge):.3f} according to {gap.judge}"
    return f"gap to {gap.judge} {gap.gap:+.3f}{interval}; toxicity {by_reward} and {judged}"


def _gap(judge: str, paired: PairedDifference) -> RewardGap:
    """Return the gap from the fall according to the judge to that according to the reward."""
    low, high = paired.ends
    return RewardGap(
        judge=judge,
        fall_by_reward=paired.mean_after,
        fall_by_judge=paired.mean_before,
        gap=paired.difference,
        low=low,
        high=high,
        prompts=paired.prompts,
    )
