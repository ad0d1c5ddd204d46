"""How a row becomes a prompt and a response: templates with {column} fields, and chat templates."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workbench.config.sources import DataSource
from workbench.data.formats import Row
from workbench.errors import UserError, shorten, suggestion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = {
    "dialogue_summary": "Summarize the following conversation.\n\n{dialogue}\n\nSummary: ",
    "instruction": (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n"
    ),
    "instruction_with_input": (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    ),
    "bare_instruction": "{instruction}",
    "bare_instruction_with_input": "{instruction}\n\n{input}",
    "continuation": "{prompt}",
}
# What a template becomes for a row that has an input.
WITH_INPUT = {name: f"{name}_with_input" for name in ("instruction", "bare_instruction")}
PROMPT_MESSAGES = "prompt_messages"
"""The column with the messages that a chat template made the prompt from."""
_MISSING = object()
FIELD = re.compile(r"\{(\w+)\}")


def template_text(template: str) -> str:
    """Return the text of a template given by name or in full; raises UserError for an unknown name."""
    if template in TEMPLATES:
        return TEMPLATES[template]
    if FIELD.search(template):
        return template
    if not re.fullmatch(r"\w+", template):
        raise UserError(
            f"template: {shorten(template)} has no {{column}} field, so all prompts would be equal; add one"
        )
    raise UserError(
        f"template: unknown name {template!r}{suggestion(template, TEMPLATES)} (or use text with {{column}} fields)"
    )


def column(row: Row, name: str) -> Any:
    """Return the value of a column, or of its field a.b; raises UserError with the columns and how to map one."""
    value = _find(row.values, name)
    if value is not _MISSING:
        return value
    in_file = [known for known in row.values if known not in row.mapped]
    head = f"{row.location}: no column {name!r}; the columns are {', '.join(in_file)}"
    misspelled = difflib.get_close_matches(name, row.mapped, n=1)
    if misspelled:
        raise UserError(f"{head}; columns maps one to {misspelled[0]}; call it {name} there")
    closest = difflib.get_close_matches(name, in_file, n=1)
    raise UserError(f"{head}; map the right one with columns: {{{name}: {closest[0] if closest else '...'}}}")


def file_column(row: Row, name: str, in_file: str) -> Any:
    """Return the value of the column that `columns` maps to `name`; raises UserError if the file lacks it."""
    value = _find(row.values, in_file)
    if value is _MISSING:
        closest = difflib.get_close_matches(in_file, row.values, n=1)
        hint = f"; did you mean {{{name}: {closest[0]}}}?" if closest else ""
        raise UserError(
            f"columns: {{{name}: {in_file}}}: {row.location} has no column {in_file!r}; "
            f"the columns are {', '.join(row.values)}{hint}"
        )
    return value


def _find(values: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, or of its field a.b; _MISSING if there is none."""
    if name in values:
        return values[name]
    head, _, rest = name.partition(".")
    return _find(values[head], rest) if rest and isinstance(values.get(head), dict) else _MISSING


def text_column(row: Row, name: str) -> str:
    """Return the text of a column; raises UserError if it is missing, not text, or empty."""
    return require_text(column(row, name), f"{row.location}: {name}")


def require_text(value: Any, where: str) -> str:
    """Return `value` if it is encodable text that is not blank; raises UserError that begins with `where` if not."""
    if value is None:
        raise UserError(f"{where} is missing; every row needs a non-empty string in this column")
    if not isinstance(value, str):
        raise UserError(f"{where} must be a string, found {shorten(value)} ({type(value).__name__})")
    if not value.strip():
        raise UserError(f"{where} is empty; every row needs a non-empty string in this column")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} contains a lone surrogate: {shorten(value)}; write the whole character") from error
    return value


def normalize(text: str) -> str:
    """Return the text in lower case with single spaces, the form in which splits and duplicates are compared."""
    return " ".join(text.lower().split())


def prompt_template(row: Row, template: str) -> tuple[str, list[str]]:
    """Return the template text for this row and the names of its fields, each once."""
    if template in WITH_INPUT and normalize(str(row.values.get("input") or "")):
        template = WITH_INPUT[template]
    text = template_text(template)
    return text, list(dict.fromkeys(FIELD.findall(text)))


def render(row: Row, template: str) -> str:
    """Return the template with the row's columns filled in; raises UserError for a missing or empty column."""
    text, names = prompt_template(row, template)
    values = {name: text_column(row, name) for name in names}
    return FIELD.sub(lambda match: values[match[1]], text)


def split_messages(row: Row) -> tuple[list[dict[str, Any]], str | None]:
    """Return the turns of `messages` that make up the prompt, and the final assistant turn or None."""
    messages = column(row, "messages")
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{row.location}: messages must be a list of turns, found {shorten(messages)}")
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise UserError(f"{row.location}: turn {number} of messages needs role and content, found {shorten(turn)}")
        require_text(turn.get("content"), f"{row.location}: the content of turn {number} of messages")
    if messages[-1]["role"] != "assistant":
        return messages, None
    if len(messages) == 1:
        raise UserError(f"{row.location}: messages has no turn before the assistant's")
    return messages[:-1], messages[-1]["content"]


def apply_chat_template(row: Row, messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Render `messages` with the tokenizer's chat template, up to the start of the assistant's turn."""
    if tokenizer.chat_template is None:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template, which chat: true and a messages column "
            "need; use a chat model, or chat: false and a template"
        )
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise UserError(f"{row.location}: the chat template rejects these turns: {error}") from error


def chat_messages(row: Row, source: DataSource) -> list[dict[str, Any]]:
    """Return the turns that the chat template makes the row's prompt from."""
    if "messages" in row.values:
        return split_messages(row)[0]
    return [{"role": "user", "content": render(row, source.template)}]


def prompt_and_response(
    row: Row,
    source: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool,
    with_response: bool,
    is_decoder_only: bool,
) -> tuple[str, str]:
    """Return the prompt and the response of a row; the response is empty unless `with_response`."""
    if chat and "messages" in row.values:
        messages, response = split_messages(row)
        if with_response and response is None:
            raise UserError(f"{row.location}: the last turn is {messages[-1]['role']!r}; training needs 'assistant'")
        return apply_chat_template(row, messages, tokenizer), (response or "") if with_response else ""
    if chat:
        prompt = apply_chat_template(row, chat_messages(row, source), tokenizer)
        return prompt, text_column(row, "response") if with_response else ""
    prompt = render(row, source.template)
    response = text_column(row, "response") if with_response else ""
    # Subword tokenizers merge a space into the word after it, so a prompt that ends in a space would be followed by
    # tokens that occur in no text. The space moves to the response: both training and generation see "Summary:" and
    # then " Tom".
    stripped = prompt.rstrip(" ")
    if is_decoder_only and response and stripped != prompt:
        response = prepend_space(response)
    return stripped, response


def prepend_space(response: str) -> str:
    """Return the response with the space stripped from the prompt, unless it already begins with whitespace."""
    return response if not response or response[0].isspace() else " " + response


def identity(row: Row, source: DataSource) -> str:
    """Return the text that decides a row's split: its prompt columns, regardless of the template's wording."""
    if "messages" in row.values:
        return normalize("\n".join(f"{turn['role']}: {turn['content']}" for turn in split_messages(row)[0]))
    names = prompt_template(row, source.template)[1]
    if "text" in row.values and not set(names) <= set(row.values):
        names = ["text"]
    return normalize("\n".join(text_column(row, name) for name in sorted(names)))
