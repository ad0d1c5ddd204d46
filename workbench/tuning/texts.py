"""How well a model predicts texts that it was not tuned to.

Shapes: N texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from workbench.config.sources import DataSource
from workbench.data.context import Context
from workbench.data.formats import Row
from workbench.data.prompts import TokenLimits, tokenized_rows
from workbench.data.sources import first_rows
from workbench.data.templates import text_column
from workbench.errors import UserError, error_context
from workbench.models.policy import Policy


@dataclass(frozen=True)
class TextSet:
    """Texts as a model reads them: the first half as the prompt, the second as the response."""

    name: str
    rows: list[dict[str, Any]]


def load_texts(
    name: str, source: DataSource, tokenizer: PreTrainedTokenizerBase, context: Context
) -> tuple[TextSet, str]:
    """Return the texts of `tuning.texts` under a name, and a line for the plan; raises UserError if none fits."""
    key = f"tuning.texts.{name}"
    with error_context(key):
        halves = [halved(row) for row in first_rows(source)]
        source = DataSource(source.path, split=source.split, template="continuation")
        values = [row for row, _ in tokenized_rows(halves, source, tokenizer, context, with_responses=True)]
        total = context.length if context.is_decoder_only else None
        limits = TokenLimits(context.length, context.response_length, total)
        rows = [row for row in values if limits.violation(row["prompt_ids"], row["response_ids"]) is None]
        if not rows:
            raise UserError(f"{source.path}: none of the {len(values)} texts fits into the context; use shorter texts")
    dropped = f", {len(values) - len(rows)} are too long" if len(rows) < len(values) else ""
    return TextSet(name, rows), f"{key}: {source.path} [{source.split}]: {len(rows)} texts{dropped}"


def halved(row: Row) -> Row:
    """Return a row with the first half of its text's words as `prompt` and the rest as `response`."""
    words = text_column(row, "text").split()
    if len(words) < 2:
        raise UserError(f"{row.location}: text has a single word, which has no second half; leave the row out")
    middle = len(words) // 2
    return Row(row.location, {"prompt": " ".join(words[:middle]), "response": " " + " ".join(words[middle:])})


def nats_per_token(policy: Policy, variant: str, rows: Sequence[dict[str, Any]], batch_size: int) -> list[float]:
    """Return for each of N texts the mean negative log-likelihood of the tokens of its second half, in nats.

    The EOS behind it is left out: whether a model ends there is what it was taught, not how well it knows the text.
    """
    values: list[float] = []
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        batch = policy.make_batch([row["prompt_ids"] for row in part], [row["response_ids"] for row in part])
        ends = batch.response_mask.sum(dim=1, keepdim=True) - 1
        logprobs = policy.logprobs(variant, batch, 1.0).scatter(1, ends, 0.0)
        values += (-logprobs.sum(dim=1) / ends.squeeze(1)).tolist()
    return values
