"""One thing has one name, and it is the field's: the worst habits stay out of code and of what people read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted(path for room in ("workbench", "recipes", "reward_models") for path in (ROOT / room).rglob("*.py"))
READ = [
    *CODE,
    *(ROOT / "workbench" / "report").glob("*.js"),
    *(ROOT / "recipes" / "configs").glob("*.yaml"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "recipes/accelerate_config.yaml")),
]

# Variables that name nothing.
EMPTY_NAMES = {"found", "of", "given", "kept", "wanted", "shown", "said", "place", "own"}
# Identifiers whose better name is in the glossary of CONTRIBUTING.md or in the code.
IDENTIFIERS = (
    *(
        "paid_scores",
        "rate_fraction",
        "Counters",
        "or_save",
        "wanted_label",
        "leave_with",
        "calm_libraries",
        "only_one",
    ),
    *("shape_rewards", "next_kl_coef", "SHORTEST", "EMPTIER", "CUT_MORE", "LEAST", "TELLING", "TAKEN", "WHEREABOUTS"),
    *("COLDEST", "HOTTEST", "without_dropout", "keep_differentiable", "head_passing_through", "head_inputs"),
    *("shapes_of", "pages_optimizer", "neutralise_generation", "base_nats", "contenders", "contender", "parting"),
)
# Phrases that no ML engineer writes; left, what to write instead.
PHRASES = {
    "already finished, skipping": "finished before, skipped",
    "resuming from": "going on from",
    "reusing cached completions": "answers of before",
    "corrupt": "is torn",
    "is not": r"is no (?:judge|share|number|such)",
    "rewarded for": r"paid for|pays? (?:PPO|for)",
    "toxic rate": "toxic share",
    "empty rate": "empty share",
    "nats per token": r"nats? an? (?:token|response|answer)",
    "regularized towards the SFT policy": "SFT self",
    "No prompts match. Clear a filter.": "No prompt fits",
    "Provenance": "Where this comes from",
    "mildly rude": "mild words",
    "interleaved": r"\bin turns\b(?!\))",
    "completion or response": r"\banswers?\b(?! (?:to|at once|within|a request|with a status))",
}


def stored_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield every name that is assigned, looped over or taken as a parameter, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_says_what_it_holds(path: Path) -> None:
    empty = [
        f"{path.name}:{line}: {name}" for name, line in stored_names(ast.parse(path.read_text())) if name in EMPTY_NAMES
    ]
    assert not empty


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_identifiers_are_the_fields_terms(path: Path) -> None:
    if path.name == "renamed.py":
        return  # it names what older versions had
    words = set(re.findall(r"\w+", path.read_text()))
    assert not words & set(IDENTIFIERS)


@pytest.mark.parametrize("path", READ, ids=lambda path: str(path.relative_to(ROOT)))
def test_sentences_are_those_of_a_native_engineer(path: Path) -> None:
    text = path.read_text()
    hits = [
        f"{path.name}:{text[: match.start()].count(chr(10)) + 1}: {match[0]!r}, better {better!r}"
        for better, worse in PHRASES.items()
        for match in re.finditer(worse, text)
    ]
    assert not hits, "\n".join(hits)
