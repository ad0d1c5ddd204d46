"""A finished stage is what its record says, and was made from the stages that are there now."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from small_runs import CHAIN, record_files, small

from workbench.compare import write_comparison
from workbench.errors import UserError
from workbench.evaluation.results_files import read_results
from workbench.export import command as export
from workbench.run import cli
from workbench.run.files import follow_umask, writing
from workbench.run.progress import Progress
from workbench.run.stage_record import FILE, read_record, write_record

NAME = "quickstart_gpt2"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs in which a chain is finished."""
    folder = tmp_path_factory.mktemp("finished")
    cli.launch(CHAIN, "", small(NAME, folder))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs" / NAME


def launch(run: Path, *options: str) -> None:
    """Launch the chain again."""
    cli.launch(CHAIN, "", small(NAME, run.parent, *options))


def redo(run: Path, stage: str) -> None:
    """Leave other weights in a stage, as a training on another machine would."""
    file = run / stage / "adapter_model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(file).items()}, file)
    record_files(run / stage)


@pytest.mark.parametrize(("earlier", "later"), [("sft", "ppo"), ("sft", "evaluation"), ("ppo", "evaluation")])
def test_a_stage_that_was_made_from_other_weights_is_not_taken_for_finished(
    earlier: str, later: str, run: Path, tmp_path: Path
) -> None:
    if later == "evaluation" and earlier == "sft":
        shutil.rmtree(run / "ppo")
    redo(run, earlier)
    line = rf"{run / later}: made from another {earlier} than the one that is in .*; redo it with --force {later}, or"
    for options in ([], ["--dry_run"]):
        with pytest.raises(UserError, match=line):
            launch(run, *options)
    other = shutil.copytree(run, tmp_path / "other")
    readers = {
        "ppo": lambda: export.main(["--run", str(run), "--to", str(tmp_path / "out"), "--merge"]),
        "evaluation": lambda: write_comparison([run, other], tmp_path / "page.html"),
    }
    with pytest.raises(UserError, match=line):
        readers[later]()
    assert not (tmp_path / "out").exists()


def test_a_stage_that_is_lost_is_made_again_and_the_later_ones_stay(run: Path) -> None:
    times = [(run / stage / FILE).stat().st_mtime_ns for stage in ("ppo", "evaluation")]
    shutil.rmtree(run / "sft")
    launch(run)
    assert [(run / stage / FILE).stat().st_mtime_ns for stage in ("ppo", "evaluation")] == times


def test_a_stage_that_comes_out_otherwise_is_trained_once_and_the_later_one_is_named(run: Path) -> None:
    shutil.rmtree(run / "sft")
    write_record(run / "ppo", read_record(run / "ppo") | {"made_from": {"sft": "0" * 64}})
    with pytest.raises(UserError, match=r"ppo: made from another sft .* redo it with --force ppo"):
        launch(run)
    assert (run / "sft" / FILE).is_file(), "what was trained stays"


def test_every_flipped_bit_of_a_record_is_noticed(run: Path) -> None:
    file = run / "ppo" / FILE
    content = file.read_bytes()
    record = read_record(file.parent)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        file.write_bytes(changed)
        with suppress(UserError):
            assert read_record(file.parent) == record, "only between its values"


@pytest.mark.parametrize("change", [{"files": None}, {"files": [1]}, {"data": []}, {"metrics": {}}, {"versions": []}])
@pytest.mark.parametrize("stage", ["ppo", "evaluation"])
def test_a_record_that_was_edited_is_one_line(stage: str, change: dict[str, object], run: Path, tmp_path: Path) -> None:
    file = run / stage / FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    line = rf"{file}: corrupt; redo the stage with --force {stage}"
    with pytest.raises(UserError, match=line):
        launch(run)
    with pytest.raises(UserError, match=line):
        export.main(["--run", str(run), "--to", str(tmp_path / "out"), "--merge"])


def test_what_others_may_read_follows_the_umask(run: Path) -> None:
    modes = {stat.S_IMODE(file.stat().st_mode) for file in run.rglob("*.safetensors")}
    umask = os.umask(0o022)
    os.umask(umask)
    assert modes == {0o666 & ~umask}


def test_a_file_that_belongs_to_another_run_too_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_text("x")
    file.chmod(0o400)
    os.link(file, tmp_path / "linked")
    follow_umask(tmp_path / "linked")
    assert stat.S_IMODE(file.stat().st_mode) == 0o400


@pytest.mark.parametrize("name", ["ppo", "evaluation", f"ppo/{FILE}"])
def test_another_kind_of_file_in_the_way_is_named_in_the_plan(name: str, run: Path) -> None:
    path = run / name
    if name.endswith(FILE):
        path.unlink()
        path.mkdir()
    else:
        shutil.rmtree(path)
        path.write_text("x")
    with pytest.raises(UserError, match=rf"{path}: .* belongs there; move it away"):
        launch(run, "--dry_run")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (FileExistsError(17, "File exists"), "move away what is in its place"),
        (PermissionError(13, "Permission denied"), "make it writable for this user or choose another folder"),
        (OSError(28, "No space left on device"), "free some space or choose another folder"),
    ],
)
def test_the_remedy_fits_the_failure(error: OSError, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy), writing(Path("x")):
        raise error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("module", ["workbench.report", "recipes.detox"])
def test_output_that_a_full_disk_does_not_take_is_one_line(module: str, run: Path) -> None:
    arguments = [str(run)] if module == "workbench.report" else small(NAME, run.parent)
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", module, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 2
    line = "error: the output cannot be written: No space left on device; free some space"
    assert result.stderr.splitlines()[-1] == line
    assert "Traceback" not in result.stderr


def test_a_progress_line_holds_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    Progress("evaluation x\u202eevil", 1, show=True).advance(note="\x1b[2J")
    assert r"evaluation x\u202eevil 1/1" in (line := capsys.readouterr().err)
    assert "\u202e" not in line
    assert "\x1b" not in line


def test_a_record_with_numbers_as_keys_is_read_as_it_was_written(tmp_path: Path) -> None:
    record: dict[str, Any] = {"files": {}, "metrics": {2: "two", 10: "ten"}}
    write_record(tmp_path, record)
    assert read_record(tmp_path)["metrics"] == {"2": "two", "10": "ten"}


def test_results_by_a_relative_path_are_those_of_the_models_that_are_there(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redo(run, "sft")
    monkeypatch.chdir(run / "evaluation")
    for name in ("results.json", "./results.json", "../evaluation/results.json"):
        with pytest.raises(UserError, match=r"evaluation: made from another sft .* redo it with --force evaluation"):
            read_results(name)
