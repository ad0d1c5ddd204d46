"""The rows of a source as the policy's model will read them."""

from __future__ import annotations

from typing import Any

from workbench.cli import say
from workbench.config import DataSource
from workbench.data import prompts
from workbench.errors import named
from workbench.models import load_config, load_policy_tokenizer, window


def prompt_rows(
    model: str, source: DataSource, *, key: str, max_new_tokens: int, response: bool = False
) -> list[dict[str, Any]]:
    """Rows with prompt and prompt_ids, and with response_ids if asked for, of the source that stands at `key`."""
    tokenizer = load_policy_tokenizer(model)
    limit = window(load_config(model), tokenizer)
    with named(key):
        rows, report = prompts(source, tokenizer, max_new_tokens=max_new_tokens, window=limit, response=response)
    say(f"{key}: {report}")
    return rows
