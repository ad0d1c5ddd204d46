"""A stage that something interrupted resumes on what it began with, and its record names that."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from safetensors.torch import load_file, save_file
from sharded_processes import stopped_after
from small_runs import record_files, small
from tiny_data import write

from recipes import evaluation, ppo, reward, sft
from workbench import toy
from workbench.config.parsing import parse
from workbench.config.schema import Config, Scorer
from workbench.errors import Interrupted, UserError
from workbench.evaluation import pipeline
from workbench.evaluation.results_files import read_results
from workbench.run import cli
from workbench.run.files import content_hash
from workbench.run.folder import Run
from workbench.run.model_sources import model_hashes
from workbench.run.stage_record import BEGUN, read_record, write_record

NAME = "quickstart_gpt2"
STAGES = [sft.STAGE, reward.STAGE, ppo.STAGE]
TRAINED_REWARD = ("--reward.model", "null", "--reward.train.data.limit", "640")


def launch(folder: Path, *options: str) -> Path:
    """Run SFT, the trained reward and PPO; return the run's folder."""
    cli.launch(STAGES, "", small(NAME, folder, *TRAINED_REWARD, *options))
    return folder / NAME


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs in which PPO has checkpoints and is not finished."""
    folder = tmp_path_factory.mktemp("interrupted")
    killed = mock.patch("workbench.ppo.policy_files.save_policy", side_effect=SystemExit("killed"))
    with killed, pytest.raises(SystemExit, match="killed"):
        launch(folder)
    return folder


@pytest.fixture
def runs(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of the interrupted run."""
    return Path(shutil.copytree(interrupted, tmp_path / "runs"))


def replace_weights(stage: Path) -> None:
    """Leave other weights in a finished stage, as a training on another machine would."""
    (file,) = stage.glob("*model.safetensors")
    save_file({name: value * 1.01 for name, value in load_file(file).items()}, file, {"format": "pt"})
    record_files(stage)


def test_a_resumed_stage_is_sealed_as_what_it_began_with(runs: Path) -> None:
    begun = read_record(runs / NAME / "ppo", BEGUN)
    assert set(begun) == {"made_from", "data", "models"}
    assert set(begun["made_from"]) == {"sft", "reward"}
    digest = content_hash(runs / NAME / "sft")
    record = read_record(launch(runs) / "ppo")
    assert {name: record[name] for name in begun} == begun
    assert BEGUN not in record["files"]
    (runs / NAME / "sft" / BEGUN).unlink()
    assert content_hash(runs / NAME / "sft") == digest, "it is no part of the model"


@pytest.mark.parametrize("earlier", ["sft", "reward"])
@pytest.mark.parametrize("is_finished", [False, True])
def test_ppo_is_not_resumed_on_another_sft_or_reward(earlier: str, is_finished: bool, runs: Path) -> None:
    if is_finished:
        (launch(runs) / "ppo" / "stage.json").unlink()
    replace_weights(runs / NAME / earlier)
    line = rf"{runs / NAME / 'ppo'}: made from another {earlier} than .*; redo it with --force ppo, or restore that"
    for options in ([], ["--dry_run"]):
        with pytest.raises(UserError, match=line):
            launch(runs, *options)
    before = read_record(runs / NAME / "ppo", BEGUN)["made_from"]
    record = read_record(launch(runs, "--force", "ppo") / "ppo")
    assert record["made_from"][earlier] != before[earlier]


def test_an_earlier_stage_that_comes_out_otherwise_is_noticed_when_the_later_one_goes_on(runs: Path) -> None:
    ppo_folder = runs / NAME / "ppo"
    shutil.rmtree(runs / NAME / "sft")
    write_record(ppo_folder, read_record(ppo_folder, BEGUN) | {"made_from": {"sft": "0" * 64}}, BEGUN)
    with pytest.raises(UserError, match="ppo: made from another sft"):
        launch(runs)
    assert (runs / NAME / "sft" / "stage.json").is_file(), "what was trained stays"


@pytest.mark.parametrize("how", ["empty", "another bit", "no checksum"])
def test_a_corrupt_note_is_one_line(how: str, runs: Path) -> None:
    file = runs / NAME / "ppo" / BEGUN
    record = json.loads(file.read_text())
    changed = {"empty": "", "another bit": file.read_text().replace('"sft"', '"sgt"', 1)}
    file.write_text(changed.get(how, json.dumps({name: record[name] for name in record if name != "sha256"})))
    with pytest.raises(UserError, match=f"{file}: corrupt; redo the stage with --force ppo"):
        launch(runs)


def test_checkpoints_of_an_earlier_version_are_resumed_with_a_warning(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / NAME / "ppo" / BEGUN).unlink()
    launch(runs)
    output = capsys.readouterr().out
    assert f"ppo: warning: {runs / NAME / 'ppo'} does not say what its checkpoints are made from" in output
    assert "ppo: resuming from step 2" in output


def rows(count: int) -> list[dict[str, str]]:
    """Return dialogues with summaries."""
    return [{"dialogue": f"Anna: hello {number}", "summary": "Anna says hello."} for number in range(count)]


