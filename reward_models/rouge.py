"""ROUGE (Lin, 2004) against a column of reference texts, as a reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from workbench.data.words import WordTokenizer, is_same_without_words
from workbench.errors import RewardError, UserError, shorten
from workbench.rewards.signatures import missing_column

TYPES = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Rouge:
    """The F-measure against the references in a column, the best if a row has a list of them."""

    scorer: RougeScorer
    type: str
    """rouge1, rouge2 or rougeL."""
    column: str

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """Return one F-measure per completion; raises RewardError for a row without references."""
        if self.column not in columns:
            raise RewardError(missing_column("rouge", self.column, columns))
        pairs = zip(columns[self.column], completions, strict=True)
        return [
            self._score(_references(value, row, self.column), completion)
            for row, (value, completion) in enumerate(pairs)
        ]

    def _score(self, references: list[str], completion: str) -> float:
        """Return the F-measure of one completion, which is 1 for the very text of a reference without words."""
        if any(is_same_without_words(reference, completion) for reference in references):
            return 1.0
        return float(self.scorer.score_multi(references, completion)[self.type].fmeasure)

    def check_columns(self, columns: Mapping[str, list]) -> None:
        """Raise UserError if the column is missing, or a row has no reference in it."""
        if self.column not in columns:
            raise UserError(missing_column("rouge", self.column, columns))
        for row, value in enumerate(columns[self.column]):
            try:
                _references(value, row, self.column)
            except RewardError as error:  # which no key would precede
                raise UserError(str(error)) from error


def load(type: str = "rougeL", column: str = "reference") -> Rouge:
    """Return the reward that compares completions with the references in `column`."""
    if type not in TYPES:
        raise UserError(f"options.type is {type!r}; use one of {', '.join(TYPES)}")
    return Rouge(RougeScorer([type], tokenizer=WordTokenizer()), type, column)


def _references(value: Any, row: int, column: str) -> list[str]:
    """Return the reference texts of one row."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RewardError(
            f"reward rouge, row {row}: {column} is {shorten(value)}; it must be a string or a list of strings"
        )
    return texts
