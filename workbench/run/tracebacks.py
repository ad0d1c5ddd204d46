"""Where a user's own code raised an error, and its traceback in a file."""

from __future__ import annotations

import sysconfig
import traceback
from contextlib import suppress
from pathlib import Path

from workbench.config.shipped import PROJECT
from workbench.errors import UserError
from workbench.run.files import write_text

FILE = "traceback.txt"
# Frames in these folders are not the user's own code.
FOREIGN = (
    *(Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib")),
    *(PROJECT / package for package in ("workbench", "recipes", "reward_models")),
)


def with_location(error: UserError, run_folder: Path | None) -> UserError:
    """Return the error with the file and line of the user's own code that raised it, if there is any.

    With a run folder, the whole traceback goes to FILE there.
    """
    cause = original(error)
    frames = [] if cause is None else traceback.extract_tb(cause.__traceback__)
    own_frames = [frame for frame in frames if is_own(Path(frame.filename))]
    if cause is None or not own_frames:
        return error
    line = f"{error} ({own_frames[-1].filename}, line {own_frames[-1].lineno})"
    if run_folder is not None and run_folder.is_dir():
        file = run_folder / FILE
        with suppress(UserError):  # a full disk must not hide the error itself
            write_text(file, "".join(traceback.format_exception(cause)))
            line += f"; traceback: {file}"
    return UserError(line)


def remove_traceback(run_folder: Path) -> None:
    """Remove the traceback of an earlier failure, if there is one."""
    (run_folder / FILE).unlink(missing_ok=True)


def is_own(file: Path) -> bool:
    """Return whether a file is the user's own rather than a library's or this project's."""
    is_library = {"site-packages", "dist-packages"} & set(file.parts) or file.name.startswith("<")
    return not is_library and not any(file.is_relative_to(folder) for folder in FOREIGN)


def original(error: UserError) -> BaseException | None:
    """Return the error that was turned into a UserError; None if there was none."""
    cause: BaseException | None = error
    while isinstance(cause, UserError):
        cause = cause.__cause__
    return cause
