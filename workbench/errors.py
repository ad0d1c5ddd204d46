"""User-facing exceptions.

UserError            invalid input, configuration or environment; exit code 2
└── RewardError      a reward returned something that is not one finite number per completion
Failed               a result that the configuration asked to fail on; exit code 1
Interrupted          a signal stopped the run, and its work is saved; exit code 130
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

MAX_LISTED_NAMES = 30
"""A longer list of valid names takes longer to read than it saves."""
MIN_SIMILARITY = 0.6
"""Two names that have less in common than this (difflib's ratio) are different words, not one word misspelled."""


# Line breaks of any kind; and what controls a terminal, turns the text after it around, or is half
# a character. Texts, names and exceptions come from data and models.
LINE_BREAKS = re.compile("[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+")
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return the text on one line, with an escape such as \\x1b in place of each character that a terminal obeys."""
    return _escaped(LINE_BREAKS.sub(" ", text))


def printable_lines(text: str) -> str:
    """Return the text with its lines and tabs, each line as `printable` returns it."""
    return re.sub(r"[^\n\t]+", lambda match: _escaped(match[0]), text)


def _escaped(text: str) -> str:
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


class UserError(Exception):
    """One line for the user: the value, the limit or the valid choices, and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class RewardError(UserError):
    """A reward broke its contract; the message names the reward, the row, the text and the value."""


class Failed(Exception):
    """The work is done, but the configuration says to fail on this result."""


class Interrupted(Exception):
    """A signal asked the run to stop, and everything needed to resume it is saved."""


def one_line(error: BaseException) -> str:
    """Return a third-party exception's type and message on one line."""
    try:
        message = str(error)
    except Exception as failure:  # a user's exception may have a __str__ that fails
        message = f"(no message: its __str__ raised {type(failure).__name__})"
    return printable(" ".join(f"{type(error).__name__}: {message}".split()))


def shorten(value: Any, limit: int = 60) -> str:
    """Return the value as Python writes it, on one line and truncated to `limit` characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception as failure:  # a user's object may have a __repr__ that fails
        text = f"<{type(value).__name__}, whose __repr__ raised {type(failure).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def suggestion(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return a clause that suggests the valid name closest to `name`, or lists all of them if there are few."""
    names = list(valid)
    closest = difflib.get_close_matches(name, names, n=1, cutoff=MIN_SIMILARITY)
    if closest:
        return f"; did you mean {prefix}{closest[0]}?"
    if 0 < len(names) <= MAX_LISTED_NAMES:
        return f"; available: {', '.join(prefix + valid_name for valid_name in names)}"
    return ""


@contextmanager
def error_context(key: str) -> Iterator[None]:
    """Prefix every UserError raised in the block with a configuration key."""
    try:
        yield
    except RewardError:  # already names the reward
        raise
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
