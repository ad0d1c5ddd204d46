"""A PPO run that was stopped, killed or damaged goes on, bit for bit, to what it would have been."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel, get_peft_model_state_dict

from recipes import ppo
from workbench import cli
from workbench.config import DataSource, PPOConfig
from workbench.errors import Interrupted, RewardError
from workbench.ppo import checkpoint
from workbench.ppo.rollout import Rollout
from workbench.ppo.trainer import PPOTrainer
from workbench.rewards import checked

both = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
either = pytest.mark.parametrize("lora", [True, False])

# Everything that carries state from step to step is on; the last step is no multiple of checkpoint_every.
CONFIG = PPOConfig(
    data=DataSource(path="unused"),
    steps=4,
    batch_size=4,
    minibatch_size=2,
    epochs=1,
    learning_rate=1e-2,
    kl_coef=0.2,
    kl_target=0.5,
    kl_horizon=25,
    score_samples=8,
    max_new_tokens=5,
    min_token_limit=2,
    checkpoint_every=3,
    value_model="separate",
)


def paid(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """A countable reward with noise from the generators that a run does not seed by step."""
    return [text.count("e") + 0.1 * random.random() + 0.1 * numpy.random.random() for text in completions]


def trainer(folder: Path, architecture: str = "gpt2", *, lora: bool = True, **changes: Any) -> PPOTrainer:
    """A trainer that answers prompts of different lengths; like a recipe, it starts from one seed every time."""
    config = dataclasses.replace(CONFIG, **changes)
    tokenizer = tiny.tokenizer(architecture)
    texts = [f"{'ab' * (i % 4)} {chr(97 + i % 26)}:" for i in range(24)]
    rows = [{"prompt": text, "prompt_ids": tokenizer(text).input_ids} for text in texts]
    folder.mkdir(parents=True, exist_ok=True)
    run = PPOTrainer(
        tiny.policy(architecture, lora=lora, separate=config.value_model == "separate"),
        tokenizer,
        checked(paid, "test"),
        rows,
        config,
        accelerator=Accelerator(cpu=True),
        folder=folder,
        seed=0,
        validation_rows=rows[:4],
    )
    set_seed(1)
    return run


def interrupt(run: PPOTrainer, step: int, number: int = signal.SIGINT) -> None:
    """Train until a signal, sent at work on `step`, stops the run."""
    update = run.update

    def updating(rollout: Rollout) -> dict[str, float]:
        if run.step == step - 1:
            os.kill(os.getpid(), number)
        return update(rollout)

    run.update = updating
    with pytest.raises(Interrupted, match=f"saved at step {step} of {run.config.steps}"):
        run.train()


def lines(file: Path) -> list[dict[str, Any]]:
    """Of a log, without what a clock says."""
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("seconds/") and "_per_s" not in k} for line in found]


def digest(folder: Path) -> str:
    """Hash of the weight files in a folder."""
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def outcome(run: PPOTrainer) -> dict[str, Any]:
    """Everything that a run leaves."""
    trained = {n: p.detach().numpy().tobytes() for n, p in run.unwrapped.named_parameters() if p.requires_grad}
    return {
        "metrics": lines(run.folder / "metrics.jsonl"),
        "samples": (run.folder / "samples.jsonl").read_text(),
        "weights": {name: hashlib.sha256(value).hexdigest() for name, value in trained.items()},
        "best": digest(run.folder / "best"),
    }


Whole = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What uninterrupted runs leave, each made once."""
    known: dict[str, dict[str, Any]] = {}

    def outcome_of(*arguments: Any, **options: Any) -> dict[str, Any]:
        key = repr((arguments, sorted(options.items())))
        if key not in known:
            run = trainer(tmp_path_factory.mktemp("runs") / "whole", *arguments, **options)
            run.train()
            known[key] = outcome(run)
        return known[key]

    return outcome_of


def finish(folder: Path, *arguments: Any, **options: Any) -> dict[str, Any]:
    """What a run that was begun in `folder` leaves at its end."""
    run = trainer(folder, *arguments, **options)
    run.train()
    assert not list(folder.rglob(".*")), "nothing half written is left"
    return outcome(run)


