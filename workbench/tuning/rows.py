"""The rows of a comparison of ways to tune: the untouched model, and each method."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from workbench.config.schema import Config
from workbench.config.tuning import UNTOUCHED, ZERO_SHOT, TuningMethod
from workbench.errors import UserError
from workbench.run.folder import TRAINER_CHECKPOINT


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
    for row in rows:
        if folders.count(comparable(row.folder)) > 1 or row.folder.startswith((".", TRAINER_CHECKPOINT)):
            raise UserError(
                f"tuning.methods.{row.title}: its folder would be {row.folder!r}, which another row has or none may "
                "have; use another title of letters, digits, '.', '_' and '-'"
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
