"""ROUGE (Lin, 2004) against a column of reference texts, as a reward."""

from __future__ import annotations

from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from workbench.errors import RewardError, UserError, shorten
from workbench.rewards.contract import RewardModel

TYPES = ("rouge1", "rouge2", "rougeL")


def load(type: str = "rougeL", column: str = "reference") -> RewardModel:
    """Return a reward that is the F-measure against the references in `column`, the best if a row has a list."""
    if type not in TYPES:
        raise UserError(f"options.type is {type!r}; use one of {', '.join(TYPES)}")
    scorer = RougeScorer([type])

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        if column not in columns:
            available = ", ".join(columns) or "none"
            raise RewardError(f"reward rouge: no column {column!r} to compare with; available: {available}")
        pairs = zip(columns[column], completions, strict=True)
        return [
            float(scorer.score_multi(_references(value, row, column), completion)[type].fmeasure)
            for row, (value, completion) in enumerate(pairs)
        ]

    return reward


def _references(value: Any, row: int, column: str) -> list[str]:
    """Return the reference texts of one row."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RewardError(
            f"reward rouge, row {row}: {column} is {shorten(value)}; it must be a string or a list of strings"
        )
    return texts
