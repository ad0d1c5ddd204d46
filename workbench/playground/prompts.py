"""How a typed text becomes a prompt, as PPO renders its rows, and the evaluation's prompts as examples."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from workbench.config.names import EVALUATION
from workbench.config.schema import Config
from workbench.config.sources import DataSource
from workbench.data.context import Context
from workbench.data.encoding import encode_prompts
from workbench.data.formats import Row
from workbench.data.prompts import token_limits, tokenized_rows
from workbench.data.sources import stream_rows
from workbench.data.templates import FIELD, require_text, template_text
from workbench.errors import UserError, error_context, one_line
from workbench.playground.settings import check_prompt
from workbench.run.files import read_json_lines
from workbench.run.folder import Run

MAX_EXAMPLES = 8


@dataclass(frozen=True)
class PromptFormat:
    """How the rows of one of the run's data sources become prompts."""

    key: str
    """The configuration key of the source."""
    source: DataSource
    has_messages: bool
    """Whether its rows are conversations, to which no template applies."""

    @cached_property
    def fields(self) -> list[str]:
        """The names of the template's fields, each once."""
        return list(dict.fromkeys(FIELD.findall(template_text(self.source.template))))

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer's chat template is applied; it adds the special tokens itself."""
        return self.source.chat or self.has_messages

    @property
    def takes_text(self) -> bool:
        """Whether one text is enough to render a prompt."""
        return self.has_messages or len(self.fields) == 1


@dataclass(frozen=True)
class ExamplePrompt:
    """A prompt of the evaluation."""

    set: str
    index: int
    text: str
    """What to type: the text for the template, or the whole prompt."""
    is_raw: bool
    """Whether `text` is the whole prompt, because it does not fit the run's template."""


def prompt_format(config: Config, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """Return the format of PPO's prompts, else that of SFT's, else that of the evaluation's first set."""
    if config.ppo is not None:
        key, source = "ppo.data", config.ppo.data
    elif config.sft is not None:
        key, source = "sft.data", config.sft.data
    else:
        name, source = next(iter(config.evaluation.data.items()))
        key = f"evaluation.data.{name}"
    return PromptFormat(key, source, _has_messages(key, source, tokenizer))


def make_row(
    text: str, prompt_format: PromptFormat, tokenizer: PreTrainedTokenizerBase, context: Context, *, raw: bool
) -> dict[str, Any]:
    """Return a row with `prompt` and `prompt_ids` for a typed text, which is the whole prompt if `raw`.

    Raises UserError for a text without content, and for a template that needs more than one text.
    """
    check_prompt(text)
    require_text(text, "prompt")
    if raw:
        prompt_ids = encode_prompts(tokenizer, [text], context, chat=prompt_format.is_chat)[0]
        if not prompt_ids:
            raise UserError("prompt: it has no tokens; type a text")
        return {"prompt": text, "prompt_ids": prompt_ids}
    if not prompt_format.takes_text:
        raise UserError(
            f"prompt: the template of {prompt_format.key} has the fields {', '.join(prompt_format.fields)}, which one "
            "text cannot fill; type the whole prompt, as a raw prompt (--raw)"
        )
    if prompt_format.has_messages:
        values: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
    else:
        values = {prompt_format.fields[0]: text}
    rows = tokenized_rows([Row("prompt", values)], prompt_format.source, tokenizer, context, with_responses=False)
    return next(rows)[0]


def check_length(row: dict[str, Any], source: DataSource, context: Context, max_new_tokens: int) -> None:
    """Raise UserError for a prompt that, with a completion of a decoder, exceeds the model's context length."""
    unlimited = dataclasses.replace(source, max_prompt_tokens=None)
    most = token_limits(unlimited, max_new_tokens, context).prompt
    length = len(row["prompt_ids"])
    if most is not None and length > most:
        completion = f" and max_new_tokens {max_new_tokens}" if context.is_decoder_only else ""
        raise UserError(
            f"prompt: {length} tokens, but the model's context length of {context.length} tokens{completion} allows "
            f"{most}; shorten it"
        )


def read_examples(run: Run, prompt_format: PromptFormat) -> list[ExamplePrompt]:
    """Return a few prompts of each set of the run's evaluation; none where it is not finished."""
    file = run.folder / EVALUATION / "completions.jsonl"
    if not run.finished(EVALUATION) or not file.is_file():
        return []
    try:
        rows = read_json_lines(file)
        prompts = [(str(row["set"]), int(row["index"]), str(row["prompt"])) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}; redo it with --force evaluation") from error
    per_set = max(1, MAX_EXAMPLES // max(1, len({name for name, _, _ in prompts})))
    examples = []
    for name, index, prompt in prompts:
        if index < per_set:
            text = typed_text(prompt, prompt_format)
            examples.append(ExamplePrompt(name, index, prompt if text is None else text, text is None))
    return examples[:MAX_EXAMPLES]


def typed_text(prompt: str, prompt_format: PromptFormat) -> str | None:
    """Return the text that the template renders as this prompt; None where there is none."""
    parts = FIELD.split(template_text(prompt_format.source.template))
    if prompt_format.is_chat or len(parts) != 3:
        return None
    before, after = parts[0], parts[2].rstrip(" ")  # a prompt loses the spaces at the end of its template
    if not (prompt.startswith(before) and prompt.endswith(after)):
        return None
    text = prompt[len(before) : len(prompt) - len(after)]
    return text if text.strip() else None


def _has_messages(key: str, source: DataSource, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the source's rows are conversations; it is read only where the configuration does not say."""
    if source.chat or source.template != "continuation" or "prompt" in source.columns or not tokenizer.chat_template:
        return False
    with error_context(key):
        return "messages" in next(stream_rows(source)).values
