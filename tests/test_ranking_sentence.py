"""The sentence at the top says what the intervals support, and no more."""

from __future__ import annotations

import itertools
import random

import pytest

from workbench.comparison.ranking import ranking_sentence
from workbench.evaluation.results import Metric, Verdict

TOXICITY = Metric("toxicity", "lower", "lexicon")
MEANS = {"SFT": 0.5, "PPO": 0.2, "RLOO": 0.1, "GRPO": 0.15}


def sentence(apart: float, means: dict[str, float] = MEANS, prompts: int = 100, **fields: object) -> str:
    """Return the sentence where every difference larger than `apart` is detected."""

    def verdict(before: str, after: str) -> Verdict | None:
        change = means[after] - means[before]
        if abs(change) <= apart:
            return "no detectable change"
        return "better" if change < 0 else "worse"

    options = {"baseline": "SFT", "one_seed": []} | fields
    return ranking_sentence(TOXICITY, means, verdict, prompts=prompts, **options)  # type: ignore[arg-type]


def test_a_row_is_best_where_every_interval_says_so() -> None:
    assert sentence(0.01) == (
        "best by toxicity (lexicon): RLOO with 0.100, lower than every other row (next: GRPO with 0.150); "
        "better than SFT: PPO, RLOO and GRPO"
    )


def test_what_cannot_be_told_apart_is_named() -> None:
    assert sentence(0.06) == (
        "no best row by toxicity (lexicon): no detectable difference between RLOO (0.100) and GRPO (0.150); "
        "RLOO has lower toxicity (lexicon) than PPO; better than SFT: PPO, RLOO and GRPO"
    )
    assert sentence(0.34) == (
        "no best row by toxicity (lexicon): no detectable difference between RLOO (0.100) and GRPO (0.150) "
        "or PPO (0.200); better than SFT: RLOO and GRPO; no detectable difference from SFT: PPO"
    )


def test_the_untrained_model_can_be_best() -> None:
    means = {"SFT": 0.1, "PPO": 0.5}
    assert sentence(0.01, means).startswith("best by toxicity (lexicon): SFT with 0.100")
    assert sentence(0.5, means) == (
        "no best row by toxicity (lexicon): no detectable difference between SFT (0.100) and PPO (0.500)"
    )


def test_no_row_is_called_best_whose_interval_with_any_other_includes_zero() -> None:
    chance = random.Random(0)
    for _ in range(300):
        means = {f"row {index}": chance.random() for index in range(chance.randint(2, 6))}
        pairs = itertools.combinations(sorted(means, key=means.__getitem__), 2)
        unclear = {pair for pair in pairs if chance.random() < 0.3}

        def verdict(before: str, after: str, means: dict[str, float] = means, unclear: set = unclear) -> Verdict:
            if tuple(sorted((before, after), key=means.__getitem__)) in unclear:
                return "no detectable change"
            return "better" if means[after] < means[before] else "worse"

        text = ranking_sentence(TOXICITY, means, verdict, baseline="row 0", prompts=100, one_seed=[])
        best = min(means, key=means.__getitem__)
        assert text.startswith("best by") == (not any(best in pair for pair in unclear))
        for pair in unclear:
            if best in pair:
                assert all(f"{title} ({means[title]:.3f})" in text for title in pair)


@pytest.mark.parametrize(
    ("metric", "means", "prompts", "expected"),
    [
        (TOXICITY, {"PPO": 0.5}, 100, "nothing is ranked: toxicity (lexicon) was measured in one row"),
        (TOXICITY, {}, 0, "nothing is ranked: toxicity (lexicon) was measured in one row"),
        (Metric("tokens"), MEANS, 100, "nothing is ranked: tokens has no better direction"),
        (TOXICITY, MEANS, 29, "nothing is ranked: 29 prompts are too few for a verdict, which takes at least 30"),
    ],
)
def test_what_cannot_be_ranked(metric: Metric, means: dict[str, float], prompts: int, expected: str) -> None:
    text = ranking_sentence(metric, means, lambda *_: "better", baseline="SFT", prompts=prompts, one_seed=[])
    assert text == expected


def test_one_seed_is_about_these_runs() -> None:
    text = sentence(0.01, one_seed=["PPO", "RLOO"])
    assert text.endswith(
        "; PPO and RLOO: one seed each, so this is about these runs, and other seeds may order the algorithms "
        "differently"
    )
