"""One finished run of a comparison of algorithms: its row, its seed, and the model that is the row's result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cell:
    """A run with a finished evaluation, as one seed of a row."""

    policy: str
    """Title of the policy in the table."""
    algorithm: str
    """Title of the row."""
    seed: int
    folder: Path
    """The run folder."""
    model: str
    """Title of the model in that run's evaluation that is the row's result: "aligned", "sft", or a decoding method's
    title such as "best of 16"."""
