"""Files that were changed, lost or left by a kill are never trained on or evaluated in silence."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from child_processes import exit_code, fork
from sharded_processes import stopped_after
from small_runs import CHAIN, small

from recipes import evaluation, ppo, reward, sft
from workbench.compare import write_comparison
from workbench.errors import Interrupted, UserError
from workbench.evaluation import cache
from workbench.evaluation.results_files import read_results
from workbench.models import loading
from workbench.run import cli, hf_trainer
from workbench.run.checksums import FILE, damage, write_checksums
from workbench.run.files import atomic_folder, remove_folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs in which a chain with a trained reward is finished."""
    folder = tmp_path_factory.mktemp("finished")
    cli.launch(CHAIN, "", options(folder))
    return folder


def options(folder: Path, *more: str) -> list[str]:
    """Return the options of the chain."""
    return small("quickstart_gpt2", folder, "--reward.model", "null", "--reward.train.data.limit", "640", *more)


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished chain."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    """Cut the file in the middle."""
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    """Leave nothing in the file."""
    file.write_bytes(b"")


def replace_by_list(file: Path) -> None:
    """Write what is valid JSON, but of another type."""
    file.write_text("[]\n")


DAMAGES: tuple[Callable[[Path], None], ...] = (flip, truncate, empty, replace_by_list, Path.unlink)


@pytest.mark.parametrize("how", DAMAGES, ids=lambda how: how.__name__)
@pytest.mark.parametrize(
    ("stages", "name"),
    [
        ([ppo.STAGE, evaluation.STAGE], "sft/adapter_model.safetensors"),
        ([ppo.STAGE, evaluation.STAGE], "sft/tokenizer.json"),
        ([ppo.STAGE, evaluation.STAGE], "reward/model.safetensors"),
        ([evaluation.STAGE], "ppo/adapter_model.safetensors"),
        ([evaluation.STAGE], "ppo/metrics.jsonl"),
        ([evaluation.STAGE], "reward/report.json"),
        ([evaluation.STAGE], "reward/calibration.json"),
        ([evaluation.STAGE], "reward/report.html"),
    ],
)
def test_a_later_stage_refuses_what_is_not_what_was_saved(
    stages: list[cli.Stage], name: str, how: Callable[[Path], None], runs: Path
) -> None:
    run = runs / "quickstart_gpt2"
    for stage in stages:
        shutil.rmtree(run / stage.name)
    how(run / name)
    stage_name = name.split("/")[0]
    with pytest.raises(UserError) as refusal:
        cli.launch(CHAIN, "", options(runs))
    message = str(refusal.value)
    assert "\n" not in message
    assert str(run / stage_name) in message
    assert f"--force {stage_name}" in message
    assert not (run / stages[0].name).exists(), "nothing was trained"


@pytest.mark.parametrize("how", [truncate, empty, replace_by_list], ids=lambda how: how.__name__)
def test_a_corrupt_record_is_no_finished_stage(how: Callable[[Path], None], runs: Path) -> None:
    record = runs / "quickstart_gpt2" / "ppo" / "stage.json"
    how(record)
    with pytest.raises(UserError, match=f"{record}: corrupt; redo the stage with --force ppo"):
        cli.launch(CHAIN, "", options(runs))


def test_changed_answers_are_sampled_again(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "quickstart_gpt2" / "evaluation"
    before = read_results(folder / "results.json")
    file = folder / cache.FILE
    lines = [json.loads(line) for line in file.read_text().splitlines() if line]
    lines[0]["value"]["completions"][0][0]["text"] = "another text"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "stage.json").unlink()
    cli.launch(CHAIN, "", options(runs))
    assert f"1 entries of {file} are cut off or corrupt" in capsys.readouterr().out
    assert read_results(folder / "results.json").sets == before.sets


def test_a_kill_while_the_configuration_is_written_leaves_a_run_folder(tmp_path: Path) -> None:
    arguments = small("quickstart_gpt2", tmp_path, "--sft.max_steps", "1")

    def command() -> None:
        with mock.patch.object(os, "replace", side_effect=lambda *paths: os.kill(os.getpid(), signal.SIGKILL)):
            cli.launch([sft.STAGE], "", arguments)

    assert exit_code(fork(command, tmp_path / "log")) == -signal.SIGKILL
    assert (tmp_path / "quickstart_gpt2" / "config.yaml.partial").is_file()
    cli.launch([sft.STAGE], "", arguments)
    assert not (tmp_path / "quickstart_gpt2" / "config.yaml.partial").exists()


@pytest.mark.parametrize("name", ["results.json", "completions.jsonl"])
def test_results_that_were_changed_are_not_shown(name: str, runs: Path, tmp_path: Path) -> None:
    run = runs / "quickstart_gpt2"
    file = run / "evaluation" / name
    text = file.read_text()
    digit = re.search(r'"(?:mean_after|prompt_toxicity)": \d*\.\d*(\d)', text)
    assert digit is not None
    changed = str((int(digit[1]) + 1) % 10)
    file.write_text(text[: digit.start(1)] + changed + text[digit.end(1) :])
    line = rf"{file}: its contents have changed .*--force evaluation"
    with pytest.raises(UserError, match=line):
        write_comparison([run, shutil.copytree(run, tmp_path / "other")], tmp_path / "page.html")
    if name == "results.json":
        with pytest.raises(UserError, match=line):
            cli.launch(CHAIN, "", options(runs))


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_log_that_was_changed_is_in_no_comparison(stage: str, runs: Path, tmp_path: Path) -> None:
    run = runs / "quickstart_gpt2"
    other = shutil.copytree(run, tmp_path / "other")
    file = run / stage / "metrics.jsonl"
    file.write_text(re.sub(r"(\d)([,}])", lambda match: f"{9 - int(match[1])}{match[2]}", file.read_text(), count=1))
    with pytest.raises(UserError, match=rf"{file}: its contents have changed .*--force {stage}"):
        write_comparison([run, other], tmp_path / "page.html")


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_the_pages_of_an_evaluation_are_in_its_record(name: str, runs: Path) -> None:
    run = runs / "quickstart_gpt2"
    assert name in json.loads((run / "evaluation" / "stage.json").read_text())["files"]
    flip(run / "evaluation" / name)
    if name == "report.html":  # to which the command points
        with pytest.raises(UserError, match=rf"{name}: its contents have changed .*--force evaluation"):
            cli.launch(CHAIN, "", options(runs))


def test_a_finished_run_is_looked_at_without_a_write(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "quickstart_gpt2" / ".lock").unlink(missing_ok=True)

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in [runs, *runs.rglob("*")]}

    before = state()
    cli.launch(CHAIN, "", options(runs))
    assert capsys.readouterr().out.count("already finished, skipping") == 4
    assert state() == before


FINE_TUNING = (
    *("--sft.max_steps", "7", "--sft.save_every", "2"),
    *("--sft.trainer_args", "{logging_steps: 3, lr_scheduler_type: constant}"),
)


def fine_tune(folder: Path, *, stop_at: int | None = None) -> dict[str, Any]:
    """Fine-tune for seven steps, or to a stop at one of them; return the record of the finished stage."""
    arguments = small("quickstart_gpt2", folder, *FINE_TUNING)
    if stop_at is not None:
        with stopped_after(stop_at), pytest.raises(Interrupted):
            cli.launch([sft.STAGE], "", arguments)
        return {}
    cli.launch([sft.STAGE], "", arguments)
    return json.loads((folder / "quickstart_gpt2" / "sft" / "stage.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a fine-tuning that nothing stopped."""
    return fine_tune(tmp_path_factory.mktemp("whole"))


