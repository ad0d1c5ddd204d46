"""Read and write results.json and completions.jsonl."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from workbench.errors import UserError, one_line
from workbench.evaluation.results import Example, Results, Summary
from workbench.run.files import read_json_lines, write_text

VERSION = 4


def to_json(results: Results) -> dict[str, Any]:
    """Return the results as plain data for results.json."""
    return {"version": VERSION, **dataclasses.asdict(results)}


def from_json(data: Mapping[str, Any], path: str) -> Results:
    """Return the results in a parsed results.json.

    Raises UserError, with its `path`, for another version, and for a set without the comparison of the verdict.
    """
    version = data.get("version") if isinstance(data, Mapping) else None
    if version != VERSION:
        raise UserError(f"{path}: results of version {version}, not {VERSION}; redo the stage with --force evaluation")
    try:
        results: Results = _typed(Results, {name: value for name, value in data.items() if name != "version"})
        for result in results.sets:
            result.comparison(results.before, results.after)
        return results
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: corrupt: {one_line(error)}; redo the stage with --force evaluation") from error


def read_results(file: Path | str) -> Results:
    """Return the results in a results.json; raises UserError where it cannot be read."""
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}; redo it with --force evaluation") from error
    return from_json(data, str(file))


def write_evaluation(folder: Path, results: Results, examples: Sequence[Example]) -> None:
    """Write results.json and completions.jsonl."""
    lines = [json.dumps(example_to_json(e), ensure_ascii=False, allow_nan=False) + "\n" for e in examples]
    write_text(folder / "completions.jsonl", "".join(lines))
    write_text(folder / "results.json", json.dumps(to_json(results), indent=2, allow_nan=False) + "\n")


def example_to_json(example: Example) -> dict[str, Any]:
    """Return a line of completions.jsonl as plain data."""
    scores = [{"metric": s.metric.name, "judge": s.metric.judge, "means": s.means} for s in example.scores]
    return dataclasses.asdict(dataclasses.replace(example, scores=[])) | {"scores": scores}


def read_examples(file: Path, results: Results) -> list[Example]:
    """Return the examples in a completions.jsonl that belongs to `results`; raises UserError for a corrupt file."""
    if not file.is_file():
        raise UserError(f"{file}: missing; redo it with --force evaluation")
    metrics = {(s.metric.name, s.metric.judge): s.metric for result in results.sets for s in result.summaries}
    try:
        lines = read_json_lines(file)
        for line in lines:
            line["scores"] = [Summary(metrics[s["metric"], s["judge"]], s["means"], None) for s in line["scores"]]
            ratios = line["token_log_ratios"]
            line["token_log_ratios"] = ratios and [(token, nats) for token, nats in ratios]
        return [Example(**line) for line in lines]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}; redo it with --force evaluation") from error


def _typed(kind: Any, value: Any) -> Any:
    """Convert plain data to the dataclasses, lists and mappings of the type `kind`."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if unknown := set(value) - set(hints):
            raise ValueError(f"unknown field {min(unknown)} in {kind.__name__}")
        return kind(**{name: _typed(hints[name], item) for name, item in value.items()})
    arguments = get_args(kind)
    if get_origin(kind) is list:
        return [_typed(arguments[0], item) for item in value]
    if get_origin(kind) is dict:
        return {key: _typed(arguments[1], item) for key, item in value.items()}
    if get_origin(kind) is Union or isinstance(kind, UnionType):
        return None if value is None else _typed(arguments[0], value)
    return value
