"""The prompt sets of a grid: the same rows in every wording, without those that are too long in any."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from workbench.config.schema import Config
from workbench.config.sources import DataSource, PromptSet
from workbench.data.context import Context
from workbench.data.formats import Row
from workbench.data.prompts import check_vocabulary, token_limits, tokenized_rows
from workbench.data.sources import stream_rows
from workbench.data.templates import identity
from workbench.data.unknown import check_known, unknown_tokens
from workbench.errors import UserError, error_context
from workbench.evaluation.clusters import clusters_line, load_clusters
from workbench.evaluation.prompt_sets import Rows, row_references
from workbench.prompting.shots import ExamplePool, identities, prompt_columns, without_messages
from workbench.prompting.variants import Variant, Wording, identity_template


@dataclass(frozen=True)
class GridSet:
    """A prompt set as every row of the grid reads it."""

    name: str
    source: PromptSet
    rows: dict[str, Rows]
    """The rows of the data with `prompt` and `prompt_ids`, by title of the variant."""
    identities: list[str]
    """What tells the rows of the data apart, whatever the wording."""
    references: list[list[str]]
    too_long: dict[str, int]
    """Rows of the data whose prompt does not fit, by title; none of them is in any variant."""
    clusters: list[str] | None = None
    """The cluster of each row by the set's column `cluster`; None without a column."""


def identities_of(source: DataSource, templates: Collection[str], key: str) -> set[str]:
    """Return what identifies the rows of the source at `key` in each of the templates."""
    plain = dataclasses.replace(source, template=identity_template(templates))
    with error_context(key):
        rows = [identities(without_messages(row), plain, templates) for row in stream_rows(plain)]
    return set[str]().union(*rows)


def load_grid_set(
    config: Config,
    name: str,
    variants: Sequence[Variant],
    pool: ExamplePool,
    tokenizer: PreTrainedTokenizerBase,
    context: Context,
) -> tuple[GridSet, list[str]]:
    """Return the set `name` of evaluation.data in every variant, and lines about its rows.

    A prompt that does not fit in one variant is left out of all, so that all complete the same. Raises UserError if
    none is left.
    """
    assert config.prompting is not None
    key, template = f"evaluation.data.{name}", identity_template(config.prompting.templates.values())
    source = dataclasses.replace(config.evaluation.data[name], template=template)
    with error_context(key):
        limits = {v.title: token_limits(source, v.max_new_tokens(config), context) for v in variants}
        stream, rows_read = map(without_messages, stream_rows(source)), 0
        fitting: list[tuple[Row, dict[str, dict[str, Any]]]] = []
        too_long = dict.fromkeys(limits, 0)
        shortest = dict.fromkeys(limits, 0)
        while chunk := list(islice(stream, source.limit)):
            rows_read += len(chunk)
            if source.limit is not None and len(fitting) >= source.limit:
                continue
            worded = {
                w: word(chunk, source, w, pool, config, tokenizer, context) for w in {v.wording for v in variants}
            }
            for index, row in enumerate(chunk):
                by_title = {v.title: worded[v.wording][index] for v in variants}
                long = [t for t, values in by_title.items() if limits[t].violation(values["prompt_ids"], [])]
                for title in long:
                    tokens = len(by_title[title]["prompt_ids"])
                    shortest[title] = min(shortest[title] or tokens, tokens)
                    too_long[title] += 1
                if not long:
                    fitting.append((row, by_title))
        if not fitting:
            title = max(too_long, key=lambda title: too_long[title])
            raise UserError(
                f"no prompt fits in every row of the grid: {title} makes {too_long[title]} of {rows_read} longer than "
                f"the {limits[title].prompt} tokens that fit (the shortest of them has {shortest[title]}); lower "
                "prompting.shots or max_new_tokens, or shorten the texts"
            )
        fitting = fitting[: source.limit]
        rows = {v.title: [by_title[v.title] for _, by_title in fitting] for v in variants}
        notes = [checked(source, title, prompts, tokenizer, context) for title, prompts in rows.items()]
        references = [row_references(row.values) for row, _ in fitting]
    by_row = [identity(row, source) for row, _ in fitting]
    first_rows = rows[variants[0].title]
    clusters = load_clusters(first_rows, source.cluster, by_row, key)
    grid_set = GridSet(name, config.evaluation.data[name], rows, by_row, references, too_long, clusters)
    counts = {v.wording.title: max(too_long[w.title] for w in variants if w.wording == v.wording) for v in variants}
    text = f"{key}: {source.path} [{source.split}]: {len(fitting)} of {rows_read} rows"
    if any(counts.values()):
        named = ", ".join(f"{count} as {title}" for title, count in counts.items() if count)
        text += f"; prompts that are too long in one wording are left out of all: {named}"
    clustered = clusters_line(first_rows, source.cluster, clusters, key)
    return grid_set, [text, *clustered, *dict.fromkeys(f"{key}: {note}" for note in notes if note)]


def word(
    rows: Sequence[Row],
    source: PromptSet,
    wording: Wording,
    pool: ExamplePool,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    context: Context,
) -> list[dict[str, Any]]:
    """Return the values of each row with its `prompt` and `prompt_ids` in a wording."""
    assert config.prompting is not None
    separator, texts = config.prompting.separator, []
    for row in rows:
        examples = pool.draw(identity(row, source), wording.shots)
        columns = prompt_columns(row, wording, examples, separator, chat=source.chat)
        texts.append(Row(row.location, row.values | columns))
    plain = dataclasses.replace(source, template="continuation", columns={})
    return [values for values, _ in tokenized_rows(texts, plain, tokenizer, context, with_responses=False)]


def checked(
    source: PromptSet, title: str, rows: Rows, tokenizer: PreTrainedTokenizerBase, context: Context
) -> str | None:
    """Return a warning about text of the prompts that the tokenizer does not know, or None.

    Raises UserError for tokens that the model has no embedding for, and for text that is mostly unknown.
    """
    with error_context(title):
        check_vocabulary(source, rows, context.vocabulary)
        unknown = unknown_tokens(tokenizer, rows, with_responses=False)
        check_known(source.path, unknown)
    return str(unknown).removeprefix("; ") or None
