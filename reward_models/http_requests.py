"""What the reward server reads from the bodies of its requests; anything else is an error in one line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from workbench.errors import shorten

MAX_COLUMN_DEPTH = 64


class RequestError(Exception):
    """A request that gets an error response."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Rows:
    """What a reward scores."""

    prompts: list[str]
    completions: list[str]
    columns: dict[str, list]


def read_rows(request: dict[str, Any]) -> Rows:
    """Return the rows of a request in this project's JSON."""
    _check_keys(request, ["prompts", "completions", "columns"])
    prompts, completions = _read_texts(request, "prompts"), _read_texts(request, "completions")
    columns = _read_columns(request, len(completions))
    if len(prompts) != len(completions):
        raise RequestError(400, f"{len(prompts)} prompts for {len(completions)} completions; send one for each")
    return Rows(prompts, completions, columns)


def read_queries(request: dict[str, Any], eos_token: str) -> Rows:
    """Return the rows of a request of OpenRLHF's client: a completion is what follows the prompt in its query.

    The client decodes special tokens too, so that a query ends with `eos_token` unless its response was truncated.
    """
    _check_keys(request, ["query", "prompts", "labels"])
    queries, prompts = _read_texts(request, "query"), _read_texts(request, "prompts")
    if len(prompts) != len(queries):
        raise RequestError(400, f"{len(prompts)} prompts for {len(queries)} queries; send one for each")
    columns = {"label": request["labels"]} if "labels" in request else {}
    for values in columns.values():
        _check_values(values, len(queries), "labels")
    for row, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
        if not query.startswith(prompt):
            raise RequestError(
                400,
                f"query {row}, {shorten(query)}, does not start with its prompt, {shorten(prompt)}; raise OpenRLHF's "
                "maximum length, so that it does not truncate prompts",
            )
    completions = [
        query.removeprefix(prompt).removesuffix(eos_token) for query, prompt in zip(queries, prompts, strict=True)
    ]
    return Rows(prompts, completions, columns)


def read_judged_texts(request: dict[str, Any]) -> list[str]:
    """Return the texts of a request to the judge."""
    _check_keys(request, ["texts"])
    return _read_texts(request, "texts")


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    def read_finite(text: str) -> float:
        number = float(text)
        if math.isinf(number):
            raise ValueError(f"{shorten(text)} is too large for a float")
        return number

    try:
        request = json.loads(body, parse_constant=refuse, parse_float=read_finite)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise RequestError(400, f"the body is a JSON {type(request).__name__}, not an object")
    return request


def _check_keys(request: dict[str, Any], names: list[str]) -> None:
    """Raise RequestError for a key that is not among `names`."""
    unknown = [name for name in request if name not in names]
    if unknown:
        raise RequestError(400, f"unknown key {unknown[0]!r}; send {', '.join(names)}")


def _read_texts(request: dict[str, Any], name: str) -> list[str]:
    """Return the list of texts under `name`."""
    texts = request.get(name)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(400, f"{name} is missing or not a list of texts")
    return texts


def _read_columns(request: dict[str, Any], count: int) -> dict[str, list]:
    """Return the columns, each with `count` values."""
    columns = request.get("columns", {})
    if not isinstance(columns, dict):
        raise RequestError(400, "columns is not an object that maps names to lists")
    for name, values in columns.items():
        if name in ("prompts", "completions"):
            raise RequestError(400, f"{name} is not a column; send it outside columns")
        _check_values(values, count, f"column {name!r}")
    return columns


def _check_values(values: Any, count: int, name: str) -> None:
    """Raise RequestError unless the values are a list of `count`, nested within the limit."""
    if not isinstance(values, list) or len(values) != count:
        raise RequestError(400, f"{name} is not a list of {count} values, one per completion")
    if _is_deeper(values, MAX_COLUMN_DEPTH):
        raise RequestError(400, f"{name} is nested more than {MAX_COLUMN_DEPTH} levels deep")


def _is_deeper(values: list, depth: int) -> bool:
    """Return whether lists and objects are nested in a list more than `depth` levels deep, itself included."""
    level: list[Any] = [values]
    for _ in range(depth):
        nested = (item.values() if isinstance(item, dict) else item for item in level)
        level = [value for items in nested for value in items if isinstance(value, (list, dict))]
    return bool(level)
