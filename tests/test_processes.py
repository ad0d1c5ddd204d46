"""Two processes learn what one learns, never wait for each other in vain, and stop and go on together."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import two_processes
from small_runs import drop, small

from recipes import ppo
from workbench.errors import UserError
from workbench.run import cli

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 200  # seconds; a busy machine takes many times what an idle one does
KINDS = pytest.mark.parametrize("kind", two_processes.KINDS, ids=lambda kind: two_processes.name(*kind))
# A launcher takes this long, after it was asked to stop, before it kills a process that does not.
GRACE = 40


def launch(log: Path, *command: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of two processes on CPUs, started as README says."""
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_config.yaml"]
    several = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(log.parent)])
    with log.open("w") as file:
        process = subprocess.Popen(
            [*start, *several, *command],
            cwd=ROOT,
            env=os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths} | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait(GRACE)
            pytest.fail(f"no end after {LIMIT} s:\n{log.read_text()}")
    return process.returncode, log.read_text()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two processes leave what they found, with every scenario in one start."""
    folder = tmp_path_factory.mktemp("processes")
    code, said = launch(folder / "log", "tests/two_processes.py", str(folder), str(LIMIT - 20))
    (folder / "code").write_text(f"{code}\n{said}")
    return folder


def test_every_scenario_comes_to_its_end(results: Path) -> None:
    code, _, said = (results / "code").read_text().partition("\n")
    assert code == "0", said


@KINDS
def test_two_processes_update_as_one_does(kind: tuple[str, bool, str], results: Path, tmp_path: Path) -> None:
    # Responses, and which of them make a minibatch, are the same: what is left is whitening and the token mean.
    metrics, weights = two_processes.first_update(tmp_path, kind)
    of_two = torch.load(results / "updates" / f"{two_processes.name(*kind)}.pt")
    assert set(weights) == set(of_two["weights"])
    for name, value in weights.items():
        assert torch.allclose(value, of_two["weights"][name], rtol=0, atol=1e-5), name
    timed = {name for name in metrics if name.startswith("seconds/") or name.endswith("_per_second")}
    assert set(metrics) == set(of_two["metrics"])
    for name in set(metrics) - timed:
        assert of_two["metrics"][name] == pytest.approx(metrics[name], rel=1e-5, abs=1e-5), name
    assert metrics["optimizer_steps"] == 4
    assert metrics["policy/clip_fraction"] > 0  # it moved far enough for a difference to show


def test_one_token_in_one_process_and_the_limit_in_the_other_never_hang(results: Path) -> None:
    for kind in two_processes.KINDS:
        log = (results / "lengths" / two_processes.name(*kind) / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in log]
        assert [step["step"] for step in steps] == [1, 2, 3]
        assert all(step["response/length_min"] == 1 < step["response/length_max"] for step in steps)
        assert all("validation/objective" in step for step in steps)
        assert any(step["stopped_early"] for step in steps)


@KINDS
def test_a_run_that_one_process_ends_goes_on_bit_for_bit(kind: tuple[str, bool, str], results: Path) -> None:
    found = json.loads((results / "resumes" / f"{two_processes.name(*kind)}.json").read_text())
    if kind[1]:
        assert found["said"] == ["Interrupted: stopped and saved at step 3 of 4"] * 2
    else:
        assert "the reward failed on another process; saved at step 2" in found["said"][0]
        assert "TimeoutError: the scorer did not answer" in found["said"][1]
    assert found["step"] == (3 if kind[1] else 2)
    assert found["same"]
    logs = [
        (results / "resumes" / two_processes.name(*kind) / run / "metrics.jsonl").read_text().splitlines()
        for run in ("whole", "stopped")
    ]
    for a, b in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert {n: v for n, v in a.items() if "second" not in n} == {n: v for n, v in b.items() if "second" not in n}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("prompts", [1, 7])
def test_evaluation_returns_every_prompt_in_order(architecture: str, prompts: int, results: Path) -> None:
    of_two = json.loads((results / "evaluations" / f"{architecture}-{prompts}.json").read_text())
    of_one = two_processes.answers(architecture, prompts)
    assert [len(of) for of in of_two] == [2] * prompts
    for two, one in zip(itertools.chain(*of_two), itertools.chain(*of_one), strict=True):
        for name in ("kl", "base_nll"):
            assert two.pop(name) == pytest.approx(one.pop(name), abs=1e-5)
        assert (two.pop("moved") is None) == (one.pop("moved") is None)
        assert two == one


REWARD = """
import os

def score(prompts, completions, **columns):
    if os.environ.get("FAILING_RANK") == os.environ["RANK"] and list(RUN.glob("step_*")):
        raise TimeoutError("the scorer did not answer")
    return [float(len(text)) for text in completions]
"""


def test_the_recipe_stops_with_a_checkpoint_and_goes_on_to_an_adapter(tmp_path: Path) -> None:
    ppo = tmp_path / "quickstart" / "ppo"
    place = f"from pathlib import Path\nRUN = Path({str(ppo / 'checkpoints')!r})\n"
    (tmp_path / "failing_reward.py").write_text(place + REWARD)
    command = [
        *("-m", "recipes.ppo", "--config", "recipes/configs/quickstart.yaml", "--runs", str(tmp_path), "--sft", "null"),
        *("--reward.model", "failing_reward:score", "--ppo.steps", "3", "--ppo.checkpoint_every", "1"),
        *("--ppo.batch_size", "8", "--ppo.minibatch_size", "4", "--ppo.epochs", "1", "--ppo.max_new_tokens", "6"),
    ]
    code, said = launch(tmp_path / "failed", *command, FAILING_RANK="1")
    assert code != 0
    assert "error (process 1): " in said
    assert "TimeoutError: the scorer did not answer" in said
    saved = torch.load(ppo / "checkpoints" / "step_000001" / "state.pt")
    assert len(saved["random"]) == 2

    code, said = launch(tmp_path / "finished", *command)
    assert code == 0, said
    assert "ppo: going on from step 1" in said
    assert (ppo / "adapter_model.safetensors").is_file()
    assert (ppo / "value_head.safetensors").is_file()


UNEVEN = """
import os, torch
from recipes import evaluation
from workbench.run.cli import main
torch.set_num_threads(1 + int(os.environ["RANK"]))
main([evaluation.STAGE], "")
"""


def test_processes_on_unlike_machines_agree_on_what_was_answered_before(in_project: Path, tmp_path: Path) -> None:
    options = small("quickstart", tmp_path, "--reward.model", "length", "--sft", "null")
    cli.launch([ppo.STAGE], "", [*drop(options, "--sft.max_steps", "--sft.batch_size")])
    (tmp_path / "uneven.py").write_text(UNEVEN)
    command = [str(tmp_path / "uneven.py"), *drop(options, "--sft.max_steps", "--sft.batch_size")]
    code, said = launch(tmp_path / "first", *command)
    assert code == 0, said
    assert "the answers of before" not in said
    results = tmp_path / "quickstart" / "evaluation" / "results.json"
    first = json.loads(results.read_text())
    code, said = launch(tmp_path / "again", *command, "--force", "evaluation")
    assert code == 0, said
    assert said.count("the answers of before") == 2
    assert json.loads(results.read_text())["sets"] == first["sets"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="they would meet on GPUs")
def test_processes_that_cannot_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="put ACCELERATE_USE_CPU=true before the command"):
        cli.wait_for_everyone()
