"""What a comparison of prompts writes beside its results: the rows of the grid, and what was inspected."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from workbench.evaluation.results import Settings
from workbench.prompting.inspection import Inspection
from workbench.run.files import write_text

FILE = "grid.json"


@dataclass(frozen=True)
class GridRow:
    """How the prompts of one row were made, and how it generated."""

    title: str
    template: str
    shots: int
    settings: Settings
    """How it generated."""
    prompt: str
    """The first prompt, in full."""
    too_long: dict[str, int]
    """Rows of the data that do not fit, by set; they are left out of every row of the grid."""


@dataclass(frozen=True)
class Grid:
    """The rows of a grid and what was inspected."""

    rows: list[GridRow]
    inspections: list[Inspection]


def write_grid(folder: Path, grid: Grid) -> None:
    """Write grid.json."""
    write_text(folder / FILE, json.dumps(dataclasses.asdict(grid), indent=1, ensure_ascii=False) + "\n")
