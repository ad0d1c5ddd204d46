"""A model that FSDP2 divides among processes learns and samples what an undivided one does, and resumes anywhere."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sharded_processes
import tiny
import torch
import two_processes
import yaml
from child_processes import exit_code, fork
from configs import GOOD
from safetensors.torch import load_file
from torch import Tensor
from trainers import lines, untimed

from recipes import sft
from workbench.config.parsing import parse
from workbench.config.schema import Config
from workbench.errors import UserError
from workbench.models.policy import Policy
from workbench.ppo.policy_files import save_policy
from workbench.run import cli, distributed
from workbench.run.distributed import prepare_launch

LIMIT = 280  # seconds; a busy machine takes many times what an idle one does
kinds = pytest.mark.parametrize("kind", sharded_processes.KINDS, ids=lambda kind: two_processes.name(*kind))
resumed = pytest.mark.parametrize("kind", sharded_processes.RESUMED, ids=lambda kind: two_processes.name(*kind))
recipes = pytest.mark.parametrize("recipe", sharded_processes.RECIPES)
pytestmark = pytest.mark.timeout(LIMIT + 60)


def start(folder: Path, processes: int, scenarios: Sequence[Callable[[Path], None]]) -> None:
    """Run scenarios in so many processes, and leave their exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = {"limit": LIMIT, "processes": processes, "scenarios": scenarios}
    children = [
        fork(partial(two_processes.run, folder, rank, port, **options), folder / "log") for rank in range(processes)
    ]
    (folder / "codes").write_text(json.dumps([exit_code(child) for child in children]))


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two processes leave their results, with every scenario in one start."""
    folder = tmp_path_factory.mktemp("two")
    start(folder, 2, sharded_processes.OF_TWO)
    return folder


@pytest.fixture(scope="module")
def of_four(of_two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where four processes resume what two began."""
    folder = tmp_path_factory.mktemp("four")
    for kind in sharded_processes.RESUMED:
        name = two_processes.name(*kind)
        shutil.copytree(of_two / "runs" / name / "half", folder / "resumes" / name / "half")
    shutil.copytree(of_two / "chains" / "stopped", folder / "fine_tunings")
    start(folder, 4, [sharded_processes.resumes, sharded_processes.fine_tunings])
    return folder


