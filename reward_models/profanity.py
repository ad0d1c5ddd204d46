"""A linear bag-of-words model of English profanity, from the package alt-profanity-check."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from workbench.errors import UserError
from workbench.rewards.contract import Judge

MIN_PROBABILITY = 1e-6  # a probability of exactly 0 or 1 would have an infinite margin


@dataclass(frozen=True)
class Profanity:
    """Rewards clean language with the margin log((1 - p) / p), within +-13.8."""

    predict: Callable[[list[str]], np.ndarray]

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """Return the margin of "clean" over "profane" for each completion."""
        profane = np.clip(self.toxicity(completions), MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        return [float(margin) for margin in np.log1p(-profane) - np.log(profane)]

    def judge(self) -> Judge:
        """Return the toxicity judge."""
        return self.toxicity

    def toxicity(self, texts: list[str]) -> list[float]:
        """Return the probability of profanity for each text."""
        # The package's own function fails on an empty list.
        return [float(probability) for probability in self.predict(texts)] if texts else []


def load() -> Profanity:
    """Return the reward; raises UserError if alt-profanity-check is not installed."""
    try:
        package = importlib.import_module("profanity_check")
    except ImportError as error:
        raise UserError(f"profanity needs a package ({error}): python -m pip install alt-profanity-check") from error
    return Profanity(package.predict_prob)
