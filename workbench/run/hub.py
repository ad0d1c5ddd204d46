"""The model hub: the form of its ids, and whether it can be reached."""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
TIMEOUT_SECONDS = 5.0


def is_hub_id(name: str) -> bool:
    """Return whether `name` has the form NAME or OWNER/NAME; a relative path can have it as well."""
    return HUB_ID.fullmatch(name) is not None


@cache
def hub_is_reachable(name: str, kind: Literal["model", "dataset"]) -> bool:
    """Return whether the hub responds to a question about `name`.

    Where it does not, callers read the cache at once; the libraries would retry for up to a minute.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    request = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        request(name, timeout=TIMEOUT_SECONDS)
    except HfHubHTTPError:  # a response; loading reports what is wrong
        return True
    except Exception:  # the class depends on the HTTP library below the hub client, which changes between versions
        return False
    return True
