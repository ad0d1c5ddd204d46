"""The configurations of a comparison's runs: what they share, how they differ, and what no comparison can be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from compared_cells import ALGORITHMS, ANTI_EXPERT, BEST_OF, GROUPS, POLICIES, config, options
from small_runs import small

from recipes import sft
from recipes.compare import compare
from workbench.comparison.matrix import budget_lines, comparison_runs, template_lines
from workbench.config.names import REWARD, SFT
from workbench.config.parsing import differences, dump, parse
from workbench.config.schema import Config
from workbench.errors import UserError
from workbench.run import cli
from workbench.run.folder import open_run

TRAINED_REWARD = ("--reward.model", "null")
SEEDS = [3, 5]


def changed(before: Config, after: Config) -> set[str]:
    """Return the keys in which two runs differ, apart from their names."""
    return {change.partition(":")[0] for change in differences(before, after)} - {"name"}


@pytest.mark.parametrize("has_trained_reward", [True, False])
def test_every_run_shares_all_but_its_policy_algorithm_and_seed(tmp_path: Path, has_trained_reward: bool) -> None:
    whole = config(tmp_path, *(TRAINED_REWARD if has_trained_reward else ()), policies=POLICIES, seeds=SEEDS)
    runs = comparison_runs(whole)
    names = [run.config.name for run in runs]
    assert len(set(names)) == len(names) == has_trained_reward + 2 + 2 * 2 * (1 + 2)
    by_name = {run.config.name: run for run in runs}
    suppliers = [run.config.name for run in runs if not run.cells]
    assert suppliers == ["cells-reward", "cells-t5-sft", "cells-gpt-2-sft"][not has_trained_reward :]
    assert [by_name[name].stages for name in suppliers] == [(REWARD,), (SFT,), (SFT,)][-len(suppliers) :]
    assert {by_name[name].config.seed for name in suppliers} == {whole.seed}, "they are trained with the run's own seed"
    for run in runs:
        assert run.config.compare is None
        assert dump(parse_saved(run.config, tmp_path)) == dump(run.config), "any command can open it"
        if run.cells:
            policy = run.cells[0].policy
            source = "cells-t5-sft" if policy == "T5" else "cells-gpt-2-sft"
            assert run.config.reuse.sft == str(tmp_path / source)
            assert run.config.reuse.reward == (str(tmp_path / "cells-reward") if has_trained_reward else None)
            assert run.config.sft == by_name[source].config.sft
            assert run.config.policy == by_name[source].config.policy
    for seed in SEEDS:
        ours, theirs = (by_name[f"cells-t5-{name}-seed{seed}"].config for name in ("ppo", "rloo"))
        assert changed(ours, theirs) == set(GROUPS)
        assert changed(ours, by_name[f"cells-gpt-2-ppo-seed{seed}"].config) == {
            *("policy.model", "sft.max_steps", "reuse.sft"),
        }
    assert changed(by_name["cells-t5-ppo-seed3"].config, by_name["cells-t5-ppo-seed5"].config) == {"seed"}


def parse_saved(run: Config, folder: Path) -> Config:
    """Return a configuration as it is read back from the file that is saved of it."""
    (folder / "saved.yaml").write_text(dump(run), encoding="utf-8")
    return parse(["--config", str(folder / "saved.yaml")])[0]


def test_every_row_is_one_model_of_each_seed(tmp_path: Path) -> None:
    cells = [cell for run in comparison_runs(config(tmp_path, seeds=SEEDS)) for cell in run.cells]
    rows = {(cell.algorithm, cell.seed): cell for cell in cells}
    assert len(rows) == len(cells)
    expected = {"base": "base", "sft": "sft", "best of 2": "best of 2", "PPO": "aligned", "RLOO": "aligned"}
    assert {cell.algorithm: cell.model for cell in cells} == expected
    assert set(rows) == {(title, seed) for title in expected for seed in SEEDS}
    assert {cell.policy for cell in cells} == {"toy:t5"}
    assert rows["RLOO", 5].folder == tmp_path / "cells-rloo-seed5"
    assert rows["best of 2", 3].folder == rows["base", 3].folder == tmp_path / "cells-baselines-seed3"


def test_the_anti_expert_is_tuned_once_per_policy_and_steers_the_sft_policy(tmp_path: Path) -> None:
    runs = comparison_runs(config(tmp_path, policies=POLICIES, seeds=SEEDS, **ANTI_EXPERT))
    by_name = {run.config.name: run for run in runs}
    for policy in ("t5", "gpt-2"):
        tuned, sft_policy = (by_name[f"cells-{policy}-{name}"] for name in ("anti-expert", "sft"))
        assert (tuned.stages, tuned.cells) == ((SFT,), ())
        assert {key.rpartition(".")[0] for key in changed(sft_policy.config, tuned.config)} == {"sft.data"}
        for seed in SEEDS:
            baselines = by_name[f"cells-{policy}-baselines-seed{seed}"]
            assert dataclasses.asdict(baselines.config.evaluation)["anti_expert"] == {
                "anti-expert": {"model": "sft", "adapter": str(tuned.folder / "sft"), "alpha": 2.0}
            }
            assert {cell.algorithm for cell in baselines.cells} == {"base", "sft", "best of 2", "anti-expert"}
            assert not by_name[f"cells-{policy}-ppo-seed{seed}"].config.evaluation.anti_expert


def test_what_is_evaluated_is_the_same_in_every_run(tmp_path: Path) -> None:
    algorithms = {"short": {"ppo.max_new_tokens": 2}, "long": {"ppo.max_new_tokens": 9}}
    runs = [run for run in comparison_runs(config(tmp_path, algorithms=algorithms)) if run.cells]
    assert {run.config.evaluation.max_new_tokens for run in runs} == {6}, "the limit of the configuration's own PPO"
    baselines, *others = (run.config.evaluation for run in runs)
    assert {title: dataclasses.asdict(entry) for title, entry in baselines.best_of.items()} == BEST_OF
    assert [dataclasses.replace(baselines, best_of={})] * 2 == others, "what samples more is sampled once per seed"


def test_without_sft_the_base_is_a_row_of_the_first_algorithm(tmp_path: Path) -> None:
    runs = comparison_runs(config(tmp_path, "--sft", "null", "--evaluation.best_of", "{}"))
    assert [[(cell.algorithm, cell.model) for cell in run.cells] for run in runs] == [
        [("base", "base"), ("PPO", "aligned")],
        [("RLOO", "aligned")],
    ]


def test_stages_that_the_configuration_reuses_are_not_trained(tmp_path: Path) -> None:
    runs = comparison_runs(config(tmp_path, *TRAINED_REWARD, "--reuse.sft", "runs/a", "--reuse.reward", "runs/b"))
    assert all(run.cells for run in runs)
    assert {(run.config.reuse.sft, run.config.reuse.reward) for run in runs} == {("runs/a", "runs/b")}


def test_what_a_shared_stage_does_not_read_may_change_later(tmp_path: Path) -> None:
    (before,) = (run.config for run in comparison_runs(config(tmp_path)) if not run.cells)
    open_run(before, force=None)
    later = config(tmp_path, "--evaluation.samples", "3", "--ppo.max_new_tokens", "7", "--sft.batch_size", "4")
    (after,) = (run.config for run in comparison_runs(later) if not run.cells)
    assert changed(before, after) == {"sft.batch_size"}


def test_unequal_budgets_are_named(tmp_path: Path) -> None:
    algorithms = {"PPO": {}, "longer": {"ppo.steps": 5}, "scaled": {"ppo.score_samples": 9}, "other": {"ppo.lam": 1.0}}
    first, second = budget_lines(comparison_runs(config(tmp_path, algorithms=algorithms)))
    assert "PPO 16 and 16; longer 40 and 40; scaled 16 and 32; other 16 and 16" in first
    assert "the budget of longer, scaled differ from that of PPO" in second
    assert len(budget_lines(comparison_runs(config(tmp_path)))) == 1


def test_a_policy_with_prompts_of_its_own_is_named_since_all_are_evaluated_on_the_same(tmp_path: Path) -> None:
    evaluated = {f"{section}.data.template": "{dialogue}" for section in ("sft", "ppo")}
    policies = {"T5": evaluated, "GPT-2": {"policy.model": "toy:gpt2"}}
    (line,) = template_lines(comparison_runs(config(tmp_path, policies=policies)))
    assert line.startswith("GPT-2: warning: no set of evaluation.data has the template and chat of its sft.data")
    assert not template_lines(comparison_runs(config(tmp_path, policies={"T5": evaluated}))), "it fits"
    assert not template_lines(comparison_runs(config(tmp_path, policies=POLICIES))), "none has its own"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"algorithms": {"a": {"ppo.advantag": "rloo"}}},
            "compare.algorithms.a.ppo.advantag: unknown key; did you mean",
        ),
        (
            {"algorithms": {"a": {"ppo.advantage": "rlo"}}},
            "compare.algorithms.a.ppo.advantage: must be one of gae, rloo",
        ),
        ({"algorithms": {"a": {"ppo.advantage": "rloo"}}}, "compare.algorithms.a: ppo.samples_per_prompt: 1 leaves"),
        ({"algorithms": {"a": {"sft.epochs": 2}}}, "compare.algorithms.a.sft.epochs: every algorithm begins with the"),
        ({"algorithms": {"a": {"policy.lora": None}}}, "compare.algorithms.a.policy.lora: every algorithm begins with"),
        (
            {"algorithms": {"a": {"reward.model": "length"}}},
            "compare.algorithms.a.reward.model: every run has the same",
        ),
        (
            {"algorithms": {"a": {"evaluation.samples": 2}}},
            "compare.algorithms.a.evaluation.samples: every run is eval",
        ),
        ({"algorithms": {"a": {"seed": 2}}}, "compare.algorithms.a.seed: compare.seeds has the seeds"),
        ({"algorithms": {"a": {"runs": "b"}}}, "compare.algorithms.a.runs: it says nothing about a result"),
        ({"algorithms": {"a": {"ppo": None}}}, "compare.algorithms.a: ppo is null"),
        ({"algorithms": {"a": {"ppo.data+": 1}}}, "compare.algorithms.a.ppo.data+: KEY+ is for the command line"),
        ({"algorithms": {"a": {}, "b": {"ppo.steps": 2}}}, "compare.algorithms.a: the same as b; remove one"),
        (
            {"algorithms": {"A b": {}, "a-B": {"ppo.steps": 3}}},
            "compare.algorithms.a-B: its runs would be called a-b, as",
        ),
        ({"algorithms": {"!?": {}}}, "compare.algorithms.!?: no letter or digit"),
        ({"algorithms": {"sft": {}}}, "compare.algorithms.sft: the table has a row of this name"),
        ({"algorithms": {"best of 2": {}}}, "compare.algorithms.best of 2: the table has a row of this name"),
        ({"algorithms": {"Baselines": {}}}, "compare.algorithms.Baselines: the table has a row of this name"),
        ({"algorithms": {"anti-expert": {}}, **ANTI_EXPERT}, "compare.algorithms.anti-expert: the table has a row of"),
        ({"policies": {"a": {"policy.lora": None}}, **ANTI_EXPERT}, "compare.anti_expert: it is an adapter on the"),
        ({"algorithms": {}}, "compare.algorithms: empty; expected at least 1"),
        ({"seeds": [1, 2, 1]}, "compare.seeds: [1, 2, 1] lists a seed twice"),
        ({"seeds": []}, "compare.seeds: empty; expected at least 1"),
        ({"policies": {"a": {"ppo": None}}}, "compare.policies.a: ppo is null"),
        ({"policies": {"a": {}, "b": {}}}, "compare.policies.a: the same as b; remove one"),
        (
            {"policies": {"a": {"policy.modl": "x"}}},
            "compare.policies.a.policy.modl: unknown key; did you mean policy.mo",
        ),
        (
            {"policies": {"a": {"evaluation.samples": 2}}},
            "compare.policies.a.evaluation.samples: every run is evaluated",
        ),
        (
            {"policies": {"a": {"reward.train.epochs": 2}}},
            "compare.policies.a.reward.train.epochs: every run has the sa",
        ),
        (
            {"policies": {"a": {"sft.data.path": "x"}, "A": {}}},
            "compare.policies.A: its runs would be called a, as those",
        ),
        (
            {"policies": {"T5": {}, "T5 x": {"sft.max_steps": 1}}, "algorithms": {"a": {}, "x a": {"ppo.steps": 3}}},
            "compare: T5 with x a, and T5 x with a, would both be called cells-t5-x-a-seed0; choose other titles",
        ),
    ],
)
def test_what_no_comparison_can_be_is_one_line(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        comparison_runs(config(tmp_path, **section))
    assert str(refused.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_a_comparison_needs_its_section_and_ppo(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"compare\.algorithms: missing"):
        comparison_runs(parse(small("quickstart", tmp_path))[0])
    with pytest.raises(UserError, match="ppo: missing"):
        comparison_runs(config(tmp_path, "--ppo", "null"))
    with pytest.raises(UserError, match=r"sweep: recipes\.compare compares algorithms under one reward"):
        comparison_runs(config(tmp_path, "--sweep.rewards", "{a: length, b: rouge}"))


def test_an_anti_expert_needs_sft(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^compare\.anti_expert: it is tuned as sft says, and sft is missing"):
        comparison_runs(config(tmp_path, "--sft", "null", "--evaluation.best_of", "{}", **ANTI_EXPERT))


def test_another_recipe_does_not_run_one_of_the_algorithms(in_project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"use recipes\.compare"):
        cli.launch([sft.STAGE], "", options(tmp_path))


def test_a_mistake_in_the_last_algorithm_ends_the_comparison_before_the_first_run(
    in_project: Path, tmp_path: Path
) -> None:
    algorithms = ALGORITHMS | {"other data": {"ppo.data.path": "nonsense.jsonl"}}
    with pytest.raises(UserError, match=r"nonsense\.jsonl"):
        compare(options(tmp_path, algorithms=algorithms))
    with pytest.raises(UserError, match="--force tuning: this command runs sft, reward, ppo, evaluation"):
        compare(options(tmp_path, "--force", "tuning"))
    assert not list(tmp_path.iterdir())
