"""Notice that a package or folder of the user's hides one of this project's, which Python itself does not report."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from workbench.config.shipped import PROJECT
from workbench.errors import UserError

PACKAGES = ("recipes", "reward_models")
"""The project's other packages; commands and registered rewards are imported from them by name."""


def check_not_hidden() -> None:
    """Raise UserError if importing one of the project's packages would import something else of that name."""
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None:
            raise UserError(f"{PROJECT}: the package {name} is missing; install the project again")
        location = Path(next(iter(spec.submodule_search_locations or [str(spec.origin)])))
        if location.resolve() != PROJECT / name:
            raise UserError(
                f"{location}: it hides this project's own package {name}; rename it, or run from another folder"
            )
