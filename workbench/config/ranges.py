"""The ranges that fields of the configuration are annotated with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """The numbers that a field may hold; a bound that is None is open."""

    above: float | None = None
    """Every value is larger than this."""
    minimum: float | None = None
    """The smallest value."""
    maximum: float | None = None
    """The largest value."""
    below: float | None = None
    """Every value is smaller than this."""
    zero: str | None = None
    """What 0 means where it is allowed below the smallest value."""


@dataclass(frozen=True)
class Length:
    """How many entries a list or mapping may have."""

    minimum: int
    maximum: int | None = None


@dataclass(frozen=True)
class OneLine:
    """A text that names something: not blank, without control characters, and no longer than a path may be."""


@dataclass(frozen=True)
class IntegerNames:
    """A mapping whose names may be integers, which are read as text."""


Name = Annotated[str, OneLine()]
PositiveInt = Annotated[int, Range(minimum=1)]
NonNegativeInt = Annotated[int, Range(minimum=0)]
# What is divided by or clipped to less, or multiplied by more, is lost in 32-bit numbers.
PositiveFloat = Annotated[float, Range(minimum=1e-6, maximum=1e9)]
NonNegativeFloat = Annotated[float, Range(minimum=0, maximum=1e6)]
Fraction = Annotated[float, Range(minimum=0, maximum=1)]
Share = Annotated[float, Range(above=0, below=1)]  # of several that make up a whole
# The upper bounds are far above what any machine can train; a larger number is a slip.
Steps = Annotated[int, Range(minimum=1, maximum=10_000_000)]
Epochs = Annotated[float, Range(minimum=1e-6, maximum=100_000)]
Size = Annotated[int, Range(minimum=1, maximum=2**20)]  # of a batch in rows, or of a text in tokens
Rank = Annotated[int, Range(minimum=1, maximum=2**16)]
Rate = Annotated[float, Range(minimum=0, maximum=10)]
Seed = Annotated[int, Range(minimum=0, maximum=2**32 - 1)]
PairOfTexts = Annotated[list[str], Length(2, 2)]
