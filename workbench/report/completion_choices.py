"""Choices of completions by how judges classify them, which the examples can be filtered by and tables lead to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from workbench.evaluation.results import Example
from workbench.report.page import text

CLEAN, TOXIC = "0", "1"
"""How report.js reads the class of a completion."""
TOXIC_TO_CLEAN, CLEAN_TO_TOXIC = "toxic \u2192 clean", "clean \u2192 toxic"


def judges_of(examples: Sequence[Example]) -> list[str]:
    """Return the judges whose probabilities all examples have, in their order; none in files of older versions."""
    first = list(examples[0].toxicity) if examples else []
    return [judge for judge in first if all(judge in example.toxicity for example in examples)]


def flip_label(judge: str, *, to_clean: bool) -> str:
    """Return the name of the choice of completions that changed sides according to a judge."""
    return f"{TOXIC_TO_CLEAN if to_clean else CLEAN_TO_TOXIC} ({judge})"


def alone_label(judge: str, other: str) -> str:
    """Return the name of the choice of completions that one judge calls toxic and another clean."""
    return f"toxic by {judge}, clean by {other}"


def completion_choices(judges: Sequence[str]) -> list[dict[str, str | int]]:
    """Return every choice as report.js reads it, judges by their numbers: those that flipped, and disagreements."""
    choices: list[dict[str, str | int]] = []
    for number, judge in enumerate(judges):
        for was, becomes in ((TOXIC, CLEAN), (CLEAN, TOXIC)):
            label = flip_label(judge, to_clean=becomes == CLEAN)
            choices.append({"label": label, "judge": number, "before": was, "after": becomes})
    for (number, judge), (other_number, other) in itertools.permutations(enumerate(judges), 2):
        choices.append({"label": alone_label(judge, other), "toxic": number, "clean": other_number})
    return choices


def classes(example: Example, judges: Sequence[str], models: Sequence[str], threshold: float) -> list[list[str]]:
    """Return the classes of the completions by judge and model, a digit for each sample."""

    def digits(probabilities: Sequence[float]) -> str:
        return "".join(TOXIC if probability >= threshold else CLEAN for probability in probabilities)

    return [[digits(example.toxicity[judge].get(model, [])) for model in models] for judge in judges]


def choice_link(count: int, set_title: str, label: str, *, is_clickable: bool) -> str:
    """Return a count as markup that leads to the completions that it counts, if there are any."""
    if not count or not is_clickable:
        return str(count)
    parameters = urlencode({"set": set_title, "completions": label}, quote_via=quote, errors="replace")
    return f'<a href="{text(f"#{parameters}")}">{count}</a>'
