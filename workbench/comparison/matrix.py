"""The runs of a comparison of algorithms: what they share, one run for each cell, and the rows that each fills."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.comparison.cells import Cell
from workbench.config.checks import check, check_distinct
from workbench.config.compare import POLICY_SECTIONS, CompareConfig
from workbench.config.derived import completion_limit, normalizing_responses, sampled_responses, scores_prefixes
from workbench.config.names import ALIGNED, BASE, EVALUATION, PPO, REWARD, SFT, TUNED
from workbench.config.overrides import check_overrides, overridden
from workbench.config.parsing import load_saved
from workbench.config.schema import Config, EvaluationConfig, PPOConfig, ReuseConfig, RewardConfig
from workbench.config.sources import AntiExpert
from workbench.errors import UserError, error_context
from workbench.evaluation.models import model_titles

ALL_STAGES = (SFT, REWARD, PPO, EVALUATION)
BASELINES, ANTI_EXPERT = "baselines", "anti-expert"
SHARED_REASONS = {
    REWARD: "every run has the same reward; recipes.sweep compares rewards",
    EVALUATION: "every run is evaluated alike",
    "seed": "compare.seeds has the seeds",
}
"""Why a section cannot differ between policies."""
ALGORITHM_REASONS = SHARED_REASONS | dict.fromkeys(
    ("policy", SFT), "every algorithm begins with the same SFT policy, and compare.policies may change it"
)


@dataclass(frozen=True)
class MatrixRun:
    """One run of the comparison."""

    config: Config
    stages: tuple[str, ...]
    cells: tuple[Cell, ...] = ()
    """What the run is in the table; a run whose stages the others reuse is nothing in it."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return folder_of(self.config)


@dataclass(frozen=True)
class Variant:
    """A policy or an algorithm of the comparison."""

    title: str
    slug: str
    """Its part of the names of the run folders."""
    config: Config


def folder_of(config: Config) -> Path:
    """Return the folder of a run."""
    return Path(config.runs) / config.name


def comparison_runs(config: Config) -> list[MatrixRun]:
    """Return the runs of the configuration's comparison, in the order they run: those that others reuse first.

    Raises UserError, before anything is loaded, for a comparison that says nothing, or whose entries do not fit.
    """
    comparison = checked_comparison(config)
    # Otherwise the limit of a completion would be that of each algorithm's responses, and 128 without PPO.
    evaluation = replace(config.evaluation, max_new_tokens=completion_limit(config))
    config = replace(config, evaluation=evaluation, compare=None, prompting=None, tuning=None)
    policies = policies_of(config, comparison)
    anti_experts = [anti_expert_run(policy.config, comparison) for policy in policies]
    policies = [steered(*pair, comparison) for pair in zip(policies, anti_experts, strict=True)]
    algorithms = {policy.title: algorithms_of(policy, comparison) for policy in policies}
    reward = reward_run(config)
    suppliers = {policy.title: sft_run(policy.config) for policy in policies}
    cells = []
    for seed, policy in itertools.product(comparison.seeds, policies):
        reuse = reused(policy.config, suppliers[policy.title], reward)
        for run in policy_runs(policy, algorithms[policy.title], seed):
            cells.append(replace(run, config=replace(run.config, reuse=reuse)))
    runs = [run for run in (reward, *suppliers.values(), *anti_experts) if run is not None] + cells
    check_folders(runs)
    for run in runs:
        with error_context(run.config.name):
            check(run.config)
    return runs


def check_folders(runs: Sequence[MatrixRun]) -> None:
    """Raise UserError for two runs of one folder: titles that differ can make the same name together."""
    cells: dict[Path, Cell] = {}
    for cell in (run.cells[0] for run in runs if run.cells):
        other = cells.setdefault(cell.folder, cell)
        if other is not cell:
            raise UserError(
                f"compare: {other.policy} with {other.algorithm}, and {cell.policy} with {cell.algorithm}, would both "
                f"be called {cell.folder.name}; choose other titles"
            )


def checked_comparison(config: Config) -> CompareConfig:
    """Return the section compare; raises UserError where it is missing, or says nothing without PPO or with a sweep."""
    comparison = config.compare
    if comparison is None:
        raise UserError("compare.algorithms: missing; list the algorithms, such as {PPO: {}, slow: {ppo.kl_coef: 0.5}}")
    if config.sweep is not None:
        raise UserError("sweep: recipes.compare compares algorithms under one reward; leave sweep out")
    if config.ppo is None and comparison.algorithms:
        raise UserError("ppo: missing; compare.algorithms override its keys")
    if len(set(comparison.seeds)) < len(comparison.seeds):
        raise UserError(f"compare.seeds: {comparison.seeds} lists a seed twice")
    return comparison


def check_has_ppo(config: Config, comparison: CompareConfig, key: str) -> None:
    """Raise UserError for a configuration without PPO, unless the comparison has no algorithms either."""
    if config.ppo is None and comparison.algorithms:
        raise UserError(f"{key}: ppo is null, and compare.algorithms override its keys; remove ppo")


