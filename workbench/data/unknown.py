"""Text that a tokenizer has no tokens for: the model reads, or learns to write, its unknown token instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_UNKNOWN_RATE = 0.5
"""Of the characters that are not whitespace; above it the model reads mostly the unknown token."""
MAX_LISTED_CHARACTERS = 12


@dataclass
class UnknownTokens:
    """What a tokenizer does not know of the prompts and responses of a source."""

    rows: int = 0
    """Rows with an unknown token, or with a line break that is lost."""
    tokens: dict[str, int] = field(default_factory=dict)
    """The number of unknown tokens in prompts and in responses."""
    characters: Counter[str] = field(default_factory=Counter)
    """The characters that are lost."""
    length: int = 0
    """The number of characters in all rows, without whitespace."""

    def __str__(self) -> str:
        if not self.rows:
            return ""
        counts = [f"{count} in {kind}" for kind, count in self.tokens.items() if count]
        unknown = f"the tokenizer has no token for some text of {self.rows} rows"
        counted = f" ({' and '.join(counts)} read as unknown)" if counts else ""
        return f"; warning: {unknown}{counted}: {listed(self.characters)}"


def unknown_tokens(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], *, with_responses: bool
) -> UnknownTokens:
    """Return what the tokenizer does not know of the rows' prompts, and optionally of their responses."""
    kinds = ("prompt", "response") if with_responses else ("prompt",)
    result = UnknownTokens(tokens={f"{kind}s": 0 for kind in kinds})
    unknown = unknown_id(tokenizer)
    loses_breaks = not keeps_line_breaks(tokenizer)
    for row in rows:
        is_affected = False
        for kind in kinds:
            text, ids = row[kind], row[f"{kind}_ids"]
            result.length += len("".join(text.split()))
            if unknown is not None and unknown in ids:
                is_affected = True
                result.tokens[f"{kind}s"] += ids.count(unknown)
                result.characters.update(lost_characters(tokenizer, text, unknown))
            if loses_breaks and "\n" in text:
                is_affected = True
                result.characters["\n"] += text.count("\n")
        result.rows += is_affected
    return result


def check_known(path: str, unknown: UnknownTokens) -> None:
    """Raise UserError, with the characters, for texts most of which the tokenizer does not know."""
    lost = sum(count for character, count in unknown.characters.items() if not character.isspace())
    if lost > MAX_UNKNOWN_RATE * unknown.length:
        raise UserError(
            f"{path}: the tokenizer has no token for {lost / unknown.length:.0%} of the characters "
            f"({listed(unknown.characters)}), so the model would read its unknown token instead; use a model that was "
            "trained on such text"
        )


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the unknown token; None for a tokenizer whose unknown token is another one by a second name."""
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return None if tokenizer.unk_token_id in others else tokenizer.unk_token_id


def keeps_line_breaks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer tells a line break from a space; T5's does not."""
    spaced, broken = tokenizer(["a a", "a\na"], add_special_tokens=False)["input_ids"]
    return bool(spaced != broken)


def lost_characters(tokenizer: PreTrainedTokenizerBase, text: str, unknown: int) -> str:
    """Return the characters of a text that become the unknown token, with repetitions."""
    if not tokenizer.is_fast:  # only the others say which characters a token stands for
        return "".join(
            character for character in text if unknown in tokenizer(character, add_special_tokens=False)["input_ids"]
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return "".join("".join(text[start:end].split()) for token, (start, end) in spans if token == unknown)


def listed(characters: Counter[str]) -> str:
    """Return the most frequent characters, as Python writes them."""
    common = [repr(character) for character, _ in characters.most_common(MAX_LISTED_CHARACTERS)]
    return ", ".join(common) + (", ..." if len(characters) > MAX_LISTED_CHARACTERS else "")
