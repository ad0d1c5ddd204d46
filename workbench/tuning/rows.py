"""The rows of a comparison of ways to tune, the untouched model and each method, and where each method trains."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.config.names import TUNING
from workbench.config.schema import Config
from workbench.config.tuning import UNTOUCHED, ZERO_SHOT, TuningMethod
from workbench.errors import UserError
from workbench.evaluation.records import LOG, read_log
from workbench.run.folder import TRAINER_CHECKPOINT, Run

METHODS = "methods"
"""The folder, below the stage's, of what the rows trained."""


@dataclass(frozen=True)
class TunedRow:
    """One row of the table: a method and the folder of what it trains."""

    title: str
    method: TuningMethod
    folder: str
    """Below the stage's folder."""


def tuned_rows(config: Config) -> list[TunedRow]:
    """Return the rows of the table; raises UserError where two methods would share a folder, or nothing is trained."""
    assert config.tuning is not None
    rows = [TunedRow(title, method, re.sub(r"[^\w.-]+", "-", title)) for title, method in config.tuning.rows().items()]
    folders = [comparable(row.folder) for row in rows]
    for index, row in enumerate(rows):
        same = next((other for other in rows[:index] if other.method == row.method), None)
        if same is not None:
            raise UserError(
                f"tuning.methods.{row.title}: has the settings of {same.title}; remove one, as every row widens the "
                "intervals of all"
            )
        if folders.count(comparable(row.folder)) > 1 or row.folder.startswith((".", TRAINER_CHECKPOINT)):
            others = [
                other.title for other in rows if other != row and comparable(other.folder) == comparable(row.folder)
            ]
            raise UserError(
                f"tuning.methods.{row.title}: its folder would be {row.folder!r}, "
                + (f"as that of {others[0]}" if others else "which is no name for one")
                + "; use another title of letters, digits, '.', '_' and '-'"
            )
    if rows[0].method != TuningMethod(ZERO_SHOT):
        raise UserError(
            f"tuning.methods.{UNTOUCHED}: the first row, the untouched model, has this title; choose another one"
        )
    if all(row.method.method == ZERO_SHOT for row in rows):
        raise UserError("tuning.methods: only zero-shot, so there is nothing to compare; add full or lora")
    return rows


def comparable(folder: str) -> str:
    """Return the name of a folder as file systems compare it that ignore case and how a letter is composed."""
    return unicodedata.normalize("NFC", folder).casefold()


def method_stage(row: TunedRow) -> str:
    """Return the name of a row's folder below the run's."""
    return f"{TUNING}/{METHODS}/{row.folder}"


def method_folder(run: Run, row: TunedRow) -> Path:
    """Return the folder of what a row trained."""
    return run.folder / method_stage(row)


def read_method_curves(run: Run, rows: Sequence[TunedRow]) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of each trained method's metrics.jsonl by title; raises UserError for a corrupt file."""
    files = {row.title: method_folder(run, row) / LOG for row in rows}
    return {title: read_log(file, TUNING) for title, file in files.items() if file.is_file()}
