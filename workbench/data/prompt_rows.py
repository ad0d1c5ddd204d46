"""The rows of a source as the policy's model will read them."""

from __future__ import annotations

from typing import Any

from workbench.config.schema import DataSource
from workbench.data.prompts import prompts
from workbench.errors import error_context
from workbench.models.loading import load_config, load_policy_tokenizer, window
from workbench.run.distributed import print_once


def prompt_rows(
    model: str, source: DataSource, *, key: str, max_new_tokens: int, response: bool = False
) -> list[dict[str, Any]]:
    """Rows with prompt and prompt_ids, and with response_ids if asked for, of the source that stands at `key`."""
    tokenizer = load_policy_tokenizer(model)
    limit = window(load_config(model), tokenizer)
    with error_context(key):
        rows, report = prompts(source, tokenizer, max_new_tokens=max_new_tokens, window=limit, response=response)
    print_once(f"{key}: {report}")
    return rows
