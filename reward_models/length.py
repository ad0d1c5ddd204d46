"""The simplest reward: a target length."""

from workbench.data.words import count_words
from workbench.rewards.contract import RewardModel


def length(target: int = 20) -> RewardModel:
    """Return a reward that is 0 for completions of `target` words and falls by one per word above or below it."""

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        return [float(-abs(count_words(text) - target)) for text in completions]

    return reward
