"""Another reward in an existing run redoes PPO alone, and a run uses the finished stages of another."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_runs import drop, small

from recipes import ppo, reward, sft
from workbench.config.parsing import load_saved, parse
from workbench.config.schema import Config
from workbench.errors import UserError
from workbench.run import cli
from workbench.run.cli import StageResult
from workbench.run.files import content_hash
from workbench.run.folder import Run, check_run, open_run
from workbench.run.reuse import with_reused_settings
from workbench.run.stage_record import Origin

STAGES = [sft.STAGE, reward.STAGE, ppo.STAGE]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a run called quickstart whose SFT and PPO are finished."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(Path(__file__).parent.parent)
        cli.launch([sft.STAGE, ppo.STAGE], "", small("quickstart", folder))
    return folder


def parsed(folder: Path, *options: str) -> Config:
    """Return the configuration of the small quickstart; its reward is trained unless the options name one."""
    return parse([*drop(small("quickstart", folder), "--reward.model"), *options])[0]


def advice(error: pytest.ExceptionInfo[UserError]) -> list[str]:
    """Return the options that the message ends with."""
    return str(error.value).partition(" affected stages with ")[2].split()


def test_another_reward_redoes_ppo_and_nothing_else(finished: Path, in_project: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "quickstart"
    before = {stage: (run / stage / "stage.json").stat().st_mtime_ns for stage in ("sft", "ppo")}
    other = small("quickstart", tmp_path, "--reward.model", "length")
    with pytest.raises(UserError, match=r"reward\.model: 'toy_lexicon' -> 'length'") as refused:
        cli.launch([sft.STAGE, ppo.STAGE], "", other)
    cli.launch([sft.STAGE, ppo.STAGE], "", [*other, *advice(refused)])
    assert (run / "sft" / "stage.json").stat().st_mtime_ns == before["sft"]
    assert (run / "ppo" / "stage.json").stat().st_mtime_ns > before["ppo"]
    assert load_saved(run / "config.yaml").reward.model == "length"


@pytest.mark.parametrize(
    ("options", "stage"),
    [
        (["--reward.options", "{words: [fool]}"], "ppo"),
        (["--reward.sanity_pair", "[a, b]"], "ppo"),
        (["--reward.model", "toy_lexicon"], "ppo"),
        (["--reward.train.learning_rate", "1e-3"], "reward"),
        (["--ppo.kl_coef", "0.5"], "ppo"),
        (["--evaluation.samples", "2"], "evaluation"),
        (["--sft.epochs", "3"], "sft"),
        (["--seed", "3"], "sft"),
    ],
)
def test_the_advice_names_the_first_stage_that_a_change_affects(options: list[str], stage: str, tmp_path: Path) -> None:
    open_run(parsed(tmp_path), force=None)
    changed = parsed(tmp_path, *options)
    with pytest.raises(UserError) as refused:
        check_run(changed, force=None)
    assert advice(refused) == ["--force", stage]
    check_run(changed, force=stage)


def test_a_trained_reward_stays_for_a_swap_back_unless_its_settings_changed(tmp_path: Path) -> None:
    run = open_run(parsed(tmp_path), force=None)
    for stage in ("reward", "ppo"):
        run.stage(stage)
        run.finish(stage, minutes=0, inputs={}, metrics={}, origin=Origin())
    run = open_run(parsed(tmp_path, "--reward.model", "length"), force="ppo")
    assert (run.finished("reward"), run.finished("ppo")) == (True, False)
    assert open_run(parsed(tmp_path), force="ppo").finished("reward")
    changes = ["--reward.model", "length", "--reward.train.learning_rate", "1e-3"]
    assert not open_run(parsed(tmp_path, *changes), force="ppo").finished("reward")


def test_a_run_with_the_sft_of_another_trains_ppo_alone(
    finished: Path, in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    source = tmp_path / "quickstart"
    options = small("quickstart", tmp_path, "--name", "second", "--reuse.sft", str(source))
    cli.launch([sft.STAGE, ppo.STAGE], "", options)
    assert f"sft: reused from {source}" in capsys.readouterr().out
    second = tmp_path / "second"
    record = json.loads((second / "sft" / "stage.json").read_text())
    assert record["reused"] == {"run": str(source), "sha256": content_hash(source / "sft")}
    assert "reused" not in json.loads((source / "sft" / "stage.json").read_text())
    # The same stages from the same weights and seed: PPO is the other run's, bit for bit.
    assert content_hash(second / "ppo") == content_hash(source / "ppo")
    shutil.rmtree(source)
    cli.launch([sft.STAGE, ppo.STAGE], "", options)
    assert "ppo: already finished" in capsys.readouterr().out


def test_a_run_without_an_sft_section_takes_over_the_others(finished: Path, in_project: Path, tmp_path: Path) -> None:
    options = drop(small("quickstart", tmp_path), "--sft.max_steps", "--sft.batch_size", "--sft.data.limit")
    cli.launch([sft.STAGE], "", [*options, "--sft", "null", "--reuse.sft", str(finished / "quickstart")])
    assert load_saved(tmp_path / "quickstart" / "config.yaml").sft == parsed(finished).sft


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy.lora.r", "4"], r"reuse\.sft: policy\.lora is .*r=4.* here, but .*r=16.* they must be equal"),
        (["--sft.max_steps", "9"], r"reuse\.sft: sft\.max_steps is 9 here, but 3 in .*quickstart; use its settings"),
        (["--reuse.reward", "RUN"], r"reuse\.reward: .*quickstart has not finished its reward stage"),
    ],
)
def test_what_cannot_be_reused_is_one_line_before_anything_runs(
    options: list[str], message: str, finished: Path, in_project: Path, tmp_path: Path
) -> None:
    source = str(finished / "quickstart")
    chosen = [source if option == "RUN" else option for option in options]
    with pytest.raises(UserError, match=message) as refused:
        cli.launch(STAGES, "", [*small("quickstart", tmp_path), "--reuse.sft", source, *chosen])
    assert "\n" not in str(refused.value)
    assert os.listdir(tmp_path) == []


def test_a_copy_survives_the_run_it_came_from(finished: Path, in_project: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "first")
    options = small("quickstart", tmp_path / "second", "--reuse.sft", str(tmp_path / "first" / "quickstart"))
    cli.launch([sft.STAGE], "", options)
    expected = content_hash(tmp_path / "second" / "quickstart" / "sft")
    open_run(parse(small("quickstart", tmp_path / "first"))[0], force="sft")
    assert not (tmp_path / "first" / "quickstart" / "sft").exists()
    assert content_hash(tmp_path / "second" / "quickstart" / "sft") == expected


def test_forcing_a_stage_takes_the_settings_of_the_run_that_supplies_it(
    finished: Path, in_project: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    other = small("quickstart", tmp_path, "--name", "other", "--sft.max_steps", "2", "--policy.lora.r", "4")
    cli.launch([sft.STAGE], "", other)
    run, source = tmp_path / "quickstart", tmp_path / "other"
    options = [*small("quickstart", tmp_path), "--reuse.sft", f"{source}/"]
    before = content_hash(run / "sft")
    with pytest.raises(UserError, match=r"policy\.lora is .* they must be equal"):
        cli.launch([sft.STAGE], "", [*options, "--force", "sft"])
    for wrong, message in ((run, "is this run itself"), (tmp_path / "nope", "is not a run folder")):
        with pytest.raises(UserError, match=message):
            cli.launch([sft.STAGE], "", [*small("quickstart", tmp_path), "--reuse.sft", str(wrong), "--force", "sft"])
    assert content_hash(run / "sft") == before, "what was refused loses nothing"
    fitting = [*options, "--policy.lora.r", "4", "--sft.max_steps", "2", "--force", "sft"]
    cli.launch([sft.STAGE], "", fitting)
    saved = load_saved(run / "config.yaml")
    assert (saved.policy.lora.r, saved.sft.max_steps) == (4, 2)
    assert content_hash(run / "sft") == content_hash(source / "sft")
    # The same folder under another spelling is no change.
    check_run(with_reused_settings(parse([*fitting[:-2], "--reuse.sft", f"{tmp_path}/./other"])[0], None), None)


@pytest.mark.parametrize("change", [["--seed", "5"], ["--reuse.reward", "elsewhere"]])
def test_a_trained_reward_is_dropped_where_what_it_depends_on_changes(change: list[str], tmp_path: Path) -> None:
    without_sft = ["--sft", "null", "--reward.model", "length"]
    names = ("--sft.max_steps", "--sft.batch_size", "--sft.data.limit", "--reward.model")
    options = [*drop(small("quickstart", tmp_path), *names), *without_sft]
    run = open_run(parse(options)[0], force=None)
    run.stage("reward")
    run.finish("reward", minutes=0, inputs={}, metrics={}, origin=Origin())
    assert not open_run(parse([*options, *change])[0], force="ppo").finished("reward")


def test_forcing_a_reused_reward_reads_the_run_that_supplies_it(in_project: Path, tmp_path: Path) -> None:
    def run(run: Run, plan: SimpleNamespace) -> StageResult:
        run.stage("reward")
        return StageResult({}, {})

    stage = dataclasses.replace(reward.STAGE, plan=lambda config: SimpleNamespace(lines=[]), run=run)
    names = ("--sft.max_steps", "--sft.batch_size", "--sft.data.limit", "--reward.model")
    options = [*drop(small("quickstart", tmp_path), *names), "--sft", "null"]
    first = [*options, "--name", "first", "--reward.train.learning_rate"]
    mine = [*options, "--name", "mine", "--reward", "null", "--ppo", "null", "--evaluation.models", "{a: b}"]

    def reused_rate(*force: str) -> float:
        cli.launch([stage], "", [*mine, "--reuse.reward", str(tmp_path / "first"), *force])
        assert "reused" in json.loads((tmp_path / "mine" / "reward" / "stage.json").read_text())
        return load_saved(tmp_path / "mine" / "config.yaml").reward.train.learning_rate

    cli.launch([stage], "", [*first, "1e-3"])
    assert reused_rate() == 1e-3
    cli.launch([stage], "", [*first, "5e-3", "--force", "reward"])
    assert reused_rate() == 1e-3, "the copy is this run's own"
    assert reused_rate("--force", "reward") == 5e-3


def test_a_linked_file_of_a_reused_stage_is_what_the_link_leads_to(
    finished: Path, in_project: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    source = tmp_path / "quickstart"
    weights = source / "sft" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.rename(source / "weights")
    weights.symlink_to("../weights")
    cli.launch([sft.STAGE], "", small("quickstart", tmp_path, "--name", "second", "--reuse.sft", str(source)))
    copy = tmp_path / "second" / "sft" / weights.name
    assert not copy.is_symlink()
    assert copy.read_bytes() == content
