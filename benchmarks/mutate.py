"""Break one line at a time in a copy of the tree, and check that a test fails (`make mutate`)."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600


class Result(NamedTuple):
    """Whether a mutation was caught."""

    mutation: Mutation
    caught: bool
    by: str  # the first test that failed, or the reason why there is none


def main() -> int:
    """Try every mutation, print the table, and return 1 if one survives or does not apply."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="store the result as Markdown")
    parser.add_argument("--only", default="", metavar="WORDS", help="only mutations whose words or file contain this")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if arguments.only in f"{m.words} {m.file}"]
    commit = described_commit()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy_tree(tree)
        preload()
        tests = list(dict.fromkeys(test for m in chosen for test in m.tests.split()))
        status, failed = run_tests(tree, tests)
        if status != 0:
            print(f"the tests must pass before anything is broken: {failed}", file=sys.stderr)
            return 1
        results = []
        for mutation in chosen:
            result = attempt(tree, mutation)
            results.append(result)
            print(f"{'caught  ' if result.caught else 'SURVIVED'} | {mutation.words} | {result.by}", flush=True)
    caught = sum(result.caught for result in results)
    print(f"{caught} of {len(results)} caught")
    if arguments.write:
        arguments.write.write_text(markdown(results, commit), encoding="utf-8")
    return 0 if caught == len(results) else 1


def copy_tree(tree: Path) -> None:
    """Copy what git tracks or would track."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def attempt(tree: Path, mutation: Mutation) -> Result:
    """Break the file, run its tests and restore it."""
    path = tree / "workbench" / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        return Result(mutation, False, f"{mutation.old!r} occurs {text.count(mutation.old)} times in {mutation.file}")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        status, failed = run_tests(tree, mutation.tests.split())
    finally:
        path.write_text(text, encoding="utf-8")
    return Result(mutation, status == 1, failed)


def run_tests(tree: Path, tests: list[str]) -> tuple[int, str]:
    """Return the exit status of pytest, 1 where a test failed, and the first test that did."""
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(output.fileno(), stream.fileno())
            os.chdir(tree)
            sys.path[0] = str(tree)
            sys.dont_write_bytecode = True  # a file restored within the same second must not run its broken bytecode
            signal.alarm(SECONDS)
            options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
            status = pytest.main([*options, *(f"tests/{test}" for test in tests)])
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        text = output.read()
    failure = re.search(r"^FAILED (.+?)(?: - |$)", text, flags=re.MULTILINE)
    if status == 0:
        return 0, "no test"
    return status, failure[1] if failure else f"exit {status}: {text.strip().splitlines()[-1:]}"


def preload() -> None:
    """Import the packages that the tests need once, so that a forked run starts at once."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    for name in ("accelerate", "peft", "transformers.models.gpt2.modeling_gpt2", "transformers.models.t5.modeling_t5"):
        importlib.import_module(name)


def described_commit() -> str:
    """Return the commit of the tree, marked if it has changes."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=8"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout.strip()


def markdown(results: list[Result], commit: str) -> str:
    """Return the table with its commit and date."""
    rows = [f"| {r.mutation.words} | `workbench/{r.mutation.file}` | `{r.by}` |\n" for r in results]
    return (
        "# Mutations\n\n`make mutate` applies one bug at a time to a copy of the source and checks that a test fails. "
        f"Last run:\ncommit {commit}, {datetime.date.today()}: {sum(r.caught for r in results)} of {len(results)} "
        f"caught.\n\n| bug | file | first test that failed |\n|---|---|---|\n{''.join(rows)}"
    )


if __name__ == "__main__":
    sys.exit(main())
