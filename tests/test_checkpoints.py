"""A PPO run that was killed, or whose files were corrupt, resumes, bit for bit, from what is intact."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim import PagedAdamW32bit
from killed_runs import be_killed, die_at_call, die_before_renaming, die_in_save, number_of_calls
from stopped_runs import UninterruptedOutcome, finish, interrupt, trainer, uninterrupted
from trainers import lines

from workbench.errors import UserError
from workbench.ppo import checkpoint
from workbench.run.files import content_hash


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> UninterruptedOutcome:
    """What uninterrupted runs leave, each made once."""
    return uninterrupted(tmp_path_factory)


# Two steps, each with its validation and its checkpoint.
SHORT = {"steps": 2, "checkpoint_every": 1, "score_samples": 4, "value_model": "shared"}


def test_a_process_killed_at_any_moment_changes_nothing(whole: UninterruptedOutcome, tmp_path: Path) -> None:
    expected = whole(**SHORT)
    calls = number_of_calls(tmp_path, SHORT)
    deaths: list[tuple[str, Callable[[Any], None], Any]] = [
        ("last save", die_in_save, 2),
        ("renaming", die_before_renaming, "step_000001"),
        ("best", die_before_renaming, "best"),
        *((f"at {percent} percent", die_at_call, calls * percent // 100) for percent in (1, 50, 65, 80, 99)),
        ("best", die_in_save, 1),  # begun again, and killed again
    ]
    for folder, arrange, moment in deaths:
        be_killed(tmp_path / folder, arrange, moment, SHORT)
    (torn,) = (tmp_path / "last save" / "checkpoints").glob(".step_000002.*/state.pt")
    assert 0 < torn.stat().st_size < (tmp_path / "uninterrupted/checkpoints/step_000002/state.pt").stat().st_size
    for folder in {folder for folder, _, _ in deaths}:
        assert finish(tmp_path / folder, **SHORT) == expected, folder


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x80
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda folder: os.truncate(folder / "state.pt", 1000),
    "no checksum": lambda folder: (folder / "sha256").unlink(),
    "a bit of the state": lambda folder: flip(folder / "state.pt"),
    "a bit of the checksum": lambda folder: flip(folder / "sha256"),
}


def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(trainer(tmp_path / "whole", checkpoint_every=1), 3)
    for name, damage in DAMAGES.items():
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / name))
        damage(folder / "checkpoints" / "step_000003")
        capsys.readouterr()
        trainer(folder, checkpoint_every=1).resume()
        printed = capsys.readouterr().out
        assert f"{folder / 'checkpoints' / 'step_000003'} is corrupt (checksum mismatch)" in printed
        assert "resuming from step 2" in printed
        for log in ("metrics.jsonl", "samples.jsonl"):
            expected = [line for line in lines(tmp_path / "whole" / log) if line["step"] <= 2]
            assert lines(folder / log) == expected != []


def test_without_an_intact_checkpoint_it_says_so_and_starts_from_the_beginning(
    whole: UninterruptedOutcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(trainer(tmp_path, checkpoint_every=1), 3)
    corrupt = checkpoint.existing(tmp_path / "checkpoints")
    for folder in corrupt:
        flip(folder / "state.pt")
    # A corrupt checkpoint must not push out one that is saved after it, though its step is higher.
    interrupt(trainer(tmp_path, checkpoint_every=1), 1)
    printed = capsys.readouterr().out
    assert [f"{folder} is corrupt" in printed for folder in corrupt] == [True, True]
    assert "starting from the beginning" in printed
    assert {line["step"] for log in ("metrics.jsonl", "samples.jsonl") for line in lines(tmp_path / log)} == {0, 1}
    assert finish(tmp_path, checkpoint_every=1) == whole(checkpoint_every=1)
    assert "resuming from step 1" in capsys.readouterr().out


@pytest.mark.parametrize("left", ["", '{"step": 1}\n{"st', '{"step": 1}\n' + "\0" * 99, '[]\n{"a": 1}\n{"step": 1}'])
def test_a_log_that_lost_lines_is_never_padded(left: str, tmp_path: Path) -> None:
    interrupt(trainer(tmp_path / "run", value_model="shared"), 3)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / "run" / name).write_text(left)
    trainer(tmp_path / "run", value_model="shared").train()
    steps = [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")]
    assert steps == ([1, 4] if "step" in left else [4])


def names(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_log_keeps_texts_with_line_separators_of_unicode(tmp_path: Path) -> None:
    log = tmp_path / "samples.jsonl"
    text = "a\u2028b\x85c\u2029d"
    written = [json.dumps({"step": step, "completion": text}, ensure_ascii=False) + "\n" for step in (1, 2, 2, 3)]
    log.write_text("".join(written), encoding="utf-8")
    checkpoint.truncate_log(log, 2)
    assert log.read_bytes().decode() == "".join(written[:3])


def test_a_checkpoint_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.save_checkpoint()
    state, digest = (tmp_path / "checkpoints" / "step_000000" / name for name in ("state.pt", "sha256"))
    content = torch.load(state, weights_only=True)
    fields = content["train_state"]
    # As the first version saved it, with a field less, and with one more.
    first = {name: value for name, value in content.items() if name != "train_state"} | {
        "step": 0,
        "counters": {"kl_coef": 0.2, "bad_steps": 0},
    }
    fewer = content | {"train_state": {name: value for name, value in fields.items() if name != "kl_coef"}}
    for other in (first, fewer, content | {"train_state": fields | {"momentum": 0.9}}):
        torch.save(other, state)
        digest.write_text(str(content_hash(state)))
        with pytest.raises(UserError) as caught:
            trainer(tmp_path).resume()
        assert str(caught.value) == (
            f"{state.parent}: saved by another version of this project; start over with --force ppo"
        )


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_checkpoints_are_kept_as_asked_for_and_at_every_moment_one(
    count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, remove = tmp_path / "checkpoints", shutil.rmtree

    def watching(path: Path, ignore_errors: bool = False) -> None:
        others = [other for other in checkpoint.existing(folder) if other != path]
        if Path(path).parent == folder and Path(path).exists() and checkpoint.existing(folder):
            assert any(checkpoint.is_intact(other) for other in others), path
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", watching)
    run = trainer(tmp_path, checkpoint_every=1, checkpoints_kept=count)
    for step in range(1, 5):
        run.update(run.rollout(run.batch(step - 1)))
        for _ in range(2):  # a reward that fails right after a checkpoint has it saved again
            run.save_checkpoint()
        assert names(folder) == [f"step_{number:06}" for number in range(max(1, step - count + 1), step + 1)]


@pytest.mark.filterwarnings("ignore::FutureWarning:bitsandbytes", "ignore::UserWarning")
@pytest.mark.parametrize("from_paged", [False, True])
def test_the_moments_of_one_optimizer_go_on_in_the_other(from_paged: bool) -> None:
    weight = torch.nn.Parameter(torch.randn(8, 8))
    paged = PagedAdamW32bit([weight], lr=1e-3)
    plain = torch.optim.AdamW([weight], lr=1e-3)
    first, second = torch.rand(8, 8), torch.rand(8, 8)
    step = torch.tensor(3.0)
    of_paged = {"step": 3, "state1": first, "state2": second}
    of_plain = {"step": step, "exp_avg": first, "exp_avg_sq": second}
    entries = of_paged if from_paged else of_plain
    assert (checkpoint.is_paged(paged), checkpoint.is_paged(plain)) == (True, False)
    for optimizer, expected in ((plain, of_plain), (paged, of_paged)):
        state = checkpoint.moments_like(entries, weight, is_paged=checkpoint.is_paged(optimizer))
        optimizer.load_state_dict(optimizer.state_dict() | {"state": {0: state}})
        loaded = optimizer.state[weight]
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(torch.as_tensor(loaded[name]), torch.as_tensor(expected[name])) for name in expected)
    weight.grad = torch.ones(8, 8)
    plain.step()
    assert plain.state[weight]["step"] == 4


def test_steps_of_any_length_are_resumed_and_removed_in_their_order(tmp_path: Path) -> None:
    run = trainer(tmp_path, checkpoints_kept=2)
    for step in (999_999, 1_000_000, 1_000_001):
        run.state.step = step
        run.save_checkpoint()
    assert names(tmp_path / "checkpoints") == ["step_1000000", "step_1000001"]
    again = trainer(tmp_path)
    again.resume()
    assert again.state.step == 1_000_001