@pytest.fixture(scope="module")
def of_one(of_two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where one process of a launch with FSDP resumes the SFT stages that two began."""
    folder = tmp_path_factory.mktemp("one")
    shutil.copytree(of_two / "chains" / "stopped", folder / "fine_tunings")
    start(folder, 1, [sharded_processes.fine_tunings])
    return folder


def test_every_scenario_comes_to_its_end(of_one: Path, of_two: Path, of_four: Path) -> None:
    assert (of_one / "codes").read_text() == "[0]", (of_one / "log").read_text()
    assert (of_two / "codes").read_text() == "[0, 0]", (of_two / "log").read_text()
    assert (of_four / "codes").read_text() == "[0, 0, 0, 0]", (of_four / "log").read_text()


@kinds
def test_a_sharded_update_is_that_of_one_process(kind: two_processes.Kind, of_two: Path, tmp_path: Path) -> None:
    file = of_two / "updates" / f"{two_processes.name(*kind)}.pt"
    metrics = two_processes.check_first_update(tmp_path, kind, file)
    assert metrics["policy/clip_fraction"] > 0  # it moved far enough for a difference to show


def test_the_loss_scale_of_fp16_is_the_same_on_every_process(of_two: Path) -> None:
    whole, sharded = (json.loads((of_two / "scaled_updates" / f"{name}.json").read_text()) for name in (False, True))
    assert sharded[0] == sharded[1]
    for expected, step in zip(whole[0], sharded[0], strict=True):
        assert step[:2] == expected[:2]
        assert step[2] == pytest.approx(expected[2], rel=1e-2)  # of two updates with 11 bits
    assert whole[0][0][1] > 0, "nothing overflowed"
    assert whole[0][-1][2] > 0


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_rollouts_of_uneven_lengths_sample_as_one_process_does_and_never_hang(architecture: str, of_two: Path) -> None:
    assert all((of_two / "rollouts" / f"{architecture}-{rank}").is_file() for rank in range(2))


def test_a_block_inside_another_has_the_same_gradients(of_two: Path) -> None:
    for rank in range(2):
        assert (of_two / "nested_blocks" / str(rank)).is_file()


def test_a_gathered_model_is_saved_whole_with_and_without_blocks(of_two: Path) -> None:
    counts = [int((of_two / "models_without_blocks" / f"{blocks}.txt").read_text()) for blocks in (0, 1)]
    assert counts[0] == counts[1] > 10


def test_a_failure_before_sampling_is_the_end_of_both(of_two: Path) -> None:
    first, second, main, other = json.loads((of_two / "failures" / "0.json").read_text())
    assert first == "stopped because another process failed; see its error"
    assert "64" in second
    assert [main, other] == ["the data has changed", "stopped because the main process failed; see its error"]


@resumed
def test_two_processes_resume_bit_for_bit_and_save_ordinary_files(
    kind: two_processes.Kind, of_two: Path, tmp_path: Path
) -> None:
    name = two_processes.name(*kind)
    result = torch.load(of_two / "runs" / f"{name}.pt")
    assert all(result["equal"].values())
    whole, stopped = (untimed_lines(of_two / "runs" / name / run / "metrics.jsonl") for run in ("whole", "stopped"))
    assert len(whole) == 5
    assert stopped == whole

    run = two_processes.trainer(tmp_path / "run", kind)
    save_policy(run.unwrapped, run.tokenizer, tmp_path / "files")
    saved = of_two / "runs" / name / "saved"
    assert tensors(saved, shapes=True) == tensors(tmp_path / "files", shapes=True)
    if not kind[1]:
        files = tensors(saved)
        trained = {key.removeprefix("model."): value for key, value in result["weights"].items()}
        assert all(torch.equal(value, trained[key]) for key, value in files["model.safetensors"].items())
        assert torch.equal(files["value_head.safetensors"]["weight"], trained["value_head.weight"])
        best = load_file(of_two / "runs" / name / "whole" / "best" / "model.safetensors")
        assert best.keys() == files["model.safetensors"].keys()


def untimed_lines(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file without what depends on the clock."""
    return [untimed(line) for line in lines(file)]


def tensors(folder: Path, *, shapes: bool = False) -> dict[str, dict[str, Any]]:
    """Return the tensors, or their shapes, by file and name."""
    files = {str(file.relative_to(folder)): load_file(file) for file in folder.rglob("*.safetensors")}
    return {
        name: {key: tuple(value.shape) if shapes else value for key, value in content.items()}
        for name, content in sorted(files.items())
    }


@resumed
@pytest.mark.parametrize("processes", [1, 4])
def test_another_number_of_processes_resumes_what_two_began(
    processes: int, kind: two_processes.Kind, of_two: Path, of_four: Path, tmp_path: Path
) -> None:
    name = two_processes.name(*kind)
    folder = of_four
    if processes == 1:
        folder = tmp_path
        shutil.copytree(of_two / "runs" / name / "half", folder / "resumes" / name / "half")
        with (
            mock.patch.object(sharded_processes, "RESUMED", [kind]),
            mock.patch.object(sharded_processes, "shard_policy", None),
        ):
            sharded_processes.resumes(folder / "resumes")
    restored = torch.load(folder / "resumes" / f"{name}.pt")
    saved = torch.load(of_two / "runs" / name / "half" / "checkpoints" / "step_000002" / "state.pt")
    assert restored["step"] == 2
    trained = {key: value for key, value in restored["weights"].items() if key in saved["trainable"]}
    assert trained.keys() == saved["trainable"].keys()
    assert all(torch.equal(value, saved["trainable"][key]) for key, value in trained.items())
    moments = [entry[key] for entry in saved["optimizer"]["state"].values() for key in ("exp_avg", "exp_avg_sq")]
    assert len(moments) == len(restored["moments"]) > 0
    assert all(torch.equal(a, b) for a, b in zip(moments, restored["moments"], strict=True))
    first, *steps = lines(folder / "resumes" / name / "half" / "metrics.jsonl")
    assert [step["step"] for step in (first, *steps)] == [0, 1, 2, 3, 4]
    assert all(step["grad_norm"] > 0 for step in steps)


@recipes
def test_a_sharded_chain_stops_resumes_and_fine_tunes_as_one_process_does(
    recipe: str, of_one: Path, of_two: Path, of_four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = json.loads((of_two / "chains" / f"{recipe}.json").read_text())
    (stopped, outputs), (finished, more) = commands["stopped"], commands["resumed"]
    assert stopped == [130, 130], outputs
    assert "sft stopped and saved at step 2 of 3" in outputs[0]
    refused, lines_of_both = commands["refused"]
    assert refused == [2, 2], lines_of_both
    assert all("begun.json: corrupt; redo the stage with --force sft" in each for each in lines_of_both)
    assert finished == [0, 0], more
    assert (of_two / "chains" / recipe / "ppo" / "stage.json").is_file()

    for processes, folder in ((1, of_one), (4, of_four)):
        codes, output = json.loads((folder / "fine_tunings" / f"{recipe}.json").read_text())["resumed"]
        assert codes == [0] * processes, output
        warning = f"sft: warning: saved by 2 processes, resumed by {processes}: the steps from here on draw other"
        assert output[0].count(warning) == 1

    monkeypatch.setattr(sys, "argv", ["recipes/sft.py", *sharded_processes.recipe_options(recipe, tmp_path)])
    with pytest.raises(SystemExit) as leaving:
        cli.main([sft.STAGE], "")
    assert leaving.value.code == 0
    alone = tensors(tmp_path / recipe / "sft")["model.safetensors"]
    for folder in (of_two / "chains", of_one / "fine_tunings", of_four / "fine_tunings"):
        sharded = tensors(folder / recipe / "sft")["model.safetensors"]
        assert sharded.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.allclose(determined(name, value), determined(name, sharded[name]), rtol=0, atol=1e-5), name
    files = {file.name for file in (tmp_path / recipe / "sft").iterdir()}
    assert {file.name for file in (of_two / "chains" / recipe / "sft").iterdir()} == files


def determined(name: str, weight: Tensor) -> Tensor:
    """Return the part of a weight that the loss depends on; attention is the same whatever the bias of its keys.

    The gradient of that bias is rounding, and Adam's steps on it are as large as any.
    """
    if not name.endswith("c_attn.bias"):
        return weight
    queries, _, values = weight.chunk(3)
    return torch.cat((queries, values))


def test_a_plain_launch_does_not_resume_what_fsdp_saved(
    of_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(of_two / "chains" / "stopped" / "quickstart", tmp_path / "quickstart")
    monkeypatch.setattr(sys, "argv", ["recipes/sft.py", *sharded_processes.recipe_options("quickstart", tmp_path)])
    with pytest.raises(SystemExit) as leaving:
        cli.main([sft.STAGE], "")
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert "checkpoint-2: saved with FSDP; resume with the launch that began the stage, or start over with" in error


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("changes", "adapters", "gpus", "reason"),
    [
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            True,
            True,
            "DeepSpeed is not supported; .* use FSDP2: accelerate launch",
        ),
        (FSDP, False, False, "FSDP divides models among GPUs, and this machine has none"),
        (FSDP | {"FSDP_VERSION": "1"}, False, True, "only version 2 of FSDP is supported; set fsdp_version: 2"),
        (FSDP, True, True, r"policy\.lora is set; use recipes/accelerate/multi_gpu\.yaml, or set policy\.lora to null"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, False, True, "fsdp_offload_params is not supported; set it to false"),
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, False, True, r"use policy\.gradient_checkpointing"),
    ],
)
def test_a_launch_that_would_train_wrongly_is_refused(
    changes: dict[str, str],
    adapters: bool,
    gpus: bool,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "has_gpus", lambda: gpus)
    with mock.patch.dict(os.environ, changes), pytest.raises(UserError, match=f"launch: .*{reason}"):
        prepare_launch(configuration(tmp_path, adapters=adapters))


def configuration(folder: Path, *, adapters: bool) -> Config:
    """Return a configuration that trains adapters, or all weights."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(GOOD)))
    return parse(["--config", str(file), "--policy.lora", "{r: 4}" if adapters else "null"])[0]


def test_weights_are_read_by_every_process_and_a_process_without_a_launcher_shares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(tmp_path, adapters=False)
    monkeypatch.setattr(distributed, "has_gpus", lambda: True)
    with mock.patch.dict(os.environ, FSDP | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}):
        prepare_launch(config)
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
        assert os.environ["FSDP_AUTO_WRAP_POLICY"] == "NO_WRAP"
        assert distributed.is_sharded_launch()
        with distributed.data_parallel():
            assert not distributed.is_sharded_launch()
        assert distributed.is_sharded_launch()
    with mock.patch.dict(os.environ, {name: value for name, value in FSDP.items() if name != "LOCAL_RANK"}):
        prepare_launch(config)
        assert not distributed.is_sharded_launch()


def test_an_unsharded_policy_is_gathered_already() -> None:
    policy: Policy = tiny.policy("gpt2", lora=False)
    with sharded_processes.gathered(policy):
        assert all(type(value) is torch.nn.Parameter for value in policy.parameters())
