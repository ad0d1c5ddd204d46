"""The Hugging Face Hub: the format of its ids, and whether it can be reached."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Literal

from workbench.run.files import missing_path

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
TIMEOUT_SECONDS = 5.0


def is_hub_id(name: str) -> bool:
    """Return whether `name` has the form NAME or OWNER/NAME; a relative path can have it too."""
    return HUB_ID.fullmatch(name) is not None


def unreachable(name: str, kind: Literal["model", "dataset"]) -> str:
    """Return the message for a hub id that is neither cached nor a local path, while the hub cannot be reached."""
    owner = Path(name).parent
    is_like_path = owner != Path() and owner.is_dir()
    missing = missing_path(name) if is_like_path else f"{name}: no such file or folder"
    return (
        f"{missing}; as a hub id: the hub cannot be reached and this {kind} is not cached: use a local path, or "
        "load it once while online"
    )


@cache
def hub_is_reachable(name: str, kind: Literal["model", "dataset"]) -> bool:
    """Return whether the hub responds to a request for `name`.

    If it does not, callers go straight to the cache; the libraries would retry for up to a minute.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    request = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        request(name, timeout=TIMEOUT_SECONDS)
    except HfHubHTTPError:  # the hub did respond; loading reports what is wrong
        return True
    except Exception:  # the exception type depends on the HTTP library that the hub client uses
        return False
    return True
