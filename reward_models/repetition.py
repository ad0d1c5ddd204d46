"""A reward against repetition: the share of word n-grams that stood in the completion before."""

from workbench.errors import UserError
from workbench.rewards import RewardModel
from workbench.text_statistics import distinct_n


def repetition(n: int = 3) -> RewardModel:
    """A reward from -1 to 0: minus the share of repeated n-grams of words; 0 for fewer than n words."""
    if not isinstance(n, int) or n < 1:
        raise UserError(f"options.n is {n!r}; give the number of words in an n-gram, at least 1")

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        return [distinct_n([text], n) - 1.0 if len(text.split()) >= n else 0.0 for text in completions]

    return reward
