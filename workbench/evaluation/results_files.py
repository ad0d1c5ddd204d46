"""Read and write results.json and completions.jsonl."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from workbench.config.names import EVALUATION, STAGES
from workbench.errors import UserError, one_line, shorten
from workbench.evaluation.results import MAX_TOXICITY, Example, Results, Summary
from workbench.run.files import is_present, read_json_lines, write_text
from workbench.run.stage_record import check_files, check_made_from, read_record

VERSION = 4
RENAMED = {"worst toxicity": MAX_TOXICITY}
"""Present names of metrics by their former ones."""


def remedy(file: Path | str) -> str:
    """Return how to write a file anew: the folder that it is in has the name of its stage."""
    name = Path(os.path.abspath(file)).parent.name
    return f"redo the stage with --force {name if name in STAGES else EVALUATION}"


def to_json(results: Results) -> dict[str, Any]:
    """Return the results as plain data for results.json."""
    return {"version": VERSION, **dataclasses.asdict(results)}


def from_json(data: Mapping[str, Any], path: str) -> Results:
    """Return the results in a parsed results.json.

    Raises UserError, with its `path`, for another version, and for a set without the comparison of the verdict.
    """
    version = data.get("version") if isinstance(data, Mapping) else None
    if version != VERSION:
        other = shorten(version)
        raise UserError(f"{path}: results of version {other}, not {VERSION}; {remedy(path)}")
    try:
        values = {name: value for name, value in data.items() if name != "version"}
        results: Results = typed(Results, with_new_names(values))
        for result in results.sets:
            result.comparison(results.before, results.after)
        if missing := {results.before, results.after} - set(results.models):
            raise ValueError(f"no model {min(missing)}")
        return results
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: corrupt: {one_line(error)}; {remedy(path)}") from error


def with_new_names(value: Any) -> Any:
    """Return plain data with the present names of metrics that had another one."""
    if isinstance(value, list):
        return [with_new_names(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    changed = {name: with_new_names(item) for name, item in value.items()}
    is_metric = "direction" in changed and isinstance(changed.get("name"), str)
    return changed | {"name": RENAMED.get(changed["name"], changed["name"])} if is_metric else changed


def read_results(file: Path | str) -> Results:
    """Return the results in a results.json; raises UserError where it cannot be read or is not what was written."""
    check_unchanged(Path(file))
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}; {remedy(file)}") from error
    return from_json(data, str(file))


def check_unchanged(file: Path) -> None:
    """Raise UserError for a file of a finished evaluation that is not what was written, or is about other models."""
    file = Path(os.path.abspath(file))  # a relative path may not name the run's folder
    if is_present(file.with_name("stage.json")):
        check_made_from(file.parent.parent, file.parent.name, read_record(file.parent))
        check_files(file.parent, [file.name])


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
        raise UserError(f"{file}: missing; {remedy(file)}")
    check_unchanged(file)
    metrics = {(s.metric.name, s.metric.judge): s.metric for result in results.sets for s in result.summaries}
    try:
        examples = []
        for line in read_json_lines(file):
            scores = [
                Summary(metrics[s["metric"], s["judge"]], typed(dict[str, float | None], s["means"]), None)
                for s in _instance(list, line["scores"])
            ]
            examples.append(dataclasses.replace(typed(Example, line | {"scores": []}), scores=scores))
        _check_complete(examples, results)
        return examples
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}; {remedy(file)}") from error


def _check_complete(examples: Sequence[Example], results: Results) -> None:
    """Raise ValueError unless there are all rows of the results, with all samples of all models and with scores."""
    samples = results.settings.samples * len(results.settings.seeds)
    rows = Counter(example.set for example in examples)
    for result in results.sets:
        if result.has_completions and rows[result.name] != result.rows:
            raise ValueError(f"{rows[result.name]} of {result.rows} rows of {result.name}")
    for example in examples:
        where = f"prompt {example.index} of {example.set}"
        texts = {title: len(texts) for title, texts in example.completions.items()}
        if texts != dict.fromkeys(results.models, samples):
            raise ValueError(f"{where}: completions of {texts}, not {samples} of each of {', '.join(results.models)}")
        judged = [probabilities for by_title in example.toxicity.values() for probabilities in by_title.values()]
        if any(len(probabilities) != samples for probabilities in judged):
            raise ValueError(f"{where}: toxicity of other than {samples} samples")
        if not any(value is not None for score in example.scores for value in score.means.values()):
            raise ValueError(f"{where}: no scores")


def typed(kind: Any, value: Any) -> Any:
    """Return plain data as the dataclasses, lists, tuples and mappings of the type `kind`.

    Raises ValueError or TypeError where the data has another type.
    """
    arguments, origin = get_args(kind), get_origin(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        if unknown := set(_instance(Mapping, value)) - set(hints):
            raise ValueError(f"unknown field {min(unknown)} in {kind.__name__}")
        return kind(**{name: typed(hints[name], item) for name, item in value.items()})
    if origin is list:
        return [typed(arguments[0], item) for item in _instance(list, value)]
    if origin is tuple:
        return tuple(typed(each, item) for each, item in zip(arguments, _instance(list, value), strict=True))
    if origin is dict:
        return {key: typed(arguments[1], item) for key, item in _instance(Mapping, value).items()}
    if origin is Union or isinstance(kind, UnionType):
        return None if value is None else typed(arguments[0], value)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{shorten(value)} is not one of {', '.join(map(str, arguments))}")
        return value
    return _instance(kind, value)


def _instance(kind: type, value: Any) -> Any:
    """Return the value, an integer also as a number.

    Raises ValueError where it has another type or is not finite, and OverflowError for an integer beyond all numbers.
    """
    if isinstance(value, int) and not isinstance(value, bool) and kind is float:
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{shorten(value)} is not of type {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields."""
    return get_type_hints(kind)