def with_data(folder: Path, key: str, file: Path) -> list[str]:
    """Return options of a run that reads a file."""
    return small(NAME, folder, key, json.dumps({"path": str(file), "template": "{dialogue}"}))


def test_data_that_changed_since_a_stage_began_is_not_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write(file, rows(16))
    options = with_data(tmp_path, "--sft.data", file)
    with stopped_after(1), pytest.raises(Interrupted):
        cli.launch([sft.STAGE], "", options)
    write(file, rows(17))
    line = rf"sft\.data: {file} has changed since stage sft of .* began; restore it, .* or start over with --force sft"
    for extra in ([], ["--dry_run"]):
        with pytest.raises(UserError, match=line):
            cli.launch([sft.STAGE], "", [*options, *extra])
    write(file, rows(16))
    cli.launch([sft.STAGE], "", options)
    record = read_record(tmp_path / NAME / "sft")
    assert record["data"]["sft.data"]["sha256"] == content_hash(file)


def test_data_that_changes_while_an_earlier_stage_trains_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write(file, rows(16))

    def run(run: Run, plan: Any) -> cli.StageResult:
        write(file, rows(17))
        return sft.STAGE.run(run, plan)

    stages = [dataclasses.replace(sft.STAGE, run=run), ppo.STAGE]
    options = with_data(tmp_path, "--ppo.data", file)
    with pytest.raises(
        UserError, match=rf"ppo\.data: {file} has changed since its rows were read; run the same command again"
    ):
        cli.launch(stages, "", options)
    assert not (tmp_path / NAME / "ppo" / BEGUN).exists()
    cli.launch([sft.STAGE, ppo.STAGE], "", options)
    assert read_record(tmp_path / NAME / "ppo")["data"]["ppo.data"]["sha256"] == content_hash(file)


def test_data_that_changes_while_it_is_planned_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write(file, rows(16))

    def plan(config: Config) -> Any:
        planned = sft.STAGE.plan(config)
        write(file, rows(17))
        return planned

    with pytest.raises(UserError, match="has changed since its rows were read"):
        cli.launch([dataclasses.replace(sft.STAGE, plan=plan)], "", with_data(tmp_path, "--sft.data", file))


def test_an_evaluation_names_the_data_that_it_read(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write(file, rows(16))
    before, sample = content_hash(file), pipeline.sample_models

    def sampling(*arguments: Any) -> Any:
        write(file, rows(17))
        return sample(*arguments)

    sets = ["--evaluation.data", json.dumps({"test": {"path": str(file), "template": "{dialogue}"}})]
    run = launch(runs)
    with mock.patch.object(pipeline, "sample_models", sampling):
        cli.launch([evaluation.STAGE], "", small(NAME, runs, *TRAINED_REWARD, *sets, "--force", "evaluation"))
    sources = read_results(run / "evaluation" / "results.json").provenance.sources
    assert [source.sha256 for source in sources if source.kind == "data"] == [before]
    assert read_record(run / "evaluation")["data"]["evaluation.data.test"]["sha256"] == before


def local_base(folder: Path) -> Path:
    """Return a copy of the toy model's folder."""
    return Path(shutil.copytree(toy.model_folder("gpt2"), folder))


def test_a_base_that_changed_since_a_stage_began_is_not_trained_on(tmp_path: Path) -> None:
    base = local_base(tmp_path / "base")
    options = small(NAME, tmp_path, "--policy.model", str(base))
    with stopped_after(1), pytest.raises(Interrupted):
        cli.launch([sft.STAGE], "", options)
    weights = (base / "model.safetensors").read_bytes()
    file = base / "model.safetensors"
    save_file({name: value * 1.01 for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"policy\.model: {base} has changed since stage sft .* --force sft"):
        cli.launch([sft.STAGE], "", options)
    file.write_bytes(weights)
    cli.launch([sft.STAGE], "", options)
    assert read_record(tmp_path / NAME / "sft")["models"] == {
        "policy.model": {"path": str(base), "sha256": content_hash(base)}
    }


def test_local_models_of_a_reward_are_hashed_and_its_words_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = local_base(tmp_path / "classifier")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "list.txt").write_text("idiot")
    members = {"members": [{"model": str(base)}, "toy_lexicon", {"model": "lexicon", "options": {"words": ["words"]}}]}
    options = ["--reward.model", "ensemble", "--reward.options", json.dumps(members), "--reward.train", "null"]
    config = parse(small(NAME, tmp_path, *options))[0]
    assert config.reward is not None
    held_out = dataclasses.replace(config.reward, held_out=Scorer("toxicity", {"model": str(base)}))
    config = dataclasses.replace(config, reward=held_out)
    monkeypatch.chdir(tmp_path)
    hashes = {stage: set(model_hashes(config, stage)) for stage in ("sft", "reward", "ppo", "evaluation")}
    keys = {"reward.options.members[0].model", "reward.held_out.options.model"}
    assert hashes == {"sft": set(), "reward": set(), "ppo": keys, "evaluation": set()}
