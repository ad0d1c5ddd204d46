"""A reward against repetition: the fraction of word n-grams that repeat an earlier one in the completion."""

from workbench.errors import UserError
from workbench.evaluation.metrics import text_statistics
from workbench.rewards.contract import RewardModel


def repetition(n: int = 3) -> RewardModel:
    """Return a reward from -1 to 0: minus the fraction of repeated word n-grams; 0 for fewer than n words."""
    if not isinstance(n, int) or n < 1:
        raise UserError(f"options.n is {n!r}; use the number of words in an n-gram, at least 1")

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        return [-text_statistics.repetition(text, n) for text in completions]

    return reward
