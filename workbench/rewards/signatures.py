"""How a reward is called: by keyword as in TRL, with the arguments that it takes, in the format that it reads."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from workbench.data.templates import PROMPT_MESSAGES
from workbench.errors import RewardError, UserError, one_line
from workbench.rewards.arguments import TRAINER_ARGUMENTS, WITHOUT_TRAINER

Format = Literal["texts", "messages"]

OPTIONAL_ARGUMENTS = (PROMPT_MESSAGES, *TRAINER_ARGUMENTS)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
TEXTS = re.compile(r"[\w.]+\[str\]")
MESSAGES = re.compile(r"[\w.]+\[(?:[\w.]+\[.*\]|[\w.]*Messages?)\]")
SYMPTOMS: dict[Format, re.Pattern[str]] = {
    "texts": re.compile("string indices must be integers|'str' object has no attribute 'get'"),
    "messages": re.compile("'list' object|'list' found|got 'list'|'dict' object|'dict' found|got 'dict'|unhashable"),
}
"""What Python says when a reward gets the other format."""
HINTS: dict[Format, str] = {
    "texts": "it was called with texts; for messages, as TRL passes them from conversational data, set chat: true in "
    "the data source, or annotate completions: list[list[dict[str, str]]]",
    "messages": "it was called with messages, as TRL does with conversational data; read completion[0]['content'], or "
    "annotate completions: list[str] to get texts",
}


def call_arguments(
    scorer: Callable[..., Any], name: str, prompts: list[str], completions: list[str], columns: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keyword arguments of one call, copies where the caller's rows outlive it.

    OPTIONAL_ARGUMENTS go only to rewards that name them or take any.
    """
    parameters = inspect.signature(scorer).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    bound = bound_parameter(scorer)
    ids = parameters.get("completion_ids")
    if ids is not None and ids.default is ids.empty and "completion_ids" not in columns:
        raise RewardError(
            f"{name}: it needs completion_ids, the token ids of responses, which PPO and the evaluation pass on; these "
            "texts were not sampled: give the parameter a default, or pass completion_ids"
        )
    passed = {
        argument: copy.deepcopy(value) if isinstance(value, list) else value
        for argument, value in (WITHOUT_TRAINER | dict(columns)).items()
        if argument != bound and (argument not in OPTIONAL_ARGUMENTS or takes_any or argument in parameters)
    }
    if call_format(scorer, columns) == "texts":
        return {"prompts": list(prompts), "completions": list(completions), **passed}
    chats = columns.get(PROMPT_MESSAGES) or [[{"role": "user", "content": prompt}] for prompt in prompts]
    return {
        "prompts": copy.deepcopy(chats),
        "completions": [[{"role": "assistant", "content": completion}] for completion in completions],
        **passed,
    }


def call_format(scorer: Callable[..., Any], columns: Iterable[str]) -> Format:
    """Return how a reward reads prompts and completions: as annotated, else as the data are, which is TRL's rule."""
    return annotated_format(scorer) or ("messages" if PROMPT_MESSAGES in columns else "texts")


def annotated_format(scorer: Callable[..., Any]) -> Format | None:
    """Return what the annotation of the completions, or else of the prompts, says; None if they have none."""
    parameters = inspect.signature(scorer).parameters
    for name in ("completions", "prompts"):
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        written = (annotation if isinstance(annotation, str) else str(annotation)).strip("'\"")
        if TEXTS.fullmatch(written):
            return "texts"
        if MESSAGES.fullmatch(written):
            return "messages"
    return None


@contextmanager
def format_explained(scorer: Callable[..., Any], columns: Iterable[str], failure: str) -> Iterator[None]:
    """Add a hint to an error that the format causes, if the reward does not annotate which one it reads."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        texts_or_messages = call_format(scorer, columns)
        if annotated_format(scorer) is not None or not SYMPTOMS[texts_or_messages].search(str(error)):
            raise
        raise RewardError(f"{failure} {one_line(error)}; {HINTS[texts_or_messages]}") from error


def bound_parameter(scorer: Callable[..., Any]) -> str | None:
    """Return the name, mostly self, under which a method has its object, so that no column can have it; else None."""
    function: Any = scorer.__func__ if inspect.ismethod(scorer) else type(scorer).__call__
    first = next(iter(inspect.signature(function).parameters.values()), None)
    return first.name if first is not None and first.kind is first.POSITIONAL_OR_KEYWORD else None


def check_signature(function: Callable[..., Any], name: str, columns: Mapping[str, list]) -> None:
    """Raise UserError if the function cannot be called with prompts, completions and these columns by keyword."""
    parameters = inspect.signature(function).parameters
    always = ("prompts", "completions", *(column for column in columns if column not in OPTIONAL_ARGUMENTS))
    for parameter in parameters.values():
        is_required = parameter.default is parameter.empty and parameter.kind not in VARIADIC
        if is_required and parameter.kind is parameter.POSITIONAL_ONLY:
            raise UserError(f"reward {name}: it is called by keyword; remove the / from its signature")
        if is_required and parameter.name not in (*always, *OPTIONAL_ARGUMENTS):
            raise UserError(missing_column(name, parameter.name, columns))
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    surplus = [argument for argument in always if argument not in parameters]
    if surplus:
        raise UserError(
            f"reward {name}: its signature ({', '.join(parameters)}) does not take {', '.join(surplus)}, which each "
            "call passes; add **columns to its parameters"
        )


def missing_column(reward: str, column: str, columns: Iterable[str]) -> str:
    """Return the message for a column that a reward needs and the data does not have."""
    available = ", ".join(name for name in columns if name not in OPTIONAL_ARGUMENTS) or "none"
    return (
        f"reward {reward}: it needs a column {column!r}; the data passes on {available}; map one with "
        f"columns: {{{column}: ...}}, or choose another reward"
    )