@both
@either
def test_a_signal_at_any_step_changes_nothing(architecture: str, lora: bool, whole: Whole, tmp_path: Path) -> None:
    expected = whole(architecture, lora=lora)
    assert [line["step"] for line in expected["metrics"]] == [1, 2, 3, 4]
    assert len({line["objective/kl_coef"] for line in expected["metrics"]}) == 4
    assert [line["step"] for line in expected["metrics"] if "validation/objective" in line] == [3, 4]
    for step in range(1, CONFIG.steps):
        interrupt(trainer(tmp_path / str(step), architecture, lora=lora), step, signal.SIGINT)
        assert finish(tmp_path / str(step), architecture, lora=lora) == expected, step
        interrupt(trainer(tmp_path / "every", architecture, lora=lora), step, signal.SIGTERM)
    assert finish(tmp_path / "every", architecture, lora=lora) == expected


@pytest.mark.parametrize("steps", [2, CONFIG.checkpoint_every, CONFIG.steps])  # a rollout, and both validations
def test_a_reward_that_fails_changes_nothing_either(steps: int, whole: Whole, tmp_path: Path) -> None:
    def fail_at(run: PPOTrainer) -> None:
        inner = run.reward

        def failing(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
            scores = inner(prompts, completions, **columns)
            if run.step == steps:
                raise RewardError("the scorer did not answer")
            return scores

        run.reward = checked(failing, "failing")
        with pytest.raises(RewardError):
            run.train()

    for _ in range(2):  # the second time right after it went on
        fail_at(trainer(tmp_path))
    assert finish(tmp_path) == whole()


def test_a_validation_made_up_for_and_lost_again_is_made_up_for_again(whole: Whole, tmp_path: Path) -> None:
    def unanswered(*arguments: Any) -> None:
        raise RewardError("the scorer did not answer")

    for call, logged in (("answer_validation", [1, 2]), ("rollout", [1, 2, 3])):
        run = trainer(tmp_path)
        setattr(run, call, unanswered)
        with pytest.raises(RewardError):
            run.train()
        assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == logged
    assert finish(tmp_path) == whole()


@both
@either
def test_best_is_the_policy_of_the_highest_objective_and_loads_without_this_project(
    architecture: str, lora: bool, tmp_path: Path
) -> None:
    # A penalty that outweighs the reward: the further the policy goes, the worse.
    changes = {"checkpoint_every": 1, "kl_coef": 50.0, "kl_target": None, "learning_rate": 3e-2, "score_samples": 0}
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def watched(folder: Path) -> PPOTrainer:
        run = trainer(folder, architecture, lora=lora, **changes)
        look = run.look

        def looking(*arguments: Any) -> Any:
            model = run.unwrapped.model
            state = get_peft_model_state_dict(model, adapter_name="policy") if lora else model.state_dict()
            kept[run.step] = {name: value.clone() for name, value in state.items()}
            return look(*arguments)

        run.look = looking
        return run

    watched(tmp_path / "whole").train()
    objectives = [line["validation/objective"] for line in lines(tmp_path / "whole" / "metrics.jsonl")]
    step = objectives.index(max(objectives)) + 1
    assert step < CONFIG.steps, objectives
    base, folder = tiny.model(architecture), tmp_path / "whole" / "best"
    if lora:
        loaded = get_peft_model_state_dict(PeftModel.from_pretrained(base, folder))
    else:
        loaded = type(base).from_pretrained(folder).state_dict()
    assert loaded.keys() == kept[step].keys()
    assert all(torch.equal(loaded[name], kept[step][name]) for name in loaded)
    assert any(not torch.equal(loaded[name], kept[step + 1][name]) for name in loaded)
    interrupt(watched(tmp_path / "stopped"), step)
    watched(tmp_path / "stopped").train()
    assert digest(tmp_path / "stopped" / "best") == digest(folder)


def die(*arguments: Any) -> None:
    """Leave as a process does that is killed from outside."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_save(nth: int) -> None:
    """From now on, half of the `nth` checkpoint is written before the process is gone."""
    save, files = torch.save, []

    def half(state: Any, file: Path) -> None:
        files.append(file)
        save(state, file)
        if len(files) == nth:
            os.truncate(file, file.stat().st_size // 2)
            die()

    torch.save = half


def die_before_renaming(name: str) -> None:
    """From now on, a folder is whole under its temporary name when the process is gone."""
    replace = os.replace
    os.replace = lambda source, target: (die if Path(target).name == name else replace)(source, target)


def die_at_call(nth: int) -> None:
    """The process is gone at its `nth` call of a function, or return from one."""
    left = iter(range(nth))
    sys.setprofile(lambda *event: None if next(left, None) is not None else die())


def be_killed(root: Path, deaths: list[tuple[str, str, Any]]) -> None:
    """For each (folder, function, argument) a process that trains until it is killed as the function arranges."""
    for folder, function, argument in deaths:
        child = os.fork()
        if child == 0:
            run = trainer(root / folder)
            globals()[function](argument)
            run.train()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, (folder, function)


def test_a_process_killed_at_any_moment_changes_nothing(tmp_path: Path) -> None:
    run, calls, moments = trainer(tmp_path / "counted"), itertools.count(), random.Random(0)
    sys.setprofile(lambda *event: next(calls))
    run.train()
    sys.setprofile(None)
    expected, total = outcome(run), next(calls)
    deaths: list[tuple[str, str, Any]] = [
        ("last save", "die_in_save", 2),
        ("renaming", "die_before_renaming", "step_000003"),
        ("best", "die_before_renaming", "best"),
        *((f"random {i}", "die_at_call", moments.randrange(total)) for i in range(2)),
        ("best", "die_in_save", 1),  # begun again, and killed again
    ]
    code = f"import pathlib, test_resume; test_resume.be_killed(pathlib.Path({str(tmp_path)!r}), {deaths})"
    tests = Path(__file__).parent
    paths = {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | paths, check=True, timeout=120)
    (torn,) = (tmp_path / "last save" / "checkpoints").glob(".step_000004.*/state.pt")
    assert 0 < torn.stat().st_size < (tmp_path / "counted" / "checkpoints/step_000004/state.pt").stat().st_size
    for folder in {folder for folder, _, _ in deaths}:
        assert finish(tmp_path / folder) == expected, folder


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x80
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda place: os.truncate(place / "state.pt", 1000),
    "no checksum": lambda place: (place / "sha256").unlink(),
    "a bit of the state": lambda place: flip(place / "state.pt"),
    "a bit of the checksum": lambda place: flip(place / "sha256"),
}


def test_a_torn_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(trainer(tmp_path / "whole", checkpoint_every=1), 3)
    for name, damage in DAMAGES.items():
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / name))
        damage(folder / "checkpoints" / "step_000003")
        capsys.readouterr()
        trainer(folder, checkpoint_every=1).resume()
        printed = capsys.readouterr().out
        assert f"{folder / 'checkpoints' / 'step_000003'} is torn" in printed
        assert "going on from step 2" in printed
        for log in ("metrics.jsonl", "samples.jsonl"):
            kept = [line for line in lines(tmp_path / "whole" / log) if line["step"] <= 2]
            assert lines(folder / log) == kept != []


def test_without_a_whole_checkpoint_it_says_so_and_starts_from_the_beginning(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(trainer(tmp_path, checkpoint_every=1), 3)
    places = checkpoint.existing(tmp_path / "checkpoints")
    for place in places:
        flip(place / "state.pt")
    # What is torn must not push out what is saved after it, though its step is higher.
    interrupt(trainer(tmp_path, checkpoint_every=1), 1)
    printed = capsys.readouterr().out
    assert [f"{place} is torn" in printed for place in places] == [True, True]
    assert "starting from the beginning" in printed
    assert {line["step"] for log in ("metrics.jsonl", "samples.jsonl") for line in lines(tmp_path / log)} == {1}
    assert finish(tmp_path, checkpoint_every=1) == whole(checkpoint_every=1)
    assert "going on from step 1" in capsys.readouterr().out


@pytest.mark.parametrize("left", ["", '{"step": 1}\n{"st', '{"step": 1}\n' + "\0" * 99, '[]\n{"a": 1}\n{"step": 1}'])
def test_a_log_that_lost_lines_is_never_padded(left: str, tmp_path: Path) -> None:
    interrupt(trainer(tmp_path / "run", value_model="shared"), 3)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / "run" / name).write_text(left)
    trainer(tmp_path / "run", value_model="shared").train()
    steps = [line["step"] for line in lines(tmp_path / "run" / "metrics.jsonl")]
    assert steps == ([1, 4] if "step" in left else [4])


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_log_keeps_texts_with_line_separators_of_unicode(tmp_path: Path) -> None:
    log = tmp_path / "samples.jsonl"
    text = "a\u2028b\x85c\u2029d"
    written = [json.dumps({"step": step, "completion": text}, ensure_ascii=False) + "\n" for step in (1, 2, 2, 3)]
    log.write_text("".join(written), encoding="utf-8")
    checkpoint.forget_after(log, 2)
    assert log.read_bytes().decode() == "".join(written[:3])


@pytest.mark.parametrize("kept", [1, 3])
def test_as_many_checkpoints_are_kept_as_asked_for_and_at_every_moment_one(
    kept: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, remove = tmp_path / "checkpoints", shutil.rmtree

    def watching(path: Path, ignore_errors: bool = False) -> None:
        others = [place for place in checkpoint.existing(folder) if place != path]
        if Path(path).parent == folder and Path(path).exists() and checkpoint.existing(folder):
            assert any(checkpoint.is_whole(place) for place in others), path
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", watching)
    run = trainer(tmp_path, checkpoint_every=1, checkpoints_kept=kept)
    for step in range(1, 5):
        run.update(run.rollout(run.batch(step - 1)))
        for _ in range(2):  # a reward that fails right after a checkpoint has it saved again
            run.save_checkpoint()
        assert names(folder) == [f"step_{number:06}" for number in range(max(1, step - kept + 1), step + 1)]


signalled_at: int | None = None
"""The call of `paid_or_stopped` at which a signal arrives."""


def paid_or_stopped(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """The reward as a recipe finds it by its name."""
    global signalled_at
    if signalled_at is not None:
        signalled_at -= 1
        if signalled_at == 0:
            os.kill(os.getpid(), signal.SIGTERM)
    return paid(prompts, completions)


def test_the_recipe_goes_on_to_the_same_files(
    in_project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts, config = tmp_path / "prompts.jsonl", tmp_path / "config.yaml"
    texts.write_text("".join(json.dumps({"prompt": f"Anna: hello {i}"}) + "\n" for i in range(12)))
    same = ("steps", "batch_size", "minibatch_size", "checkpoint_every", "kl_target", "max_new_tokens", "value_model")
    ppo_settings = {name: getattr(CONFIG, name) for name in same} | {"data": {"path": str(texts)}}
    ppo_settings["validation"] = {"path": str(texts), "limit": 4}
    policy, reward = {"model": "embedded:gpt2", "lora": {"r": 4, "alpha": 8}}, {"model": "test_resume:paid_or_stopped"}
    rest = {"evaluation": {"data": {"test": {"path": str(texts)}}}}
    config.write_text(json.dumps({"name": "run", "policy": policy, "reward": reward, "ppo": ppo_settings} | rest))

    def launch(runs: str) -> Path:
        cli.launch([ppo.STAGE], "", ["--config", str(config), "--runs", str(tmp_path / runs)])
        return tmp_path / runs / "run" / "ppo"

    expected = launch("whole")
    monkeypatch.setattr(sys.modules[__name__], "signalled_at", 2)
    with pytest.raises(Interrupted, match="saved at step 2 of 4"):
        launch("stopped")
    found = launch("stopped")
    files = [path.relative_to(expected) for path in expected.rglob("*.safetensors")]
    assert {"best", "value", "adapter_model.safetensors"} <= {file.parts[0] for file in files}
    assert [file for file in files if (found / file).read_bytes() != (expected / file).read_bytes()] == []
    assert lines(found / "metrics.jsonl") == lines(expected / "metrics.jsonl")
