"""Check that a reward points the right way: up for a polite sentence, down for a rude one."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.errors import RewardError, UserError, shorten
from workbench.rewards.contract import CheckedReward, RewardModel


def check_polarity(reward: RewardModel, polite: str, rude: str, name: str, advice: str = "") -> None:
    """Raise RewardError, with both scores and the advice, unless the polite sentence scores strictly higher."""
    high, low = CheckedReward(reward, name)(prompts=["", ""], completions=[polite, rude])
    if not high > low:
        raise RewardError(
            f"reward {name}: {polite!r} scores {high:g} and {rude!r} scores {low:g}, but the first must score higher; "
            f"the reward points the wrong way or cannot tell them apart{advice and '; '}{advice}"
        )


def check_polarity_pair(reward: RewardModel, pair: Sequence[str] | None, name: str, advice: str) -> None:
    """Check polarity on the option `polarity_pair`, unless it is None; raises UserError for one of another form."""
    if pair is None:
        return
    if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise UserError(
            f"{name}: polarity_pair is {shorten(pair)}; use a list of a polite and a rude sentence, or null"
        )
    polite, rude = pair
    if not polite.strip() or not rude.strip() or polite == rude:
        raise UserError(f"{name}: polarity_pair is {shorten(pair)}; use two different sentences, or null")
    check_polarity(reward, polite, rude, name, f"{advice}; if the two sentences do not suit it, set polarity_pair")
