"""Training rows of several sources, mixed by the share that each further source is to have."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from workbench.config.schema import SFTConfig
from workbench.config.sources import DataSource
from workbench.data.context import Context
from workbench.data.prompts import load_configured_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rows = list[dict[str, Any]]


def load_training_rows(
    sft: SFTConfig, seed: int, tokenizer: PreTrainedTokenizerBase, context: Context
) -> tuple[list[tuple[DataSource, Rows]], list[str]]:
    """Return the sources of SFT, each with the rows to train on, and lines for a plan.

    Of `sft.data` these are all rows that fit, of each source in `sft.more_data` those drawn with the seed. Raises
    UserError, with the key, for a bad row or setting.
    """
    rows_by_source: list[Rows] = []
    lines: list[str] = []
    sources = {"sft.data": sft.data, **{f"sft.more_data[{i}]": source for i, source in enumerate(sft.more_data)}}
    for key, source in sources.items():
        rows, line = load_configured_prompts(
            key, source, tokenizer, max_new_tokens=1, context=context, with_responses=True
        )
        rows_by_source.append(rows)
        lines.append(line)
    main, *further = map(len, rows_by_source)
    shares = [source.share for source in sft.more_data]
    counts = mixed_counts(main, further, shares)
    total = main + sum(counts)
    if counts:
        lines.append(f"sft.data: {main} rows, {percentage(main, total)} of the {total} training rows")
    drawn = [rows_by_source[0]]
    for key, rows, count, share in zip(list(sources)[1:], rows_by_source[1:], counts, shares, strict=True):
        drawn.append(Random(f"{seed}/{key}").sample(rows, count))
        lines.append(mixing_line(key, count, len(rows), total, share))
    return list(zip(sources.values(), drawn, strict=True)), lines


def shuffled_together(rows_by_source: Sequence[Rows], seed: int) -> Rows:
    """Return the rows of all sources, in an order that depends on the seed alone where there are several."""
    rows = [row for rows in rows_by_source for row in rows]
    if len(rows_by_source) > 1:
        Random(f"{seed}/sft.more_data").shuffle(rows)
    return rows


def mixed_counts(main: int, available: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Return how many rows of each further source make up its share beside `main` rows: at least 1, at most all.

    A source that has fewer rows than its share counts with all of them; the others keep their shares of what is then
    the whole.
    """
    exhausted: set[int] = set()
    while True:
        rows = main + sum(available[index] for index in exhausted)
        total = rows / (1 - sum(share for index, share in enumerate(shares) if index not in exhausted))
        counts = [
            available[index] if index in exhausted else max(1, round(share * total))
            for index, share in enumerate(shares)
        ]
        newly = {index for index, count in enumerate(counts) if count > available[index]}
        if not newly:
            return counts
        exhausted |= newly  # the whole shrinks with each of them, so that none of them becomes large enough again


def mixing_line(key: str, count: int, available: int, total: int, share: float) -> str:
    """Return a line of a plan on the rows of a further source, and on a share that it is too small for."""
    fraction = f"{percentage(count, total)} of the {total} training rows"
    if count == available and count < round(share * total):
        return f"{key}: all of its {count} rows, {fraction}, too few for share {share:g}; none is repeated"
    return f"{key}: {count} of its {available} rows drawn, {fraction}"


def percentage(part: int, whole: int) -> str:
    """Return a part of a whole in percent, with one decimal."""
    return f"{100 * part / whole:.1f} %"
