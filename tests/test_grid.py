"""A grid over keys is a comparison of the product of their values, named by key and value."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import small

from recipes.sweep import sweep
from workbench.comparison.matrix import comparison_runs
from workbench.config.grid import split_grid, with_grid
from workbench.config.parsing import parse
from workbench.errors import UserError


def rows(folder: Path, *entries: str) -> dict[str, list[str]]:
    """Return the trained rows of each policy of the small quickstart's grid, with the SFT stage that they reuse."""
    config = parse(small("quickstart", folder))[0]
    table: dict[str, list[str]] = {}
    for run in comparison_runs(with_grid(config, entries)):
        for cell in run.cells:
            if cell.model == "aligned":
                source = Path(str(run.config.reuse.sft)).name
                table.setdefault(f"{cell.policy} from {source}", []).append(cell.algorithm)
    return table


def test_the_product_of_all_values_is_run(tmp_path: Path) -> None:
    assert rows(tmp_path, "ppo.kl_coef=0.02,2e-1", "ppo.kl_in=null,loss") == {
        "toy:t5 from quickstart-sft": [
            "ppo.kl_coef=0.02, ppo.kl_in=null",
            "ppo.kl_coef=0.02, ppo.kl_in=loss",
            "ppo.kl_coef=0.2, ppo.kl_in=null",
            "ppo.kl_coef=0.2, ppo.kl_in=loss",
        ]
    }


def test_keys_of_another_sft_have_one_of_their_own(tmp_path: Path) -> None:
    assert rows(tmp_path, "sft.max_steps=2,4", "ppo.lam=0.9,1") == {
        f"sft.max_steps={steps} from quickstart-sft.max_steps-{steps}-sft": ["ppo.lam=0.9", "ppo.lam=1"]
        for steps in (2, 4)
    }
    assert rows(tmp_path, "policy.model=toy:t5,toy:gpt2") == {
        "policy.model=toy:t5 from quickstart-policy.model-toy-t5-sft": ["as configured"],
        "policy.model=toy:gpt2 from quickstart-policy.model-toy-gpt2-sft": ["as configured"],
    }


def test_a_grid_without_ppo_compares_the_sft_policies(tmp_path: Path) -> None:
    config = parse(small("quickstart", tmp_path, "--ppo", "null"))[0]
    runs = comparison_runs(with_grid(config, ["sft.max_steps=2,4"]))
    assert [cell.algorithm for run in runs for cell in run.cells] == ["base", "sft"] * 2
    with pytest.raises(UserError, match=r"--grid ppo\.lam: the configuration has no section ppo"):
        with_grid(config, ["ppo.lam=0.9,1"])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["ppo.kl_ceof=1,2"], "--grid ppo.kl_ceof: unknown key; did you mean ppo.kl_coef?"),
        (["ppo.kl_coef=1,high"], "--grid ppo.kl_coef: must be a number, not 'high'"),
        (["ppo.kl_coef=1,-1"], "--grid ppo.kl_coef=-1: ppo.kl_coef: -1.0 must be between 0"),
        (["ppo.kl_coef=[1"], "--grid ppo.kl_coef"),
        (["ppo.kl_coef"], "--grid 'ppo.kl_coef': expected KEY=VALUE,VALUE"),
        (["ppo.kl_coef=1,1"], "--grid ppo.kl_coef: 1 is there twice"),
        (["ppo.lam=1", "ppo.lam=0.9"], "--grid ppo.lam: given twice; list all its values in one"),
        (["reward.model=length,rouge"], "--grid reward.model: list rewards in sweep.rewards"),
        (["evaluation.samples=1,2"], "--grid evaluation.samples: every run is evaluated alike"),
        (["seed=1,2"], "--grid seed: list seeds in compare.seeds"),
        (["name=a,b"], "--grid name: it says nothing about a result"),
    ],
)
def test_a_mistake_in_a_grid_is_one_line(entries: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        with_grid(parse(small("quickstart", tmp_path))[0], entries)
    assert str(refused.value).startswith(message)


def test_a_grid_stands_alone(tmp_path: Path) -> None:
    config = parse(small("quickstart", tmp_path, "--sweep.rewards", "{a: length, b: rouge}"))[0]
    with pytest.raises(UserError, match="--grid: the configuration has a section sweep, too"):
        with_grid(config, ["ppo.lam=0.9,1"])


def test_the_option_may_be_given_several_times() -> None:
    words = ["--config", "a", "--grid", "b=1,2", "--seed", "3", "--grid=c=4"]
    assert split_grid(words) == (["b=1,2", "c=4"], ["--config", "a", "--seed", "3"])


def test_a_grid_is_run_and_goes_on(in_project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = small("quickstart", tmp_path, "--grid", "ppo.kl_coef=0.02,0.2")
    sweep(arguments)
    assert (tmp_path / "quickstart-ppo.kl_coef-0.02-seed0/evaluation/results.json").is_file()
    assert (tmp_path / "quickstart-sweep.html").is_file()
    capsys.readouterr()
    sweep([*arguments[:-1], "ppo.kl_coef=0.02,0.2,0.5"])
    assert capsys.readouterr().out.count("already finished, skipping") == 1 + 2 + 3 + 3
    assert (tmp_path / "quickstart-ppo.kl_coef-0.5-seed0/evaluation/results.json").is_file()
