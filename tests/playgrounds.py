"""A run for the tests of the playground, results made by hand, and the page on a server in another process."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from child_processes import end, fork
from small_runs import CHAIN, small

from workbench.evaluation.generation import Completion
from workbench.evaluation.results import REWARD, TOXICITY, Metric
from workbench.playground.comparison import ModelResult, Sample, SideBySide
from workbench.playground.sockets import address, bind
from workbench.run import cli

BY_REWARD, BY_LEXICON = (Metric(TOXICITY, "lower", judge) for judge in (REWARD, "toy_lexicon"))
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> ${alert(3)} {{alert(4)}} \x1b[2J \u202e </div>&amp;"


def make_run(folder: Path) -> Path:
    """Train and evaluate a quickstart of a few steps and return its folder."""
    cli.launch(CHAIN, "", small("quickstart", folder))
    return folder / "quickstart"


def make_sample(text: str, toxicity: float, ratios: list[tuple[str, float]] | None = None) -> Sample:
    """Return a completion with the same toxicity according to the reward and the lexicon."""
    completion = Completion(text, 5, False, 0.1, 2.0, ratios)
    return Sample(completion, {BY_REWARD: toxicity, BY_LEXICON: toxicity, Metric("tokens"): 5.0})


def make_result(*models: ModelResult, prompt: str = "Hello.", notes: tuple[str, ...] = ()) -> SideBySide:
    """Return the completions of a prompt."""
    return SideBySide(prompt, 3, list(models), "sft", 0.5, list(notes))


@contextmanager
def served(serve: Callable[[socket.socket], None], log: Path) -> Iterator[str]:
    """Call `serve` with a listening socket in a child process, which no test's refusal of sockets concerns."""
    with bind(0) as bound:
        child = fork(lambda: serve(bound), log)
        try:
            yield address(bound)
        finally:
            end(child)
