"""Examples in prompts: drawn with a seed for each prompt, and never a row that is scored."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.config.prompting import MAX_SHOTS
from workbench.config.sources import DataSource
from workbench.data.formats import Row
from workbench.data.sources import first_rows
from workbench.data.templates import identity, render, template_text, text_column
from workbench.errors import UserError, error_context
from workbench.prompting.variants import Wording, identity_template


@dataclass(frozen=True)
class ExamplePool:
    """The rows that examples are drawn from."""

    rows: list[Row]
    seed: int
    line: str
    """What the pool consists of, for the plan."""

    def draw(self, row_identity: str, shots: int) -> list[Row]:
        """Return the examples of a prompt; those of a smaller number are the first of a larger one.

        They depend on the seed and on the prompt's row alone, not on the other rows.
        """
        order = random.Random(f"{self.seed} {row_identity}").sample(
            range(len(self.rows)), min(len(self.rows), MAX_SHOTS)
        )
        return [self.rows[index] for index in order[:shots]]


NO_EXAMPLES = ExamplePool([], 0, "")


def load_pool(
    source: DataSource, templates: Collection[str], scored: Collection[str], shots: int, seed: int
) -> ExamplePool:
    """Return the rows of the source that are not `scored`, by their identities in any of the templates.

    Raises UserError if they are fewer than the `shots` of a prompt, or one lacks its response or a template's column.
    """
    source = dataclasses.replace(source, template=identity_template(templates))
    with error_context("prompting.examples"):
        rows = [without_messages(row) for row in first_rows(source)]
        for row in rows:
            text_column(row, "response")
            for template in templates:
                render(row, template)
        usable = [row for row in rows if not identities(row, source, templates) & set(scored)]
    excluded = len(rows) - len(usable)
    also = f"{excluded} of the {len(rows)} are rows of evaluation.data, too"
    if len(usable) < shots:
        fix = "draw them from another split" if excluded else "lower it, or add rows"
        reason = f" ({also})" if excluded else ""
        raise UserError(
            f"prompting.shots: {shots} is more than the {len(usable)} rows of prompting.examples{reason}; {fix}"
        )
    line = f"prompting.examples: {source.path} [{source.split}]: {len(usable)} rows to draw from"
    return ExamplePool(usable, seed, f"{line}; {also} and left out" if excluded else line)


def identities(row: Row, source: DataSource, templates: Collection[str]) -> set[str]:
    """Return what identifies a row in each of the templates."""
    return {identity(row, dataclasses.replace(source, template=template)) for template in templates}


def without_messages(row: Row) -> Row:
    """Return a row without its turns: templates make the prompts here, and tell the rows apart."""
    values = {name: value for name, value in row.values.items() if name != "messages"}
    return Row(row.location, values, row.mapped)


def prompt_columns(
    row: Row, wording: Wording, examples: Sequence[Row], separator: str, *, chat: bool
) -> dict[str, Any]:
    """Return the columns from which the prompt is made: `messages` for a chat model with examples, else `prompt`.

    An example is its prompt and its response as they stand in training; where the template ends without whitespace, a
    line break comes between them, and after the prompt, too.
    """
    questions = [render(example, wording.template) for example in examples]
    responses = [text_column(example, "response") for example in examples]
    prompt = render(row, wording.template)
    if chat:
        turns = [
            turn
            for question, response in zip(questions, responses, strict=True)
            for turn in ({"role": "user", "content": question}, {"role": "assistant", "content": response})
        ]
        return {"messages": [*turns, {"role": "user", "content": prompt}]}
    joint = "" if template_text(wording.template)[-1:].isspace() or not examples else "\n"
    parts = [f"{question}{joint}{response}{separator}" for question, response in zip(questions, responses, strict=True)]
    return {"prompt": f"{''.join(parts)}{prompt}{joint}"}
