"""The loop around the stages: what is planned, what runs, what is skipped, and with which exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from configs import GOOD

from workbench.config.schema import Config
from workbench.errors import Failed, Interrupted, UserError
from workbench.run import cli, distributed
from workbench.run.cli import Stage, StageResult
from workbench.run.distributed import planned_on_cpu, process_device
from workbench.run.folder import Run

ACCELERATE = Path(__file__).resolve().parent.parent / "recipes" / "accelerate"


@pytest.mark.parametrize("file", sorted(ACCELERATE.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_accepts_every_configuration_and_its_own_launch_line(file: Path) -> None:
    commands = re.findall(r"^#   accelerate launch (.*) --config \.\.\.$", file.read_text(), re.MULTILINE)
    assert len(commands) == (2 if file.stem == "two_machines" else 1)
    for rank, command in enumerate(commands):
        words = command.replace("recipes/accelerate", str(ACCELERATE)).split()
        arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        assert arguments.module
        assert arguments.training_script == "recipes.detox"
        assert arguments.config_file == str(file)
        assert arguments.mixed_precision == "no"
        assert (arguments.multi_gpu, arguments.use_fsdp) == (
            file.stem in ("multi_gpu", "two_machines"),
            file.stem == "fsdp2",
        )
        assert (arguments.num_machines, arguments.machine_rank) == ((2, rank) if len(commands) == 2 else (1, 0))
        if arguments.use_fsdp:
            variables = prepare_multi_gpu_env(arguments)
            assert (variables["ACCELERATE_USE_FSDP"], variables["FSDP_VERSION"]) == ("true", "2")
            assert variables["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_waiting_threads_give_their_core_away_before_torch_starts_them() -> None:
    program = (
        "import os, sys\n"
        "import recipes.detox, workbench.run.process as process\n"
        "def recipe(argv):\n"
        "    assert 'torch' not in sys.modules, 'it would have read the variable'\n"
        "    print(os.environ['OMP_WAIT_POLICY'])\n"
        "process.run_recipe(recipe)\n"
    )
    for chosen, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"} | chosen
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


@dataclass
class RecordedPlan:
    """A plan with one line."""

    lines: list[str]


@dataclass
class Recorder:
    """Makes stages that record what happens to them."""

    folder: Path
    events: list[str] = field(default_factory=list)
    plans: dict[str, list[RecordedPlan]] = field(default_factory=dict)

    def stage(self, name: str, failing: str = "") -> Stage:
        """Return a stage that fails while it is planned, or runs, where `failing` says so."""

        def plan(config: Config) -> RecordedPlan:
            self.events.append(f"plan {name}")
            if failing == "plan":
                raise UserError(f"{name}.key: wrong")
            self.plans.setdefault(name, []).append(RecordedPlan([f"seed {config.seed}"]))
            return self.plans[name][-1]

        def run(run: Run, plan: RecordedPlan) -> StageResult:
            self.events.append(f"run {name}")
            if failing == "run":
                raise UserError(f"{name}: broken")
            assert len(self.plans[name]) == 1, "everything is loaded once"
            assert plan is self.plans[name][0]
            run.stage(name)
            return StageResult({"data": "x"}, {"loss": 0.5})

        def failure(run: Run) -> str | None:
            return f"{name} is worse" if failing == "result" else None

        return Stage(name, lambda config: True, plan, run, failure, lambda run: ["what was found"])

    def launch(self, stages: list[Stage], *options: str) -> list[str]:
        """Run the stages and return what happened."""
        self.events.clear()
        self.plans.clear()
        file = self.folder / "launch.yaml"
        file.write_text(GOOD)
        cli.launch(stages, "", ["--config", str(file), "--runs", str(self.folder / "runs"), *options])
        return self.events.copy()


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    """A recorder with run folders of its own."""
    return Recorder(tmp_path)


def test_everything_is_planned_before_anything_runs_and_each_plan_is_used(
    recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    events = recorder.launch([recorder.stage("reward"), recorder.stage("ppo")])
    assert events == ["plan reward", "plan ppo", "run reward", "run ppo"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" in ")[0] for line in lines] == [
        "reward: seed 0",
        "reward: finished",
        "ppo: seed 0",
        "ppo: finished",
    ], "a plan is printed when its stage starts"


def test_a_finished_stage_is_neither_planned_nor_run_again(
    recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [recorder.stage("sft"), recorder.stage("ppo")]
    recorder.launch(stages[:1])
    capsys.readouterr()
    assert recorder.launch(stages) == ["plan ppo", "run ppo"]
    assert "sft: already finished, skipping (--force sft redoes it)\nsft: what was found\n" in capsys.readouterr().out
    assert recorder.launch(stages) == []
    assert recorder.launch(stages, "--force", "ppo") == ["plan ppo", "run ppo"]
    assert recorder.launch(stages, "--force", "sft") == ["plan sft", "plan ppo", "run sft", "run ppo"]


def test_forcing_a_reward_that_is_not_trained_redoes_ppo(recorder: Recorder) -> None:
    stages = [recorder.stage("sft"), recorder.stage("ppo")]
    recorder.launch(stages)
    assert recorder.launch(stages, "--force", "reward", "--reward.model", "length") == ["plan ppo", "run ppo"]


def test_a_mistake_in_a_plan_ends_the_command_before_anything_is_written(recorder: Recorder) -> None:
    with pytest.raises(UserError, match=r"ppo\.key: wrong"):
        recorder.launch([recorder.stage("reward"), recorder.stage("ppo", failing="plan")])
    assert recorder.events == ["plan reward", "plan ppo"]
    assert not (recorder.folder / "runs").exists()


def test_a_dry_run_plans_finished_stages_too_and_writes_nothing(
    recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [recorder.stage("reward"), recorder.stage("ppo")]
    assert recorder.launch(stages, "--dry_run") == ["plan reward", "plan ppo"]
    assert capsys.readouterr().out == "reward: seed 0\nppo: seed 0\n"
    assert not (recorder.folder / "runs").exists()
    recorder.launch(stages)
    with pytest.raises(UserError, match="seed: 0 -> 5"):
        recorder.launch(stages, "--dry_run", "--seed", "5")
    assert recorder.events == [], "what the run would refuse is refused before any plan"
    forced = ["--force", "ppo", "--seed", "5"]
    assert recorder.launch(stages, "--dry_run", *forced) == ["plan reward", "plan ppo"]


def test_a_stage_that_fails_is_not_finished_and_the_next_command_redoes_it_alone(recorder: Recorder) -> None:
    with pytest.raises(UserError, match="ppo: broken"):
        recorder.launch([recorder.stage("reward"), recorder.stage("ppo", failing="run")])
    assert recorder.launch([recorder.stage("reward"), recorder.stage("ppo")]) == ["plan ppo", "run ppo"]


def test_a_result_that_the_configuration_refuses_fails_also_when_the_stage_is_skipped(recorder: Recorder) -> None:
    for events in (["plan ppo", "run ppo"], []):
        with pytest.raises(Failed, match="ppo is worse"):
            recorder.launch([recorder.stage("ppo", failing="result")])
        assert recorder.events == events


def test_a_stage_that_is_not_there_is_named(recorder: Recorder) -> None:
    missing = Stage("sft", lambda config: False, lambda config: None, lambda run, plan: StageResult({}, {}))
    with pytest.raises(UserError, match="sft: the configuration has no such stage"):
        recorder.launch([missing])
    with pytest.raises(UserError, match=r"--force sft: the configuration has no such stage; it has ppo, evaluation"):
        recorder.launch([missing, recorder.stage("ppo")], "--force", "sft")
    with pytest.raises(UserError, match=r"--force ppo: this command runs reward; use recipes\.ppo or recipes\.detox"):
        recorder.launch([recorder.stage("reward")], "--force", "ppo")


def test_a_tracker_that_is_not_installed_is_named(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="track: wandb is not installed: python -m pip install wandb"):
        recorder.launch([recorder.stage("ppo")], "--track", "wandb")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (UserError("ppo.steps: 0 must be at least 1"), 2, "error: ppo.steps: 0 must be at least 1\n"),
        (Failed("worse"), 1, "failed: worse\n"),
        (Interrupted("stopped at step 3"), 130, "stopped at step 3. To resume, run the same command again: python -m"),
        (KeyboardInterrupt(), 130, "stopped; progress up to the last checkpoint is saved. To resume, run the same"),
    ],
)
def test_the_exit_code_and_the_last_line(
    error: BaseException | None,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def launch(*arguments: object) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(cli, "launch", launch)
    monkeypatch.setattr(sys, "argv", ["recipes/ppo.py", "--seed", "1"])
    with pytest.raises(SystemExit) as exit_:
        cli.main([], "")
    assert exit_.value.code == code
    assert capsys.readouterr().err.startswith(line)


LAUNCHER = """
import subprocess, sys
child = '''
import time
from workbench.run.process import follow_launcher
follow_launcher()
print("started", flush=True)
time.sleep(60)
'''
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
print(process.stdout.readline(), flush=True)  # only then does this launcher end, and not its child
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no parent that takes over")
@pytest.mark.parametrize(("variables", "ends"), [({"ACCELERATE_DYNAMO_BACKEND": "NO"}, True), ({}, False)])
def test_a_recipe_ends_with_its_launcher_and_not_with_a_shell(variables: dict[str, str], ends: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_DYNAMO_BACKEND"}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, env=environment | variables, start_new_session=True
    )
    assert launcher.stdout is not None
    with launcher.stdout as lines:
        assert lines.readline() == b"started\n"
    launcher.wait(timeout=30)
    # The child has the same standard error; its process group has members as long as it lives.
    deadline = time.monotonic() + (20 if ends else 3)
    while time.monotonic() < deadline and is_alive(launcher.pid):
        time.sleep(0.1)
    assert is_alive(launcher.pid) == (not ends)
    if not ends:
        os.killpg(launcher.pid, signal.SIGKILL)


