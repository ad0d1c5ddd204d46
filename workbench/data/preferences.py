"""Chosen and rejected responses to prompts, as the policy reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.config.sources import DataSource
from workbench.data.context import Context
from workbench.data.formats import Row
from workbench.data.prompts import encode_responses, token_limits
from workbench.data.templates import normalize, text_column
from workbench.errors import UserError, error_context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAIR = ("chosen", "rejected")


def paired_rows(
    key: str,
    rows: list[dict[str, Any]],
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    context: Context,
) -> tuple[list[dict[str, Any]], str]:
    """Return the rows with `chosen_ids` and `rejected_ids`, each ending in one EOS, and a line for the plan.

    Rows of two equal responses, and rows with a response that does not fit, are left out and counted. Raises UserError
    for a row without its two responses, and where no pair is left.
    """
    with error_context(key):
        texts = {name: [text_column(Row(source.path, row), name) for row in rows] for name in PAIR}
        ids = {name: encode_responses(rows, texts[name], source, tokenizer, context) for name in PAIR}
        limits = token_limits(source, max_new_tokens, context)
        pairs, equal, too_long = [], 0, 0
        for index, row in enumerate(rows):
            chosen, rejected = (ids[name][index] for name in PAIR)
            if normalize(texts["chosen"][index]) == normalize(texts["rejected"][index]):
                equal += 1
            elif any(limits.violation(row["prompt_ids"], response) for response in (chosen, rejected)):
                too_long += 1
            else:
                pairs.append(row | {"chosen_ids": chosen, "rejected_ids": rejected})
        if not pairs:
            raise UserError(
                f"{source.path}: no pair of {len(rows)} is left: {equal} have chosen == rejected, and {too_long} a "
                "response that is too long"
            )
    notes = [f", {count} left out ({why})" for count, why in ((equal, "equal"), (too_long, "too long")) if count]
    return pairs, f"{key}: {len(pairs)} pairs of a chosen and a rejected response{''.join(notes)}"
