"""Evaluation: base, SFT and aligned policy side by side, with toxicity, ROUGE and paired intervals."""

# Imports of torch and transformers stand inside the functions, so that --help answers at once.
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from recipes import ppo
from workbench.cli import Stage, main, say
from workbench.config import Config, DataSource
from workbench.runs import Run

if TYPE_CHECKING:
    from accelerate import Accelerator

    from workbench.policy import Policy
    from workbench.rewards import CheckedReward, Judge

NAME = "evaluation"


def wanted(config: Config) -> bool:
    """Without a comparison nothing is known."""
    return True


def max_new_tokens(config: Config) -> int:
    """Longest answer; PPO's own limit unless the configuration says otherwise."""
    return config.evaluation.max_new_tokens or (config.ppo.max_new_tokens if config.ppo else 128)


def rows(config: Config, name: str, source: DataSource) -> list[dict[str, Any]]:
    """The rows of a prompt set; what was dropped is said."""
    from workbench.data import prompts
    from workbench.models import load_config, load_policy_tokenizer, window

    tokenizer = load_policy_tokenizer(config.policy.model)
    limit = window(load_config(config.policy.model), tokenizer)
    found, report = prompts(source, tokenizer, max_new_tokens=max_new_tokens(config), window=limit, response=False)
    say(f"evaluation: {name}: {report}")
    return found


def judges(config: Config, reward: CheckedReward | None) -> dict[str, Judge]:
    """The reward model as a judge, where it can judge, and the judges that were never a reward."""
    from reward_models import load_judge
    from workbench.rewards import CheckedJudge, JudgingReward

    found: dict[str, Judge] = {}
    if reward is not None and isinstance(reward.reward, JudgingReward):
        found["reward"] = CheckedJudge(reward.reward.toxicity, "reward")
    for name in config.evaluation.judges:
        found[name] = load_judge(name)
    return found


def variants(run: Run, accelerator: Accelerator) -> Iterator[tuple[str, Policy, str]]:
    """Each variant's title, the policy that holds it and its name there; with LoRA they share one base."""
    from peft import PeftModel

    from workbench.models import autocast_dtype, load_model, load_policy_tokenizer, load_trainable
    from workbench.policy import Policy

    config, tokenizer, device = run.config, load_policy_tokenizer(run.config.policy.model), accelerator.device
    autocast = autocast_dtype(config.policy)
    folders = {"sft": run.folder / "sft" if config.sft else None, "aligned": run.folder / "ppo" if config.ppo else None}
    if config.policy.lora:
        model = load_model(config.policy, device=device)
        adapters = {"policy" if title == "aligned" else title: folder for title, folder in folders.items() if folder}
        (first, first_folder), *others = adapters.items()
        shared = PeftModel.from_pretrained(model, first_folder, adapter_name=first)
        for name, folder in others:
            shared.load_adapter(folder, adapter_name=name)
        policy = Policy(shared, tokenizer, autocast=autocast)
        yield "base", policy, "base"
        for name in adapters:
            yield "aligned" if name == "policy" else name, policy, name
        return
    for title, start in {"base": None, **folders}.items():
        if title == "base" or start is not None:
            _, reference = load_trainable(config.policy, folders["sft"], device=device)
            model, _ = load_trainable(config.policy, start, device=device)
            yield title, Policy(model, tokenizer, reference=reference, autocast=autocast), "policy"


def plan(config: Config) -> list[str]:
    """What the stage would do."""
    lines, models = [], 1 + bool(config.sft) + bool(config.ppo)
    for name, source in config.evaluation.data.items():
        count = len(rows(config, name, source))
        lines.append(f"{name}: {count} prompts x {models} models, up to {max_new_tokens(config)} tokens")
    return lines


def run(run: Run) -> dict[str, Any]:
    """Write completions.jsonl, results.json and report.md into the run's evaluation folder and print the tables."""
    from accelerate import Accelerator

    from workbench.evaluation import Answers, answer, measure, table
    from workbench.models import load_policy_tokenizer
    from workbench.runs import write_text

    config, folder = run.config, run.stage(NAME)
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
    reward = ppo.reward_of(run) if config.reward else None
    judged_by = judges(config, reward)
    tables, summaries, completions = [], {}, []
    for name, of_set in sets.items():
        result = measure(
            of_set,
            answers[name],
            reward=reward,
            judges=judged_by,
            threshold=config.evaluation.threshold,
            seed=config.seed,
        )
        tables.append(table(result, name))
        summaries[name] = result.summary()
        for index, row in enumerate(of_set):
            texts = {title: of.completions[index] for title, of in answers[name].items()}
            scores = {metric: {title: v[index] for title, v in of.items()} for metric, of in result.values.items()}
            line = {"set": name, "prompt": row["prompt"], "reference": row.get("reference")}
            completions.append(json.dumps(line | {"completions": texts, "scores": scores}, ensure_ascii=False) + "\n")
    write_text(folder / "completions.jsonl", "".join(completions))
    write_text(folder / "results.json", json.dumps(summaries, indent=2) + "\n")
    write_text(folder / "report.md", "\n\n".join(tables) + "\n")
    print("\n" + "\n\n".join(tables) + "\n", flush=True)
    return {"inputs": {name: source.path for name, source in config.evaluation.data.items()}, "metrics": summaries}


STAGE = Stage(NAME, wanted, plan, run)

if __name__ == "__main__":
    main([STAGE], __doc__)
