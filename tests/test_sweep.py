"""A sweep over rewards trains one SFT policy, scores every run by every reward, and compares the runs."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from small_runs import CHAIN, drop, small

from recipes.sweep import sweep
from workbench.config.parsing import load_saved, parse
from workbench.config.scorers import as_scorer
from workbench.errors import UserError
from workbench.run import cli
from workbench.run.stage_record import read_record
from workbench.run.sweep import sweep_configs

REWARDS = "{clean: toy_lexicon, short: {model: length}, near: rouge}"


def options_of(folder: Path, rewards: str = REWARDS) -> list[str]:
    """Return the options of a small sweep."""
    return [*drop(small("quickstart", folder), "--reward.model"), "--sweep.rewards", rewards]


def test_ten_rewards_cost_one_sft(in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = options_of(tmp_path, "{near: rouge, short: {model: length}}")
    sweep([*two, "--dry_run"])
    assert not list(tmp_path.iterdir()), "a plan writes nothing"
    head, first, second = capsys.readouterr().out.split("\nsweep: ")
    assert "2 runs: quickstart-near, quickstart-short" in head
    assert first.startswith("quickstart-near\nsft.data: ")
    assert second.startswith(f"quickstart-short\nsft: reused from {tmp_path / 'quickstart-near'}\nppo")
    sweep(two)
    near, short = tmp_path / "quickstart-near", tmp_path / "quickstart-short"
    trained, copied = (read_record(run / "sft") for run in (near, short))
    assert copied["reused"]["run"] == str(near)
    assert {name: value for name, value in copied.items() if name != "reused"} == trained
    results = json.loads((short / "evaluation" / "results.json").read_text())
    names = {(s["metric"]["name"], s["metric"]["judge"]) for s in results["sets"][0]["summaries"]}
    assert {("score", "rouge"), ("score", "length")} <= names
    page = (tmp_path / "quickstart-sweep.html").read_text(encoding="utf-8")
    assert re.search(r"reward\.model.*?rouge.*?length", page)
    saved = load_saved(near / "config.yaml")
    assert saved.sweep is None
    capsys.readouterr()
    sweep(two)
    assert capsys.readouterr().out.count("already finished, skipping") == 6, "a run that is there is not done again"
    sweep(options_of(tmp_path, "{short: {model: length}, near: rouge}"))
    assert capsys.readouterr().out.count("already finished, skipping") == 6, "nor in another order"
    with pytest.raises(UserError, match=r"evaluation\.rewards: \[\] -> \[\{'model': 'toy_lexicon'.*--force evaluation"):
        sweep(options_of(tmp_path, REWARDS))
    fewer = options_of(tmp_path, "{short: {model: length}, clean: toy_lexicon}")
    assert sweep_configs(parse(fewer)[0])["short"].reuse.sft == str(near), "the run that trained it is left out"
    assert sweep_configs(parse(fewer)[0], "sft")["short"].reuse.sft is None
    sweep([*two, "--sft.max_steps", "2", "--force", "sft"])
    steps = [json.loads((run / "sft" / "stage.json").read_text())["metrics"]["steps"] for run in (near, short)]
    assert steps == [2, 2], "other settings of the stage that they share"


def test_a_mistake_in_the_last_reward_ends_the_sweep_before_the_first_run(in_project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nonsense"):
        sweep(options_of(tmp_path, "{near: rouge, odd: nonsense}"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--sweep.rewards", "{a: length}"], "sweep.rewards"),
        (["--sweep.rewards", "{a b: length, c: rouge}"], "used as a folder name"),
    ],
)
def test_what_no_sweep_can_be_is_one_line(changes: list[str], message: str, in_project: Path, tmp_path: Path) -> None:
    options = drop(options_of(tmp_path), "--sweep.rewards")
    with pytest.raises(UserError, match=message):
        sweep_configs(parse([*options, *changes])[0])


def test_a_sweep_without_rewards_or_ppo_is_refused(in_project: Path, tmp_path: Path) -> None:
    options = drop(options_of(tmp_path), "--sweep.rewards")
    with pytest.raises(UserError, match=r"sweep\.rewards: missing"):
        sweep_configs(parse(options)[0])
    config = dataclasses.replace(parse(options_of(tmp_path))[0], ppo=None)
    with pytest.raises(UserError, match="ppo: missing"):
        sweep_configs(config)


def test_another_recipe_does_not_run_one_of_the_rewards(in_project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"use recipes\.sweep"):
        cli.launch(CHAIN, "", options_of(tmp_path))


def test_two_rewards_of_one_name_have_no_common_score(in_project: Path, tmp_path: Path) -> None:
    mild, strict = ({"model": "lexicon", "options": {"words": words}} for words in (["a"], ["a", "b"]))
    options = options_of(tmp_path, json.dumps({"mild": mild, "strict": strict, "near": "rouge"}))
    configs = sweep_configs(parse([*options, "--evaluation.rewards", "[length]"])[0])
    assert [as_scorer(entry, "").model for entry in configs["mild"].evaluation.rewards] == ["length", "rouge"]
    assert {config.reward.options["words"][-1] for config in list(configs.values())[:2] if config.reward} == {"a", "b"}
