"""PPO and evaluation on a CUDA device that is simulated: no tensor on the wrong device, few waits for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_classifiers
import torch

TESTS = Path(__file__).resolve().parent
COMPILER = shutil.which("g++")


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library that autograd needs, compiled."""
    if sys.platform != "linux" or COMPILER is None:
        pytest.skip("needs Linux and g++, to build a device guard")
    library, torch_folder = tmp_path_factory.mktemp("guard") / "guard.so", Path(torch.__file__).parent
    command = [COMPILER, "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder}/include", "-o", str(library)]
    command += [str(TESTS / "simulated_cuda.cpp"), f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True)
    return library


def run(guard: Path, *arguments: str) -> dict:
    """Run a scenario in a process of its own."""
    libraries = Path(torch.__file__).parent / "lib"
    environment = os.environ | {
        "LD_PRELOAD": str(guard),
        "LD_LIBRARY_PATH": str(libraries),
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(TESTS / "cuda_scenarios.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(name: str, measured: dict) -> None:
    """Assert what holds in every scenario."""
    assert measured["waits_per_token"] <= 3, name
    assert measured["waits_in_workbench"] <= 2, f"{name}: per response, not per token"
    assert measured["grad_norm"] > 0, name
    assert abs(measured["kl"]) < 1e-6, name


def test_every_part_runs_on_the_device_and_samples_what_the_cpu_samples(guard: Path) -> None:
    on_device, on_cpu = run(guard, "cuda", "fp32"), run(guard, "cpu", "fp32")
    assert on_device.keys() == on_cpu.keys() >= {"gpt2 lora", "t5 full", "llama lora", "t5 separate"}
    for name, measured in on_device.items():
        check(name, measured)
        assert measured["texts"] == on_cpu[name]["texts"], name
        assert measured["grad_norm"] == pytest.approx(on_cpu[name]["grad_norm"], rel=1e-3), name


def test_half_precision_runs_there_too(guard: Path) -> None:
    for name, measured in run(guard, "cuda", "bf16", "gpt2 full", "t5 lora", "llama lora").items():
        check(name, measured)


def test_a_reward_scores_there_what_it_scores_on_the_cpu(guard: Path) -> None:
    differences = run(guard, "rewards", "fp32")
    assert set(differences) == set(tiny_classifiers.KINDS)
    assert max(differences.values()) < 1e-5


def test_a_tensor_that_was_left_on_the_cpu_is_an_error(guard: Path) -> None:
    assert run(guard, "mistakes", "fp32") == {"cpu tensor": "same device", "cpu generator": "CPU generator"}
