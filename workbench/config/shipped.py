"""The configurations that ship with the project: `--config NAME` finds them from any folder."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import UserError, shorten, suggestion

PROJECT = Path(__file__).resolve().parent.parent.parent
"""The folder of this project's packages: the checkout, or site-packages."""
CONFIGS = PROJECT / "recipes" / "configs"


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configurations by name."""
    return {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """Return the file at the path `name`, else the shipped configuration of that name.

    Raises UserError for a name that is neither, with the closest one, or all that are shipped.
    """
    file, shipped = Path(name), shipped_configs()
    try:
        if file.is_file():
            return file
    except OSError as error:  # a folder that may not be searched, or a name that is too long
        raise UserError(f"--config {shorten(name)}: cannot be read: {error.strerror}") from error
    if name in shipped:
        return shipped[name]
    if (CONFIGS / f"{name}.yaml").is_file():  # of a folder, as hardware/t4
        return CONFIGS / f"{name}.yaml"
    if file.is_dir():
        raise UserError(f"--config {name}: a folder; name a YAML file")
    if file.stem in shipped:
        raise UserError(f"--config {name}: no such file; did you mean {file.stem}, which is shipped?")
    siblings = sorted(map(str, file.parent.glob("[!.]*.yaml"))) if file.parent.is_dir() else []
    hint = suggestion(name, [*siblings, *shipped]) or suggestion(name, shipped)
    raise UserError(f"--config {name}: no such file, and no shipped configuration of that name{hint}")