def policies_of(config: Config, comparison: CompareConfig) -> list[Variant]:
    """Return the policies; each configuration has the policy's part of the names of its runs in its own name."""
    if not comparison.policies:
        return [Variant(config.policy.model, "", config)]
    policies = []
    for title, slug in slugs(comparison.policies, "compare.policies").items():
        key, overrides = f"compare.policies.{title}", comparison.policies[title]
        check_overrides(overrides, POLICY_SECTIONS, SHARED_REASONS, f"{key}.")
        changed = overridden(config, overrides, key)
        check_has_ppo(changed, comparison, key)
        policies.append(Variant(title, slug, replace(changed, name=f"{config.name}-{slug}")))
    check_distinct("compare.policies", {each.title: replace(each.config, name="") for each in policies})
    return policies


def algorithms_of(policy: Variant, comparison: CompareConfig) -> list[Variant]:
    """Return the algorithms for one policy."""
    algorithms = []
    taken = {BASE, *model_titles(replace(policy.config, ppo=None))}
    for title, slug in slugs(comparison.algorithms, "compare.algorithms").items():
        key, overrides = f"compare.algorithms.{title}", comparison.algorithms[title]
        if title in taken or slug == BASELINES:
            raise UserError(f"{key}: the table has a row of this name already; choose another title")
        check_overrides(overrides, (PPO,), ALGORITHM_REASONS, f"{key}.")
        changed = overridden(policy.config, overrides, key)
        check_has_ppo(changed, comparison, key)
        algorithms.append(Variant(title, slug, changed))
    check_distinct("compare.algorithms", {each.title: each.config for each in algorithms})
    return algorithms


def reward_run(config: Config) -> MatrixRun | None:
    """Return the run that trains the reward for all others; None where the reward is not trained here."""
    reward = config.reward
    if reward is None or reward.model is not None or config.reuse.reward is not None:
        return None
    changes: dict[str, Any] = {"sft": None, "ppo": None, "reward": RewardConfig(train=reward.train)}
    return supplier(replace(config, name=f"{config.name}-reward", **changes), REWARD, unread=("policy", EVALUATION))


def sft_run(config: Config) -> MatrixRun | None:
    """Return the run that trains the SFT stage of a policy for its others; None where it is not trained here."""
    if config.sft is None or config.reuse.sft is not None:
        return None
    changes: dict[str, Any] = {"reward": None, "ppo": None}
    return supplier(replace(config, name=f"{config.name}-{SFT}", **changes), SFT, unread=(EVALUATION,))


def anti_expert_run(config: Config, comparison: CompareConfig) -> MatrixRun | None:
    """Return the run that tunes a policy's model to what is not wanted; None without such rows."""
    if comparison.anti_expert is None:
        return None
    key = "compare.anti_expert"
    if config.sft is None:
        raise UserError(f"{key}: it is tuned as sft says, and sft is missing; add it, or remove anti_expert")
    if config.policy.lora is None:
        raise UserError(f"{key}: it is an adapter on the policy's base; set policy.lora, or remove anti_expert")
    if ANTI_EXPERT in model_titles(config):
        raise UserError(f"{key}: evaluation has a model called {ANTI_EXPERT}; rename it, or remove anti_expert")
    sft = replace(config.sft, data=comparison.anti_expert, more_data=[], validation=None)
    changes: dict[str, Any] = {"reward": None, "ppo": None, "sft": sft}
    return supplier(replace(config, name=f"{config.name}-{ANTI_EXPERT}", **changes), SFT, unread=(EVALUATION,))


def steered(policy: Variant, anti_expert: MatrixRun | None, comparison: CompareConfig) -> Variant:
    """Return the policy whose evaluation also has its SFT policy steered away from the anti-expert, if there is one."""
    if anti_expert is None:
        return policy
    entry = AntiExpert(TUNED, str(anti_expert.folder / SFT), comparison.anti_expert_alpha)
    evaluation = policy.config.evaluation
    evaluation = replace(evaluation, anti_expert={**evaluation.anti_expert, ANTI_EXPERT: entry})
    return replace(policy, config=replace(policy.config, evaluation=evaluation))


def supplier(config: Config, stage: str, unread: Sequence[str]) -> MatrixRun:
    """Return the run of one stage; sections that the stage does not read stay as they are in a folder from before."""
    evaluation = EvaluationConfig(data=config.evaluation.data, max_new_tokens=config.evaluation.max_new_tokens)
    config = replace(config, evaluation=evaluation, reuse=ReuseConfig())
    saved = folder_of(config) / "config.yaml"
    if saved.is_file():
        with suppress(UserError):  # the run's own plan says what to do
            before = load_saved(saved)
            config = replace(config, **{section: vars(before)[section] for section in unread})
    return MatrixRun(config, (stage,))


def reused(config: Config, sft: MatrixRun | None, reward: MatrixRun | None) -> ReuseConfig:
    """Return what the runs of a policy reuse: what the configuration says, else what the comparison trains for them."""
    return ReuseConfig(
        sft=config.reuse.sft if sft is None else str(sft.folder),
        reward=config.reuse.reward if reward is None else str(reward.folder),
    )