def is_alive(group: int) -> bool:
    """Return whether a process group has a member."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_plan_stays_off_the_gpus_and_a_run_uses_the_one_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "has_gpus", lambda: True)
    for rank in ("0", "3"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with planned_on_cpu():
            assert process_device() == process_device("cuda:1") == torch.device("cpu")
        assert process_device() == torch.device("cuda", int(rank))
        assert process_device("cuda:1") == torch.device("cuda", 1)
    monkeypatch.setattr(distributed, "has_gpus", lambda: False)
    assert process_device() == torch.device("cpu")


def test_stages_are_planned_on_the_cpu(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "has_gpus", lambda: True)
    devices: dict[str, str] = {}

    def stage(recorded: Stage) -> Stage:
        def plan(config: Config) -> object:
            devices["plan"] = process_device().type
            return recorded.plan(config)

        def run(run: Run, plan: RecordedPlan) -> StageResult:
            devices["run"] = process_device().type
            return recorded.run(run, plan)

        return replace(recorded, plan=plan, run=run)

    recorder.launch([stage(recorder.stage("ppo"))], "--dry_run")
    assert devices == {"plan": "cpu"}
    recorder.launch([stage(recorder.stage("ppo"))])
    assert devices == {"plan": "cpu", "run": "cuda"}
