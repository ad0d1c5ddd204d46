"""What a comparison of algorithms found, as typed data; its JSON file is their serialization."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.comparison.budgets import Budget
from workbench.comparison.training_curves import AtKL, OperatingPoint, ValidationPoint
from workbench.errors import UserError, one_line, shorten
from workbench.evaluation.results import Metric, Settings, Verdict
from workbench.evaluation.results_files import typed
from workbench.evaluation.sources import Provenance
from workbench.run.files import write_text

VERSION = 1


@dataclass(frozen=True)
class Column:
    """A metric on one prompt set."""

    set: str
    neutral: bool
    """The prompts are harmless, so any change here is a side effect of alignment."""
    metric: Metric


@dataclass(frozen=True)
class Value:
    """A metric of one row."""

    mean: float | None
    """Over seeds, of each seed's mean over prompts; None where the row does not have the metric."""
    seed_std: float | None
    """Standard deviation over seeds of each seed's mean; None for one seed."""
    is_upper_bound: bool = False
    """Whether the value is at most so much, as the KL of best-of-n."""


@dataclass(frozen=True)
class RowDifference:
    """After minus before of one column, paired by prompt with the seeds of either row averaged per prompt."""

    before: str
    after: str
    column: int
    """Index of the column."""
    difference: float
    low: float | None
    """Lower end of the interval over seeds and prompts, one of `comparisons`; None for a single prompt."""
    high: float | None
    low_over_prompts: float | None
    """Lower end of the interval over prompts, which holds for these seeds alone."""
    high_over_prompts: float | None
    prompts: int
    """Distinct prompts, or clusters of them where a column names these."""
    verdict: Verdict | None
    """By the interval over seeds and prompts; None if neither direction is better."""


@dataclass(frozen=True)
class AlgorithmRow:
    """One algorithm with one policy."""

    title: str
    model: str
    """Title of the model in the evaluations of its runs."""
    is_trained: bool
    """Whether PPO's stage trained the model that is sampled from, by whichever algorithm."""
    is_decoding: bool
    """Whether the completions are those of another row's model, decoded in another way."""
    seeds: list[int]
    folders: list[str]
    """The run of each seed."""
    values: list[Value]
    """In the order of the columns."""
    budget: Budget
    curve: list[ValidationPoint]
    """Mean over seeds at each validation along training."""
    at_kl: AtKL | None
    """At the table's `kl`; None where a seed does not pass it."""
    operating_point: OperatingPoint | None
    no_operating_point: str | None
    """Why there is none."""


@dataclass(frozen=True)
class PolicyTable:
    """All algorithms with one policy."""

    policy: str
    columns: list[Column]
    """The first decides the ranking: toxicity by the first judge that was not the reward, where there is one."""
    sets: dict[str, int]
    """Distinct prompts that all runs have, by set."""
    rows: list[AlgorithmRow]
    baseline: str
    """Title of the first row, with which all are compared."""
    reference: str | None
    """Title of the trained row with which the others are also compared: PPO, or the first."""
    comparisons: int
    """Pairs of rows; the intervals of a column share the 5 % error among them."""
    differences: list[RowDifference]
    """From the baseline and from the reference in every column; of every two rows in the first."""
    kl: float | None
    """The largest KL, nats per response, that every seed of the most trained rows reaches along training."""
    sentence: str
    """What the intervals of the first column support."""
    warnings: list[str]
    differing_settings: dict[str, list[str]]
    """Values of the trained rows, in their order, by key of the configuration."""
    settings: Settings
    """How the first run's completions were sampled and judged."""
    provenance: Provenance
    """Of the first run."""
    clusters: dict[str, int] = field(default_factory=dict)
    """Clusters of these prompts, by set whose clusters a column names."""

    @property
    def trained(self) -> list[AlgorithmRow]:
        """The rows that are what PPO's stage trained, decoded as usual."""
        return [row for row in self.rows if row.is_trained and not row.is_decoding]

    def find(self, before: str, after: str, column: int) -> RowDifference | None:
        """Return the difference of two rows in a column, or None where it was not computed."""
        names = (before, after, column)
        return next((d for d in self.differences if (d.before, d.after, d.column) == names), None)


@dataclass(frozen=True)
class AlgorithmComparison:
    """Everything that the JSON file holds."""

    policies: list[PolicyTable]
    warnings: list[str]
    """About the comparison as a whole, such as runs that are broken."""


def to_json(comparison: AlgorithmComparison) -> dict[str, Any]:
    """Return the comparison as plain data."""
    return {"version": VERSION, **dataclasses.asdict(comparison)}


def write_algorithm_results(file: Path, comparison: AlgorithmComparison) -> None:
    """Write the comparison as JSON; raises ValueError for a number that is not finite."""
    write_text(file, json.dumps(to_json(comparison), indent=2, allow_nan=False) + "\n")


def read_algorithm_results(file: Path) -> AlgorithmComparison:
    """Return the comparison in a file; raises UserError where it cannot be read or is not what was written."""
    remedy = "compare the runs again"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        version = data.get("version") if isinstance(data, Mapping) else None
        if version != VERSION:
            raise UserError(f"{file}: a comparison of version {shorten(version)}, not {VERSION}; {remedy}")
        comparison: AlgorithmComparison = typed(
            AlgorithmComparison, {name: value for name, value in data.items() if name != "version"}
        )
        return comparison
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}; {remedy}") from error