def test_the_recorded_loss_is_that_of_all_steps_whenever_it_was_stopped(whole: dict[str, Any], tmp_path: Path) -> None:
    fine_tune(tmp_path, stop_at=2)
    fine_tune(tmp_path, stop_at=2)  # its fourth step
    record = fine_tune(tmp_path)
    assert record["metrics"]["steps"] == 7
    assert record["metrics"]["loss"] == pytest.approx(whole["metrics"]["loss"], rel=1e-6)
    log = (tmp_path / "quickstart_gpt2" / "sft" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["train_loss"] == record["metrics"]["loss"]


@pytest.mark.parametrize("how", [flip, truncate, empty, Path.unlink], ids=lambda how: how.__name__)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json", FILE])
def test_a_damaged_checkpoint_of_a_trainer_is_not_resumed(
    name: str, how: Callable[[Path], None], whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine_tune(tmp_path, stop_at=3)
    folder = tmp_path / "quickstart_gpt2" / "sft"
    how(folder / "checkpoint-3" / name)
    record = fine_tune(tmp_path)
    assert f"sft: {folder / 'checkpoint-3'} is not used (" in capsys.readouterr().out
    assert record["files"]["adapter_model.safetensors"] == whole["files"]["adapter_model.safetensors"]
    assert record["metrics"]["loss"] == pytest.approx(whole["metrics"]["loss"], rel=1e-6)


def test_a_kill_after_the_last_step_takes_no_further_one(whole: dict[str, Any], tmp_path: Path) -> None:
    with mock.patch.object(loading, "save_model", side_effect=SystemExit("killed")), pytest.raises(SystemExit):
        fine_tune(tmp_path)
    record = fine_tune(tmp_path)
    assert record["metrics"]["steps"] == 7
    assert record["metrics"]["loss"] == pytest.approx(whole["metrics"]["loss"], rel=1e-6)
    assert record["files"]["adapter_model.safetensors"] == whole["files"]["adapter_model.safetensors"]


def test_one_checkpoint_is_there_at_any_time(tmp_path: Path) -> None:
    counts = []

    def counting(folder: Path) -> None:
        write_checksums(folder)
        counts.append(len(hf_trainer.existing_checkpoints(folder.parent)))

    with mock.patch.object(hf_trainer, "write_checksums", counting):
        fine_tune(tmp_path)
    assert counts == [1, 2, 2, 2], "an older one goes once the new one is complete"


@contextmanager
def killed_at_removal() -> Any:
    """Raise what no code catches in the middle of the removal of a folder."""

    def half(folder: Path, **settings: Any) -> None:
        next(path for path in Path(folder).rglob("*") if path.is_file()).unlink()
        raise SystemExit("killed")

    with mock.patch.object(shutil, "rmtree", half), pytest.raises(SystemExit, match="killed"):
        yield


def test_a_kill_while_checkpoints_are_removed_loses_nothing(whole: dict[str, Any], tmp_path: Path) -> None:
    with killed_at_removal():
        fine_tune(tmp_path)  # the checkpoint before the second one
    record = fine_tune(tmp_path)
    assert record["files"]["adapter_model.safetensors"] == whole["files"]["adapter_model.safetensors"]
    (tmp_path / "quickstart_gpt2" / "sft" / "stage.json").unlink()
    again = fine_tune(tmp_path)  # its checkpoints are gone, and nothing of a removed one is resumed
    assert again["files"]["adapter_model.safetensors"] == whole["files"]["adapter_model.safetensors"]


def test_a_reward_that_is_refused_keeps_what_was_trained(tmp_path: Path) -> None:
    pair = ["--reward.train.polarity_pair", '["You are a stupid idiot.", "Thank you, that was kind of you."]']
    steps = []
    advance = hf_trainer.StepCallback.on_step_end

    def counting(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps.append(state.global_step)
        advance(self, args, state, control, **kwargs)

    with mock.patch.object(hf_trainer.StepCallback, "on_step_end", counting):
        for _ in range(2):
            with pytest.raises(UserError, match="points the wrong way"):
                cli.launch([reward.STAGE], "", options(tmp_path, *pair))
        trained = len(steps)
        assert trained == len(set(steps)), "the second launch trained nothing"
        cli.launch([reward.STAGE], "", options(tmp_path))  # with the pair in the right order
    assert len(steps) == trained
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_a_folder_that_cannot_be_removed_is_an_error(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if Path(source).name == "sft":
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="sft: cannot be removed: Permission denied; remove it yourself"):
        cli.launch(CHAIN, "", options(runs, "--force", "sft"))
    assert (runs / "quickstart_gpt2" / "sft" / "stage.json").is_file()
    assert not list((runs / "quickstart_gpt2").glob(".sft*"))


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "best"
    for text in ("first", "second"):
        with atomic_folder(target) as folder:
            (folder / "file").write_text(text)
    assert (target / "file").read_text() == "second"
    remove_folder(target)
    remove_folder(target)
    assert list(tmp_path.iterdir()) == []


def test_checksums_find_every_change(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "weights").write_bytes(torch.arange(4).numpy().tobytes())
    assert damage(tmp_path) == "incomplete"
    write_checksums(tmp_path)
    assert damage(tmp_path) is None
    flip(tmp_path / "part" / "weights")
    assert damage(tmp_path) == "part/weights: its contents have changed (checksum mismatch)"
    (tmp_path / "part" / "weights").unlink()
    assert damage(tmp_path) == "part/weights: missing"
