"""Imports run downwards only, and files and functions keep to their size."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the bottom up; a module may import from its room and from every room below it.
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
    {"prompting", "tuning", "comparison"},
    {"report"},
    {"compare"},
    {"export"},
    {"playground"},
    {"__main__"},
)


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor(module: str) -> int:
    """Return the floor of workbench.<module>."""
    return next(index for index, names in enumerate(FLOORS) if module in names)


WORKBENCH = sorted((ROOT / "workbench").rglob("*.py"))


@pytest.mark.parametrize("path", WORKBENCH, ids=lambda path: str(path.relative_to(ROOT)))
def test_workbench_imports_downwards_and_never_the_recipes_or_rewards(path: Path) -> None:
    names = imports(path)
    assert not [name for name in names if name.split(".")[0] in ("recipes", "reward_models", "benchmarks", "tests")]
    parts = path.relative_to(ROOT / "workbench").with_suffix("").parts
    if parts[0] == "__init__":
        return
    highest = floor(parts[0])
    for name in names:
        module = ".".join(name.split(".")[:2])
        known = name.startswith("workbench.") and any(module == f"workbench.{m}" for names in FLOORS for m in names)
        if known and name.split(".")[1] != parts[0]:
            assert floor(name.split(".")[1]) <= highest, f"{path.name} imports {name} from above"


def test_no_module_imports_itself_through_others() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in WORKBENCH}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph = {
        name: {other for other in imports(path) & modules.keys() if not f"{name}.".startswith(f"{other}.")}
        for name, path in modules.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the cycle


def test_every_module_has_a_floor() -> None:
    rooms = {path.relative_to(ROOT / "workbench").with_suffix("").parts[0] for path in WORKBENCH}
    assert rooms - {"__init__"} == set().union(*FLOORS)


@pytest.mark.parametrize("folder", ["workbench", "recipes", "reward_models", "benchmarks", "tests"])
def test_files_and_functions_keep_their_size(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno <= 80, f"{path}: {node.name}"
