"""Imports go downwards only, and the project stays within its own bounds."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the ground up; a module may import its own room and every room below it.
FLOORS = (
    {"errors"},
    {"config"},
    {"run"},
    {"toy"},
    {"data"},
    {"models"},
    {"sft"},
    {"rewards"},
    {"ppo"},
    {"evaluation"},
    {"report"},
    {"export"},
)


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor(module: str) -> int:
    """The floor of workbench.<module>."""
    return next(index for index, names in enumerate(FLOORS) if module in names)


WORKBENCH = sorted((ROOT / "workbench").rglob("*.py"))


@pytest.mark.parametrize("path", WORKBENCH, ids=lambda path: str(path.relative_to(ROOT)))
def test_workbench_imports_downwards_and_never_the_recipes_or_rewards(path: Path) -> None:
    names = imports(path)
    assert not [name for name in names if name.split(".")[0] in ("recipes", "reward_models", "benchmarks", "tests")]
    parts = path.relative_to(ROOT / "workbench").with_suffix("").parts
    if parts[0] == "__init__":
        return
    own = floor(parts[0])
    for name in names:
        module = ".".join(name.split(".")[:2])
        known = name.startswith("workbench.") and any(module == f"workbench.{m}" for names in FLOORS for m in names)
        if known and name.split(".")[1] != parts[0]:
            assert floor(name.split(".")[1]) <= own, f"{path.name} imports {name} from above"


def test_no_module_imports_itself_around_a_corner() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in WORKBENCH}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {
        name: {
            of for of in imports(path) & modules.keys() if not f"{name}.".startswith(f"{of}.")
        }  # not its own package
        for name, path in modules.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the way around


def test_every_module_has_a_floor() -> None:
    modules = {path.stem for path in (ROOT / "workbench").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules - {"__init__", "__pycache__"} == set().union(*FLOORS)


@pytest.mark.parametrize("folder", ["workbench", "recipes", "reward_models", "benchmarks", "tests"])
def test_files_and_functions_keep_their_size(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno <= 80, f"{path}: {node.name}"
