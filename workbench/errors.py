"""The errors a user can meet.

UserError            a mistake in input, configuration or environment; exit code 2
└── RewardError      a reward returned something that is not one finite number per completion
Failed               a result that the configuration asked to fail on; exit code 1
Interrupted          a stop asked for by a signal, after the work was saved; exit code 130
"""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """One line for the user: the value, the limit or the valid choices, and the fix."""


class RewardError(UserError):
    """A reward broke its contract; the message names the reward, the row, the text and the value."""


class Failed(Exception):
    """The work is done, and its result is one that the configuration asked to fail on."""


class Interrupted(Exception):
    """A signal asked the run to stop and everything needed to go on has been saved."""


def one_line(error: Exception) -> str:
    """The kind of an exception of somebody else's code and what it says, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def error_context(key: str) -> Iterator[None]:
    """Put the configuration's key in front of what a UserError says."""
    try:
        yield
    except RewardError:
        raise
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
