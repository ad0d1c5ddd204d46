"""Two processes learn what one learns, never wait for each other in vain, and stop and resume together."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import two_processes
import yaml
from child_processes import exit_code, fork
from trainers import lines

from workbench.errors import UserError
from workbench.run import cli

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 280  # seconds; a busy machine takes many times what an idle one does
kinds = pytest.mark.parametrize("kind", two_processes.KINDS, ids=lambda kind: two_processes.name(*kind))
run_kinds = pytest.mark.parametrize("kind", two_processes.RUN_KINDS, ids=lambda kind: two_processes.name(*kind))
pytestmark = pytest.mark.timeout(LIMIT + 60)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two processes leave their results, with every scenario in one start."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ranks = range(two_processes.PROCESSES)
    children = [fork(partial(two_processes.run, folder, rank, port, LIMIT), folder / "log") for rank in ranks]
    (folder / "codes").write_text(json.dumps([exit_code(child) for child in children]))
    return folder


def test_every_scenario_comes_to_its_end(results: Path) -> None:
    assert (results / "codes").read_text() == "[0, 0]", (results / "log").read_text()


def test_two_processes_of_the_launcher_print_once(in_project: Path) -> None:
    configuration = "recipes/accelerate/multi_gpu.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", configuration]
    several = ["--num_processes", "2", "--main_process_port", "0"]
    recipe = ["-m", "recipes.ppo", "--config", "recipes/configs/quickstart.yaml", "--print_config"]
    output = subprocess.check_output(
        [*launcher, *several, *recipe], env=os.environ | {"ACCELERATE_USE_CPU": "true"}, text=True, timeout=LIMIT
    )
    assert yaml.safe_load(output)["name"] == "quickstart"
    assert output.count("name: quickstart") == 1


@kinds
def test_two_processes_update_as_one_does(kind: two_processes.Kind, results: Path, tmp_path: Path) -> None:
    # Responses, and which of them make a minibatch, are the same: what is left is whitening and the token mean.
    file = results / "updates" / f"{two_processes.name(*kind)}.pt"
    metrics = two_processes.check_first_update(tmp_path, kind, file)
    assert metrics["optimizer_steps"] == 4
    assert (
        metrics.get("policy/clip_fraction", metrics["policy/approx_kl"]) > 0
    )  # it moved far enough for a difference to show


@run_kinds
def test_one_token_in_one_process_and_the_limit_in_the_other_never_hang(
    kind: two_processes.Kind, results: Path
) -> None:
    first, *steps = lines(results / "lengths" / two_processes.name(*kind) / "metrics.jsonl")
    assert [step["step"] for step in (first, *steps)] == [0, 1, 2, 3]
    assert all(step["response/length_min"] == 1 < step["response/length_max"] for step in steps)
    assert all("validation/objective" in step for step in steps)
    # Here all responses to a prompt are equally long and score the same, so that groups teach nothing.
    assert any(step["stopped_early"] for step in steps) or kind[2] == "rloo"


@run_kinds
def test_a_run_that_one_process_ends_resumes_bit_for_bit(kind: two_processes.Kind, results: Path) -> None:
    result = json.loads((results / "resumes" / f"{two_processes.name(*kind)}.json").read_text())
    if kind[1]:
        assert result["errors"] == ["Interrupted: stopped and saved at step 3 of 4"] * 2
    else:
        assert "stopped because another process failed" in result["errors"][0]
        assert "TimeoutError: the scorer did not answer" in result["errors"][1]
        assert "ppo: saved at step 2" in (results / "log").read_text()
    assert result["step"] == (3 if kind[1] else 2)
    assert result["equal"]
    whole, stopped = (
        lines(results / "resumes" / two_processes.name(*kind) / run / "metrics.jsonl") for run in ("whole", "stopped")
    )
    assert len(whole) == 4
    assert stopped == whole


@pytest.mark.parametrize(
    ("where", "failing", "reason"),
    [
        ("pair", 1, "TimeoutError: the scorer did not answer"),
        ("initial scores", 1, "TimeoutError: the scorer did not answer"),
        ("log", 0, "No space left on device"),
    ],
)
def test_a_failure_of_one_process_is_the_end_of_both(where: str, failing: int, reason: str, results: Path) -> None:
    errors = json.loads((results / "failures" / "errors.json").read_text())[where]
    assert reason in errors[failing]
    assert errors[1 - failing] == "UserError: stopped because another process failed; see its error"


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("prompts", [1, 7])
def test_evaluation_returns_every_prompt_in_order(architecture: str, prompts: int, results: Path) -> None:
    of_two = json.loads((results / "evaluations" / f"{architecture}-{prompts}.json").read_text())
    of_one = two_processes.completions(architecture, prompts)
    assert [len(row) for row in of_two] == [2] * prompts
    for two, one in zip(itertools.chain(*of_two), itertools.chain(*of_one), strict=True):
        for name in ("kl", "base_nll"):
            assert two.pop(name) == pytest.approx(one.pop(name), abs=1e-5)
        assert (two.pop("token_log_ratios") is None) == (one.pop("token_log_ratios") is None)
        assert two == one


def commands(results: Path) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """Return exit codes and outputs of the recipes on both processes, by the command's title."""
    saved: dict[str, Any] = json.loads((results / "recipes" / "commands.json").read_text())
    return saved["codes"], saved["outputs"]


def test_the_recipe_stops_with_a_checkpoint_and_resumes_to_an_adapter(results: Path) -> None:
    codes, outputs = commands(results)
    assert codes["failed"] == [2, 2]
    assert "error (process 1): " in outputs["failed"][1]
    assert "TimeoutError: the scorer did not answer" in outputs["failed"][1]
    saved = torch.load(results / "recipes" / "checkpoints" / "step_000001" / "state.pt")
    assert len(saved["random"]) == 2
    assert codes["resumed"] == [0, 0], outputs["resumed"]
    assert "ppo: resuming from step 1" in outputs["resumed"][0]
    ppo = results / "recipes" / "quickstart" / "ppo"
    assert (ppo / "adapter_model.safetensors").is_file()
    assert (ppo / "value_head.safetensors").is_file()


def test_processes_on_unlike_machines_agree_on_what_is_cached(results: Path) -> None:
    codes, outputs = commands(results)
    assert codes["evaluated"] == codes["evaluated again"] == [0, 0], outputs
    assert "reusing cached completions" not in outputs["evaluated"][0]
    assert outputs["evaluated again"][0].count("reusing cached completions") == 2
    again = json.loads((results / "recipes" / "quickstart" / "evaluation" / "results.json").read_text())
    first = json.loads((results / "recipes" / "first_results.json").read_text())
    assert again["sets"] == first["sets"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="they would meet on GPUs")
def test_processes_that_cannot_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="set ACCELERATE_USE_CPU=true"):
        cli.wait_for_everyone()
