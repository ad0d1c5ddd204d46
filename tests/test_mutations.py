"""The changes of `make mutate`: each still breaks one place, and is left to tests that are there."""

from __future__ import annotations

from pathlib import Path

from benchmarks.mutations import MUTATIONS

ROOT = Path(__file__).parent.parent


def test_every_mutation_changes_one_place_that_existing_tests_watch() -> None:
    for mutation in MUTATIONS:
        source = (ROOT / "workbench" / mutation.file).read_text(encoding="utf-8")
        assert source.count(mutation.old) == 1, (
            f"{mutation.words}: {mutation.file} has it {source.count(mutation.old)}x"
        )
        file, _, name = mutation.tests.partition("::")
        tests = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {name.partition('[')[0]}" in tests, f"{mutation.words}: {mutation.tests}"


def test_no_two_mutations_have_one_name() -> None:
    names = [mutation.words for mutation in MUTATIONS]
    assert len(set(names)) == len(names)