def policy_runs(policy: Variant, algorithms: Sequence[Variant], seed: int) -> Iterator[MatrixRun]:
    """Yield the runs of one policy and seed: the one that trains nothing, then one for each algorithm."""
    # A verdict on what no algorithm has trained is no reason to fail.
    baselines = replace(policy.config, ppo=None, evaluation=replace(policy.config.evaluation, fail_on=None))
    titles = model_titles(baselines)
    if len(titles) > 1:
        yield cell_run(policy, baselines, BASELINES, seed, {title: title for title in titles})
    for algorithm in algorithms:
        evaluation = without_further_rows(algorithm.config.evaluation)
        rows = {BASE: BASE} if len(titles) == 1 and algorithm is algorithms[0] else {}
        config = replace(algorithm.config, evaluation=evaluation)
        yield cell_run(policy, config, algorithm.slug, seed, {**rows, algorithm.title: ALIGNED})


def cell_run(policy: Variant, config: Config, slug: str, seed: int, models: Mapping[str, str]) -> MatrixRun:
    """Return the run of one seed; `models` are the titles in its evaluation by the titles of the table's rows."""
    config = replace(config, name=f"{policy.config.name}-{slug}-seed{seed}", seed=seed)
    cells = (Cell(policy.title, row, seed, folder_of(config), model) for row, model in models.items())
    return MatrixRun(config, ALL_STAGES, tuple(cells))


def without_further_rows(evaluation: EvaluationConfig) -> EvaluationConfig:
    """Return the settings without what adds rows to a run's own models: every mapping by title but the prompt sets."""
    empty: dict[str, Any] = {name: {} for name, value in vars(evaluation).items() if isinstance(value, dict)}
    return replace(evaluation, **empty | {"data": evaluation.data})


def slugs(titles: Mapping[str, Any], key: str) -> dict[str, str]:
    """Return what stands for each title in the name of a folder: letters, digits, dots and dashes in lower case.

    Raises UserError for a title without any, and for two that become one.
    """
    names: dict[str, str] = {}
    for title in titles:
        slug = re.sub(r"[^\w.]+", "-", title.lower()).strip("-.")
        if not slug:
            raise UserError(f"{key}.{title}: no letter or digit for the name of a run folder; choose another title")
        other = next((other for other, name in names.items() if name == slug), None)
        if other is not None:
            raise UserError(
                f"{key}.{title}: its runs would be called {slug}, as those of {other}; choose another title"
            )
        names[title] = slug
    return names


def budget_lines(runs: Sequence[MatrixRun]) -> list[str]:
    """Return a line on the responses of each policy's algorithms, and on those whose number is not the first's."""
    by_policy: dict[str, dict[str, tuple[int, int]]] = {}
    for run in runs:
        for cell in run.cells:
            if cell.model == ALIGNED and run.config.ppo is not None:
                by_policy.setdefault(cell.policy, {})[cell.algorithm] = planned_responses(run.config.ppo)
    lines = []
    for policy, algorithms in by_policy.items():
        counts = [f"{title} {responses:,} and {calls:,}" for title, (responses, calls) in algorithms.items()]
        lines.append(f"{policy}: responses and calls of the reward in the training of a run: {'; '.join(counts)}")
        first, *others = algorithms
        unequal = [title for title in others if algorithms[title] != algorithms[first]]
        if unequal:
            verb = "differs" if len(unequal) == 1 else "differ"
            lines.append(
                f"{policy}: warning: the budget of {', '.join(unequal)} {verb} from that of {first}; a comparison at "
                "unequal budgets says little"
            )
    return lines


def template_lines(runs: Sequence[MatrixRun]) -> list[str]:
    """Return a warning for each policy that learns from prompts in a form of its own, which no evaluation set has."""
    learned: dict[str, set[tuple[str | None, bool]]] = {}
    evaluated: set[tuple[str | None, bool]] = set()
    for run in runs:
        sections = [section for section in (run.config.sft, run.config.ppo) if section is not None]
        for cell in run.cells[:1]:
            forms = {(section.data.template, section.data.chat) for section in sections}
            learned[cell.policy] = learned.get(cell.policy, set()) | forms
            evaluated |= {(source.template, source.chat) for source in run.config.evaluation.data.values()}
    is_alike = len(set(map(frozenset, learned.values()))) < 2
    return [
        f"{policy}: warning: no set of evaluation.data has the template and chat of its sft.data or ppo.data, so its "
        "rows complete prompts in a form that it was not trained on, and say little beside those of other policies"
        for policy, forms in learned.items()
        if not is_alike and forms.isdisjoint(evaluated)
    ]


def planned_responses(ppo: PPOConfig) -> tuple[int, int]:
    """Return how many responses a run samples, and how many texts the reward scores, all without the validation."""
    if ppo.offline:
        return 0, 0
    responses = ppo.steps * sampled_responses(ppo)
    unfinished = ppo.steps * ppo.batch_size * (ppo.max_new_tokens - 1) if scores_prefixes(ppo) else 0
    return responses, responses + unfinished + normalizing_responses(ppo)
