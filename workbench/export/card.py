"""The model card: what a published model is, how it loads, what was measured, where it comes from, what is unknown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from workbench.config.schema import DataSource
from workbench.evaluation.results import file_hash, weights_hash
from workbench.evaluation.verdicts import pair_key
from workbench.export.exported import Subject, base_of, hub_id, loading, reward_name, shown, sources, stages, training
from workbench.report.markdown import how, interval
from workbench.report.page import text
from workbench.run.files import folder_hash

TITLES = {"ppo": "aligned", "sft": "sft"}
TAGS = {"ppo": ["rlhf", "ppo"], "sft": ["sft"], "reward": ["reward-model"]}
SFT_SETTINGS = ("batch_size", "learning_rate")
PPO_SETTINGS = (
    *("steps", "batch_size", "minibatch_size", "epochs", "learning_rate", "kl_coef", "kl_estimator", "kl_target"),
    *("clip_range", "max_new_tokens", "temperature", "score_clip", "score_scale", "missing_eos_penalty", "value_model"),
)
REWARD_SETTINGS = ("objective", "target_label", "epochs", "batch_size", "learning_rate", "max_tokens", "variants")
DIGITS = 16  # of a sha256 that are shown
MARKS = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word is none


def card(subject: Subject, results: dict[str, Any] | None, report: dict[str, Any] | None) -> str:
    """The card as Markdown with YAML front matter.

    `results` is the evaluation's results.json, None where nothing was measured; `report` the reward's report.json.
    """
    parts = [f"---\n{front_matter(subject)}\n---", f"# {cell(subject.run.config.name)}", summary(subject)]
    parts += ["## How to load it", loading(subject)]
    if subject.stage == "reward":
        parts += ["## What was measured", reward_measured(subject, report)]
        known_limits = reward_limits()
    else:
        parts += ["## Before and after", measured(subject, results)]
        known_limits = policy_limits(subject, results)
    parts += ["## Where it comes from", lineage(subject), "## Training settings", settings(subject)]
    parts += ["## Limits", "\n".join(f"- {limit}" for limit in known_limits)]
    return "\n\n".join(parts) + "\n"


def cell(value: object) -> str:
    """A value as text of a Markdown table or line, never as markup."""
    return MARKS.sub(r"\\\g<0>", " ".join(text(value).split()))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table of texts."""
    lines = [[cell(value) for value in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def front_matter(subject: Subject) -> str:
    """The card's YAML; a licence and a language would be guesses."""
    from huggingface_hub import ModelCardData

    config = subject.run.config
    found = [hub_id(source.path) for stage in stages(subject) for source in sources(config, stage)]
    task = None if subject.is_encoder_decoder else "text-generation"
    uses_lora = subject.stage != "reward" and config.policy.lora
    return ModelCardData(
        base_model=hub_id(base_of(config, subject.stage)),
        datasets=list(dict.fromkeys(name for name in found if name)) or None,
        library_name="peft" if subject.form == "adapter" else "transformers",
        pipeline_tag="text-classification" if subject.stage == "reward" else task,
        tags=[*TAGS[subject.stage], *(["lora"] if uses_lora else [])],
    ).to_yaml()


def summary(subject: Subject) -> str:
    """What it is, in a paragraph."""
    config, base = subject.run.config, cell(shown(base_of(subject.run.config, subject.stage)))
    if subject.stage == "reward":
        kind = "classifier" if training(config).objective == "classifier" else "preference model, with one score,"
        return f"A text {kind} that began as {base}, trained to be a reward of PPO. Made with the alignment workbench."
    what = {
        "adapter": f"A LoRA adapter for {base}",
        "merged": f"{base} with a LoRA adapter merged into its weights",
        "full": f"{base} with every weight trained",
        "reward": "",
    }[subject.form]
    how_made = ["fine-tuned on prompts and answers (SFT)"] if config.sft else []
    if subject.stage == "ppo":
        assert config.reward is not None
        assert config.ppo is not None
        held = (
            f", held near {'its SFT self' if config.sft else 'the base'} by a KL penalty" if config.ppo.kl_coef else ""
        )
        how_made.append(f"aligned by PPO with the reward {cell(reward_name(config.reward))}{held}")
    return f"{what}: {', then '.join(how_made)}. Made with the alignment workbench."


def measured(subject: Subject, results: dict[str, Any] | None) -> str:
    """The verdict, the guards that failed, and the table of each prompt set."""
    if results is None:
        return "Nothing was measured: the run has no finished evaluation."
    own = TITLES[subject.stage]
    before = results["before"] if own == results["after"] else results["models"][0]
    models = results["models"] if own == results["after"] else [before, own]
    seeds = _listed(results["seeds"])
    parts = [f"Answers: {cell(how(results))}. Evaluated {cell(results['date'])}, seeds of the answers {seeds}."]
    if own == results["after"]:
        parts.insert(0, f"**{cell(results['verdict']['word'])}**: {cell(results['verdict']['sentence'])}")
        broken = [guard for guard in results["guards"] if not guard["passed"]]
        lines = [f"- {cell(guard['name'])}: {cell(guard['text'])}" for guard in broken]
        parts.append("Guards that failed:\n\n" + "\n".join(lines) if broken else "No guard failed.")
    for name, found in results["sets"].items():
        neutral = " (neutral prompts, to see what was unlearned)" if found["neutral"] else ""
        parts += [f"**{cell(name)}**: {found['prompts']} prompts{neutral}", set_table(found, models, before, own)]
    return "\n\n".join(parts)


def set_table(found: dict[str, Any], models: Sequence[str], before: str, after: str) -> str:
    """Means of each model, and the paired difference after - before with its 95 % interval and its word."""
    pair = pair_key(before, after)
    rows = []
    for metric, values in found["metrics"].items():
        means = ["" if values["means"].get(model) is None else f"{values['means'][model]:.3f}" for model in models]
        difference = found["comparisons"].get(pair, {}).get(metric)
        rows.append([metric, *means, *(_difference(difference) if difference else ("", ""))])
    return table(["", *models, f"{pair} [95 % interval]", "verdict"], rows)


def _difference(found: dict[str, Any]) -> tuple[str, str]:
    word = found["verdict"] or ""
    if word == "no detectable change" and found["prompts_needed"]:
        word += f" (about {found['prompts_needed']} prompts would show this difference)"
    return f"{found['difference']:+.3f} {interval(found)}", word


def reward_measured(subject: Subject, report: dict[str, Any] | None) -> str:
    """The report's figures and its warnings."""
    figures = subject.run.record("reward")["metrics"]
    lines = [table(["on the validation rows", ""], [[name, f"{value:.4g}"] for name, value in figures.items()])]
    if report is None:
        return f"{lines[0]}\n\nThe run wrote no report.json."
    warnings = [f"- {cell(warning)}" for warning in report["warnings"]] or ["- none"]
    return "\n\n".join([*lines, "Warnings:", "\n".join(warnings), "More, with quoted texts: report.json, report.html."])


def lineage(subject: Subject) -> str:
    """Each step with its data, hashes, seed and commit, and the versions of the last."""
    config, steps = subject.run.config, stages(subject)
    rows = [["base", *_model(base_of(config, subject.stage))]]
    for step in steps:
        if step == "ppo":
            rows.append(_reward_row(subject))
        rows.append(_trained_row(subject, step, ""))
    versions = ", ".join(f"{name} {version}" for name, version in subject.run.record(subject.stage)["versions"].items())
    return (
        table(["step", "model", "data", "seed", "commit", "weights, sha256"], rows)
        + f"\n\nsha256 of the weights published here: {subject.sha256[:DIGITS]}. Hashes are cut to {DIGITS} digits; "
        f"those of data are of the files as they were at export. Versions: {cell(versions)}."
    )


def _model(name: str) -> list[str]:
    return [shown(name), "", "", "", (weights_hash(name) or "")[:DIGITS]]


def _reward_row(subject: Subject) -> list[str]:
    reward = subject.run.config.reward
    assert reward is not None
    if reward.model is None:
        return _trained_row(subject, "reward", f"from {shown(training(subject.run.config).model)}")
    return ["reward", reward_name(reward), *_model(reward.model)[1:]]


def _trained_row(subject: Subject, stage: str, model: str) -> list[str]:
    run, record = subject.run, subject.run.record(stage)
    data = ", ".join(_data(source) for source in sources(run.config, stage))
    digest = folder_hash(run.folder / stage)[:DIGITS]
    return [stage, model, data, str(record["seed"]), record["commit"] or "", digest]


def _data(source: DataSource) -> str:
    digest = file_hash(source.path)
    return f"{shown(source.path)} ({source.split}{f', sha256 {digest[:DIGITS]}' if digest else ''})"


def settings(subject: Subject) -> str:
    """What a repetition would need to know first, under the configuration's own keys."""
    config = subject.run.config
    rows: list[tuple[str, Any]] = [("seed", config.seed)]
    if subject.stage != "reward":
        rows += [(f"policy.{name}", dataclasses.asdict(config.policy)[name]) for name in ("precision", "quantization")]
        lora = dataclasses.asdict(config.policy.lora) if config.policy.lora else {}
        rows += [(f"policy.lora.{name}", value) for name, value in lora.items()] or [("policy.lora", "none")]
    names: tuple[str, ...]
    for stage in stages(subject):
        if stage == "reward":
            key, section, names = "reward.train", dataclasses.asdict(training(config)), REWARD_SETTINGS
        else:
            key, section = stage, dataclasses.asdict(config)[stage]
            names = PPO_SETTINGS if stage == "ppo" else SFT_SETTINGS
        if stage == "sft":
            rows.append(("sft steps", subject.run.record("sft")["metrics"]["steps"]))
        rows += [(f"{key}.{name}", section[name]) for name in names]
    return table(["setting", "value"], [row for row in rows if row[1] is not None])


def policy_limits(subject: Subject, results: dict[str, Any] | None) -> list[str]:
    """What the figures do not say."""
    config = subject.run.config
    found = ["Nothing was measured: whether it is better than its base is unknown."]
    if results is not None:
        found = measured_limits(subject, results)
    found.append(f"One training run with seed {config.seed}; another seed may end elsewhere.")
    found.append("The languages of its data are not recorded; nothing is known of any other.")
    if config.policy.quantization:
        found.append(
            f"Trained on a base in {config.policy.quantization}; on the unquantized base its answers differ a little."
        )
    if config.policy.model.startswith("toy:"):
        found.append("The base is a toy that knows generated dialogues only.")
    return [*found, "Not for use without people who watch what it writes."]


def measured_limits(subject: Subject, results: dict[str, Any]) -> list[str]:
    """What the evaluation left out, and where it is weak."""
    judges = results["judges"]
    found = [
        "Measured is what the tables hold. Not measured: whether its answers are true or useful otherwise, "
        "bias against groups, what it remembers of its data, prompts that set out to make it harmful."
    ]
    if judges == ["reward"] and subject.stage == "ppo":
        found.append("The only judge is the reward that PPO maximised, which may have been fooled.")
    elif judges:
        found.append(f"Less toxic means less toxic to these judges alone: {_listed(judges)}.")
    else:
        found.append("No judge of toxicity was asked.")
    for name, of_set in results["sets"].items():
        if not of_set["enough"]:
            found.append(f"{cell(name)}: {of_set['prompts']} prompts are too few to tell a small change from chance.")
        if of_set["seen_in_training"]:
            found.append(f"{cell(name)}: {of_set['seen_in_training']} of its prompts were trained on.")
    return found


def reward_limits() -> list[str]:
    """What a reward model is not."""
    return [
        "It knows the labels of its data and nothing of why they were given; the data's languages are not recorded.",
        "The figures are of its own validation rows; elsewhere it can be worse.",
        "A policy that is trained against it finds texts that it scores too high.",
        "Not for decisions about people or their texts without a person who looks at each.",
    ]


def _listed(values: Sequence[object]) -> str:
    return ", ".join(cell(value) for value in values)
