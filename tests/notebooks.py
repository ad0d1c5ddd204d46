"""Run a notebook's cells in this process; commands go to a function of the test, which stands for the shell."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.__main__ import main

Shell = Callable[[list[str]], None]


def check_notebook(file: Path) -> None:
    """Assert that a file is a notebook of the current format without outputs and without paths of a machine."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert re.fullmatch(r"[\w-]{1,64}", cell["id"])
        assert set(cell) - {"execution_count", "outputs"} == {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert not re.search(r"/(?:home|root|tmp|work|content)\b", file.read_text(encoding="utf-8"))


def make_shell(commands: list[list[str]], further: dict[str, list[str]]) -> Shell:
    """Return a shell that notes the commands, and runs those of the workbench, which must succeed."""

    def shell(words: list[str]) -> None:
        commands.append(words)
        if words[0] == "workbench":
            sys.modules.pop(f"recipes.{words[1]}", None)  # as in a process of its own
            sys.argv = [*words, *further.get(words[1], [])]
            with pytest.raises(SystemExit) as leaving:
                main()
            assert leaving.value.code == 0, words

    return shell


def read_cells(path: Path, kind: str = "code") -> dict[str, str]:
    """Return the sources of a notebook's cells by id."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind}


def run_cells(cells: dict[str, str], shell: Shell) -> tuple[dict[str, Any], list[str]]:
    """Run the cells in order; return the notebook's variables and the HTML that it displayed."""
    displayed: list[str] = []
    display = types.ModuleType("IPython.display")
    vars(display).update(HTML=str, display=displayed.append)
    sys.modules |= {"IPython": types.ModuleType("IPython"), "IPython.display": display}
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for name, source in cells.items():
        if source.startswith("%%writefile "):
            head, _, text = source.partition("\n")
            Path(head.split()[1]).write_text(text, encoding="utf-8")
        elif source.startswith(("!", "%")):
            for line in source.splitlines():
                shell(shlex.split(line[1:].format(**namespace)))
        else:
            exec(compile(source, name, "exec"), namespace)
    return namespace, displayed
