"""Send the metrics of a stage to an experiment tracker: one project, a group for each run, a run for each stage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from workbench.config.parsing import dump, flatten
from workbench.config.schema import Config
from workbench.run.distributed import is_main_process
from workbench.run.folder import Run

PROJECT = "alignment-workbench"


class Tracker(Protocol):
    """What a training loop tells a tracker."""

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        """Log metrics of a step."""

    def log_samples(self, samples: Sequence[Mapping[str, Any]], step: int) -> None:
        """Log a table of responses with their scores; all have the same columns."""


class NoTracker:
    """Logs nothing."""

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        """Do nothing."""

    def log_samples(self, samples: Sequence[Mapping[str, Any]], step: int) -> None:
        """Do nothing."""


class AccelerateTracker:
    """Logs to one of Accelerate's trackers."""

    def __init__(self, tracker: Any) -> None:
        self.tracker = tracker

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        """Log numbers and texts."""
        self.tracker.log(dict(values), step=step)

    def log_samples(self, samples: Sequence[Mapping[str, Any]], step: int) -> None:
        """Log a table where the tracker has tables, else Markdown."""
        if not samples:
            return
        columns = list(samples[0])
        rows = [[sample[column] for column in columns] for sample in samples]
        if self.tracker.name == "wandb":
            self.tracker.log_table("samples", columns=columns, data=rows, step=step)
        elif self.tracker.name == "trackio":
            from trackio import Table

            self.tracker.log({"samples": Table(columns=columns, data=rows)}, step=step)
        else:
            self.tracker.log({"samples": markdown(columns, rows)}, step=step)


@contextmanager
def tracking(run: Run, stage: str) -> Iterator[Tracker]:
    """Yield the tracker of a stage, which logs nothing without `track` and on all processes but the main one."""
    name = run.config.track
    if name is None or not is_main_process():
        yield NoTracker()
        return
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # Accelerate's trackers ask it for the process
    if name == "tensorboard":
        tracker = LOGGER_TYPE_TO_CLASS[name]("tensorboard", run.stage(stage))
    else:
        tracker = LOGGER_TYPE_TO_CLASS[name](PROJECT, **tracker_arguments(name, run, stage))
    tracker.start()
    try:
        if name == "tensorboard":
            tracker.log({"configuration": "```yaml\n" + dump(run.config) + "```"}, step=0)
        else:
            tracker.store_init_configuration(flat_settings(run.config))
        yield AccelerateTracker(tracker)
    finally:
        tracker.finish()


def tracker_arguments(name: str, run: Run, stage: str) -> dict[str, Any]:
    """Return how the tracker names and groups the stage's run."""
    arguments: dict[str, Any] = {"name": f"{run.config.name}-{stage.replace('/', '-')}", "group": run.config.name}
    if name == "wandb":
        arguments |= {"job_type": stage, "dir": str(run.folder)}
    return arguments


def flat_settings(config: Config) -> dict[str, Any]:
    """Return every setting by its dotted key, as a number, a text or None."""
    settings = flatten(dataclasses.asdict(config))
    return {
        key: value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in settings.items()
    }


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table whose cells stay in their rows."""
    lines = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
