"""A reward against repetition: the share of word n-grams that stood in the completion before."""

from workbench.errors import UserError
from workbench.evaluation.metrics import text_statistics
from workbench.rewards.contract import RewardModel


def repetition(n: int = 3) -> RewardModel:
    """A reward from -1 to 0: minus the share of repeated n-grams of words; 0 for fewer than n words."""
    if not isinstance(n, int) or n < 1:
        raise UserError(f"options.n is {n!r}; give the number of words in an n-gram, at least 1")

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        return [-text_statistics.repetition(text, n) for text in completions]

    return reward
