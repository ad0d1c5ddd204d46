"""Read the runs of a comparison of algorithms: the rows of each policy with their seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.comparison.budgets import Budget, budget, is_trained, sampled_model
from workbench.comparison.cells import Cell
from workbench.comparison.comparability import EvaluatedRun
from workbench.comparison.reading import curves_of, read_evaluated
from workbench.comparison.training_curves import ValidationPoint, validation_points
from workbench.config.names import ALIGNED, BASE, PPO, TUNED
from workbench.errors import UserError, suggestion
from workbench.run.folder import Run


@dataclass(frozen=True)
class ReadCell:
    """A cell with what its run holds."""

    cell: Cell
    run: EvaluatedRun
    """Its `after` is the cell's model."""
    points: list[ValidationPoint]
    budget: Budget


@dataclass(frozen=True)
class ReadRow:
    """The seeds of one row, in their order."""

    title: str
    cells: list[ReadCell]

    @property
    def model(self) -> str:
        """Title of the model in the evaluations."""
        return self.cells[0].cell.model

    @property
    def trained(self) -> bool:
        """Whether PPO's stage trained the model that is sampled from."""
        return is_trained(self.cells[0].run.config, self.model)

    @property
    def is_decoding(self) -> bool:
        """Whether the row gets its completions from a model of another row in another way."""
        return sampled_model(self.cells[0].run.config, self.model) != self.model


def read_rows(cells: Sequence[Cell]) -> dict[str, list[ReadRow]]:
    """Return the rows of each policy: untrained models first, then trained ones, then those that choose at decoding."""
    if not cells:
        raise UserError("no finished run to compare: every run of the comparison is missing or broken")
    runs: dict[Path, tuple[EvaluatedRun, list[dict[str, Any]], dict[str, Any] | None]] = {}
    grouped: dict[str, dict[str, dict[int, ReadCell]]] = {}
    for cell in cells:
        if cell.folder not in runs:
            run = Run(cell.folder, (evaluated := read_evaluated(cell.folder)).config)
            record = run.record(PPO) if run.finished(PPO) else None
            runs[cell.folder] = evaluated, curves_of(run).get(PPO, []), record
        seeds = grouped.setdefault(cell.policy, {}).setdefault(cell.algorithm, {})
        if cell.seed in seeds:
            raise UserError(f"{cell.folder}: {cell.policy}, {cell.algorithm}, seed {cell.seed} is there twice")
        seeds[cell.seed] = read_cell(cell, *runs[cell.folder])
    policies = {
        policy: [ReadRow(title, [seeds[seed] for seed in sorted(seeds)]) for title, seeds in rows.items()]
        for policy, rows in grouped.items()
    }
    for rows in policies.values():
        for row in rows:
            models = list(dict.fromkeys(each.cell.model for each in row.cells))
            if len(models) > 1:
                raise UserError(f"{row.title}: its seeds name different models: {', '.join(models)}; name one")
        # What the alignment began with is the first row, from which the others differ.
        rows.sort(key=lambda row: (row.is_decoding, row.trained, {TUNED: 0, BASE: 1}.get(row.model, 2)))
    return policies


def read_cell(cell: Cell, run: EvaluatedRun, log: list[dict[str, Any]], record: Mapping[str, Any] | None) -> ReadCell:
    """Return the cell with its run; raises UserError where the run did not evaluate its model."""
    models = run.results.models
    if cell.model not in models:
        raise UserError(f"{cell.folder}: no model {cell.model!r} in its evaluation{suggestion(cell.model, models)}")
    config = run.config
    points = validation_points(log) if cell.model == ALIGNED else []
    run = dataclasses.replace(run, results=dataclasses.replace(run.results, after=cell.model))
    return ReadCell(cell, run, points, budget(config, cell.model, log, record))
