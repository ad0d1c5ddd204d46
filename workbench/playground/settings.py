"""What a user chooses: a prompt and how it is completed; checked before any model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from workbench.config.derived import completion_limit, sampling_seeds
from workbench.config.range_checks import check_ranges
from workbench.config.ranges import Range
from workbench.config.schema import Config
from workbench.errors import UserError

MAX_NEW_TOKENS = 4096


@dataclass(frozen=True)
class Settings:
    """How the completions are sampled."""

    temperature: Annotated[float, Range(minimum=0.01, maximum=100, zero="greedy")]
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: Annotated[int, Range(minimum=1, maximum=MAX_NEW_TOKENS)]
    """Maximum length of a completion, in tokens."""
    seed: Annotated[int, Range(minimum=0, maximum=2**32 - 1)]
    """The models share the random numbers that it gives."""
    samples: Annotated[int, Range(minimum=1, maximum=16)] = 1
    """Completions per model."""


def default_settings(config: Config) -> Settings:
    """Return how the run's evaluation samples, with one completion of bounded length per model."""
    limit = min(completion_limit(config), MAX_NEW_TOKENS)
    return Settings(config.evaluation.temperature, limit, sampling_seeds(config)[0])


def check_settings(settings: Settings) -> None:
    """Raise UserError for a setting that is out of range."""
    check_ranges(settings, Settings, "")


def check_prompt(text: str) -> None:
    """Raise UserError for a prompt without content."""
    if not text.strip():
        raise UserError("prompt: empty; type a text")
