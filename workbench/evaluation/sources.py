"""What the results of an evaluation were made of, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Source:
    """A model or a data set that went into the evaluation, and its content hash."""

    name: str
    kind: Literal["model", "reward", "judge", "score", "encoder", "fluency", "data"]
    origin: str
    """Hub id, path, or toy:NAME."""
    sha256: str | None
    """None if it is not on this machine."""


@dataclass(frozen=True)
class Provenance:
    """Where the results come from."""

    date: str
    commit: str | None
    machine: str
    versions: dict[str, str]
    sources: list[Source]
