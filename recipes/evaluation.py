"""Evaluation: base, SFT and aligned policy side by side, with toxicity, ROUGE and paired intervals."""

# Imports of torch and transformers stand inside the functions, so that --help answers at once.
from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

from recipes import ppo
from workbench.cli import Stage, main
from workbench.config import Config, DataSource
from workbench.errors import UserError, named
from workbench.runs import Run

if TYPE_CHECKING:
    from accelerate import Accelerator

    from workbench.evaluation import Answers
    from workbench.policy import Policy
    from workbench.rewards import CheckedReward, Judge

NAME = "evaluation"


def wanted(config: Config) -> bool:
    """Whether a policy was trained, whose answers can be compared with the base's."""
    return config.sft is not None or config.ppo is not None


def max_new_tokens(config: Config) -> int:
    """Longest answer; PPO's own limit unless the configuration says otherwise."""
    return config.evaluation.max_new_tokens or (config.ppo.max_new_tokens if config.ppo else 128)


def rows(config: Config, name: str, source: DataSource) -> list[dict[str, Any]]:
    """The rows of a prompt set."""
    from workbench.prompt_rows import prompt_rows

    key = f"evaluation.data.{name}"
    found = prompt_rows(config.policy.model, source, key=key, max_new_tokens=max_new_tokens(config))
    for row in found:
        if "reference" in row and not isinstance(row["reference"], str):
            raise UserError(f"{source.path}: reference must be text in every row, found {row['reference']!r}")
    return found


def judges(config: Config, reward: CheckedReward | None) -> dict[str, Judge]:
    """The reward model as a judge, where it can judge, and the judges that were never a reward."""
    from reward_models import judge_of, load_judge

    found: dict[str, Judge] = {}
    if reward is not None and (judge := judge_of(reward)) is not None:
        found["reward"] = judge
    for name in config.evaluation.judges:
        with named("evaluation.judges"):
            found[name] = load_judge(name)
    return found


def variants(run: Run, accelerator: Accelerator) -> Iterator[tuple[str, Policy, str]]:
    """Each variant's title, the policy that holds it and its name there; with LoRA they share one base."""
    from workbench.models import autocast_dtype, load_adapters, load_model, load_policy_tokenizer, load_trainable
    from workbench.policy import Policy

    config, tokenizer, device = run.config, load_policy_tokenizer(run.config.policy.model), accelerator.device
    autocast = autocast_dtype(config.policy)
    folders = {"sft": run.folder / "sft" if config.sft else None, "aligned": run.folder / "ppo" if config.ppo else None}
    if config.policy.lora:
        model = load_model(config.policy, device=device)
        adapters = {"policy" if title == "aligned" else title: folder for title, folder in folders.items() if folder}
        policy = Policy(load_adapters(model, adapters), tokenizer, autocast=autocast)
        yield "base", policy, "base"
        for name in adapters:
            yield "aligned" if name == "policy" else name, policy, name
        return
    for title, start in {"base": None, **folders}.items():
        if title == "base" or start is not None:
            reference = load_trainable(config.policy, folders["sft"], device=device).reference
            model = load_trainable(config.policy, start, device=device).model
            yield title, Policy(model, tokenizer, reference=reference, autocast=autocast), "policy"


def seen_in_training(config: Config, sets: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """How many rows of each set were trained on as well, whatever the template around them."""
    from recipes import sft
    from workbench.data import identities

    trained: set[str] = set()
    with redirect_stdout(StringIO()):  # what was dropped of them was said when they were trained on
        if config.sft:
            trained |= set(identities(sft.rows(config, config.sft.data), config.sft.data))
        if config.ppo:
            trained |= set(identities(ppo.rows(config), config.ppo.data))
    return {
        name: sum(text in trained for text in identities(of_set, config.evaluation.data[name]))
        for name, of_set in sets.items()
    }


def plan(config: Config) -> list[str]:
    """What the stage would do."""
    judges(config, None)
    lines, models = [], 1 + bool(config.sft) + bool(config.ppo)
    for name, source in config.evaluation.data.items():
        count = len(rows(config, name, source))
        lines.append(f"{name}: {count} prompts x {models} models, up to {max_new_tokens(config)} tokens")
    return lines


def run(run: Run) -> dict[str, Any]:
    """Write completions.jsonl, results.json and report.md into the run's evaluation folder and print the tables."""
    from accelerate import Accelerator

    from workbench.evaluation import answer
    from workbench.models import load_policy_tokenizer

    config = run.config
    for stage in ("sft", "ppo"):
        if (stage == "sft" and config.sft) or (stage == "ppo" and config.ppo):
            run.record(stage)
    accelerator, tokenizer = Accelerator(), load_policy_tokenizer(config.policy.model)
    sets = {name: rows(config, name, source) for name, source in config.evaluation.data.items()}
    answers: dict[str, dict[str, Answers]] = {name: {} for name in sets}
    for title, policy, variant in variants(run, accelerator):
        for name, of_set in sets.items():
            answers[name][title] = answer(
                policy,
                variant,
                tokenizer,
                of_set,
                accelerator=accelerator,
                label=f"evaluation {name} {title}",
                batch_size=config.evaluation.batch_size,
                max_new_tokens=max_new_tokens(config),
                temperature=config.evaluation.temperature,
                seed=config.seed,
            )
    if not accelerator.is_main_process:
        return {"inputs": {}, "metrics": {}}
    inputs = {name: source.path for name, source in config.evaluation.data.items()}
    return {"inputs": inputs, "metrics": report(run, sets, answers)}


def report(
    run: Run, sets: dict[str, list[dict[str, Any]]], answers: dict[str, dict[str, Answers]]
) -> dict[str, dict[str, Any]]:
    """Measure the answers, write the three files, print the tables, and return the means and comparisons."""
    from workbench.evaluation import measure, table
    from workbench.runs import write_text

    config, folder = run.config, run.stage(NAME)
    reward = ppo.reward_of(run) if config.reward else None
    judged_by = judges(config, reward)
    tables, summaries, completions = [], {}, []
    seen_by_set = seen_in_training(config, sets)
    for name, of_set in sets.items():
        result = measure(
            of_set,
            answers[name],
            reward=reward,
            judges=judged_by,
            threshold=config.evaluation.threshold,
            temperature=config.evaluation.temperature,
            seed=config.seed,
        )
        seen = seen_by_set[name]
        title = f"{name} ({seen} of the prompts were in the training data)" if seen else name
        tables.append(table(result, title, config.evaluation.temperature))
        summaries[name] = result.summary() | {"prompts seen in training": seen}
        for index, row in enumerate(of_set):
            texts = {title: of.completions[index] for title, of in answers[name].items()}
            scores = {metric: {title: v[index] for title, v in of.items()} for metric, of in result.values.items()}
            line = {"set": name, "prompt": row["prompt"], "reference": row.get("reference")}
            completions.append(json.dumps(line | {"completions": texts, "scores": scores}, ensure_ascii=False) + "\n")
    write_text(folder / "completions.jsonl", "".join(completions))
    write_text(folder / "results.json", json.dumps(summaries, indent=2) + "\n")
    write_text(folder / "report.md", "\n\n".join(tables) + "\n")
    print("\n" + "\n\n".join(tables) + "\n", flush=True)
    return summaries


STAGE = Stage(NAME, wanted, plan, run)

if __name__ == "__main__":
    main([STAGE], __doc__)
