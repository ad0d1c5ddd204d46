"""The model card: what a published model is, how to load it, its evaluation, provenance and limitations."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.config.derived import algorithm_name
from workbench.config.names import PPO, REWARD, SFT, TRAINED_BY
from workbench.config.schema import Config, PPOConfig
from workbench.config.sources import DataSource
from workbench.evaluation.non_inferiority import retention_sentence
from workbench.evaluation.results import Results, SetResult, Settings
from workbench.evaluation.reward_gap import describe_gap, gaps_by_set
from workbench.evaluation.verdicts import MINIMUM_PROMPTS
from workbench.export.exported import (
    ExportedModel,
    base_model,
    hub_id,
    loading_code,
    public_name,
    reward_description,
    reward_training,
    training_sources,
)
from workbench.export.model_index import policy_entries, reward_entries
from workbench.report.markdown import markdown_table
from workbench.report.page import text
from workbench.report.tables import Row, sampling_description, set_table, text_cells
from workbench.run.files import content_hash

TITLES = {stage: title for title, stage in TRAINED_BY.items()}
TAGS = {PPO: ["rlhf"], SFT: ["sft"], REWARD: ["reward-model"]}
SFT_SETTINGS = ("batch_size", "learning_rate")
PPO_SETTINGS = (
    *(
        "loss",
        "offline",
        "advantage",
        "steps",
        "batch_size",
        "samples_per_prompt",
        "minibatch_size",
        "epochs",
        "learning_rate",
        "kl_coef",
    ),
    *("kl_estimator", "kl_in", "kl_target", "clip_range", "max_new_tokens", "temperature", "score_clip", "score_scale"),
    *("missing_eos_penalty", "value_model", "oversampling"),
)
REWARD_SETTINGS = (
    *("objective", "target_label", "epochs", "batch_size", "learning_rate", "max_tokens", "perturbation_rate"),
    "identity_rate",
)
HASH_DIGITS = 16
MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word is not markup
MADE_BY = "Trained with the alignment workbench."
NOT_EVALUATED = "Not evaluated: the run has no finished evaluation."


def card(model: ExportedModel, results: Results | None, report: dict[str, Any] | None) -> str:
    """Return the card as Markdown with YAML front matter.

    `results` is None where the run has no finished evaluation; `report` is the reward model's report.json.
    """
    parts = [f"---\n{front_matter(model, results)}\n---", f"# {escape(model.config.name)}", summary(model)]
    parts += ["## Usage", loading_code(model), "## Evaluation"]
    if model.stage == REWARD:
        parts.append(reward_evaluation(model, report))
        limitations = reward_limitations()
    else:
        parts.append(policy_evaluation(model, results))
        limitations = policy_limitations(model, results)
    parts += ["## Provenance", provenance(model), "## Training settings", training_settings(model)]
    parts += ["## Limitations", "\n".join(f"- {limitation}" for limitation in limitations)]
    return "\n\n".join(parts) + "\n"


def escape(value: object) -> str:
    """Return a value as text of a Markdown line or cell, never as markup."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text(value).split()))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table in which no value is markup."""
    return markdown_table(head, rows, escape)


def front_matter(model: ExportedModel, results: Results | None) -> str:
    """Return the card's YAML, without a licence or a language, which would be guesses."""
    from huggingface_hub import ModelCardData

    config = model.config
    datasets = [hub_id(source.path) for stage in model.stages for source in training_sources(config, stage)]
    task = None if model.is_encoder_decoder else "text-generation"
    if model.stage == REWARD:
        measured = reward_entries(config, model.run.record(REWARD)["metrics"])
    else:
        measured = policy_entries(config, results, TITLES[model.stage]) if results is not None else []
    uses_lora = model.stage != REWARD and config.policy.lora
    algorithm = [algorithm_name(config.ppo).lower()] if model.stage == PPO and config.ppo else []
    return ModelCardData(
        base_model=hub_id(base_model(config, model.stage)),
        datasets=list(dict.fromkeys(name for name in datasets if name)) or None,
        library_name="peft" if model.form == "adapter" else "transformers",
        pipeline_tag="text-classification" if model.stage == REWARD else task,
        tags=[*TAGS[model.stage], *algorithm, *(["lora"] if uses_lora else [])],
        model_name=config.name if measured else None,
        eval_results=measured or None,
    ).to_yaml()


def summary(model: ExportedModel) -> str:
    """Return what the model is and how it was trained, in a paragraph."""
    config, base = model.config, escape(public_name(base_model(model.config, model.stage)))
    if model.stage == REWARD:
        classifier = reward_training(config).objective == "classifier"
        kind = "text classifier" if classifier else "preference model (one score per text)"
        if names := reward_training(config).label_names:
            kind += escape(f" (labels: {', '.join(names.values())})")
        return f"A {kind} fine-tuned from {base} as a reward model for PPO. {MADE_BY}"
    kind = {
        "adapter": f"A LoRA adapter for {base}",
        "merged": f"{base} with a merged LoRA adapter",
        "full": f"A full fine-tune of {base}",
        "reward": "",
    }[model.form]
    steps = ["supervised fine-tuning"] if config.sft else []
    if model.stage == PPO:
        assert config.ppo is not None
        reference = "SFT policy" if config.sft else "base model"
        penalty = f", regularized towards the {reference} by a KL penalty" if config.ppo.kl_coef else ""
        steps.append(f"{algorithm_name(config.ppo)} {learned_from(config, config.ppo)}{penalty}")
    return f"{kind}, trained by {', then '.join(steps)}. {MADE_BY}"


def learned_from(config: Config, ppo: PPOConfig) -> str:
    """Return what the alignment learned from: a reward, or pairs of the data."""
    if ppo.offline or config.reward is None:
        return "on chosen and rejected responses"
    reward = escape(reward_description(config.reward))
    return f"against {reward if config.reward.model is None else f'the reward {reward}'}"


def policy_evaluation(model: ExportedModel, results: Results | None) -> str:
    """Return the verdict, the guards that failed, and the table of each prompt set."""
    if results is None:
        return NOT_EVALUATED
    title = TITLES[model.stage]
    is_after = title == results.after
    before = results.before if is_after else results.models[0]
    models = results.models if is_after else [before, title]
    parts = [f"Evaluated {escape(results.provenance.date)}: {escape(sampling_description(results.settings))}."]
    if is_after:
        parts.insert(0, f"**{escape(results.verdict.headline)}**: {escape(results.verdict.sentence)}")
        if retained := retention_sentence(results):
            parts.insert(1, escape(retained))
        failed = [f"- {escape(guard.name)}: {escape(guard.text)}" for guard in results.guards if not guard.passed]
        parts.append("Failed guards:\n\n" + "\n".join(failed) if failed else "No guard failed.")
    for result in results.sets:
        neutral = " (neutral prompts: any change is a side effect)" if result.neutral else ""
        parts.append(f"**{escape(result.name)}**: {result.size}{neutral}")
        parts.append(evaluation_table(result, models, before, title, results.settings))
        if is_after:
            parts += [escape(describe_gap(gap)) for measured, gap in gaps_by_set(results) if measured is result]
    return "\n\n".join(parts)


def evaluation_table(result: SetResult, models: Sequence[str], before: str, after: str, settings: Settings) -> str:
    """Return the report's table of a set; an undetected change gets the number of prompts that would reveal it."""
    set_rows = set_table(result, models, before, after)
    head, lines = text_cells(set_rows, settings)
    for row, line in zip(set_rows.rows, lines, strict=True):
        line[-1] += _prompts_needed(row)
    return markdown_table(head, lines, escape, numeric=range(1, len(head) - 1))


def _prompts_needed(row: Row) -> str:
    """Return how many prompts would reveal a change that was not detected; "" if that is unknown."""
    difference = row.difference
    if difference is None or difference.verdict != "no detectable change" or not difference.prompts_needed:
        return ""
    units = "prompts" if difference.clusters is None else "clusters"
    return f" (about {difference.prompts_needed} {units} needed)"


def reward_evaluation(model: ExportedModel, report: dict[str, Any] | None) -> str:
    """Return the numbers of the reward model's report, and its warnings."""
    metrics = model.run.record(REWARD)["metrics"]
    figures = table(["metric", "validation rows"], [[name, f"{value:.4g}"] for name, value in metrics.items()])
    if report is None:
        return f"{figures}\n\nThe run has no report.json."
    warnings = "\n".join(f"- {escape(warning)}" for warning in report["warnings"]) or "- none"
    return f"{figures}\n\nWarnings:\n\n{warnings}\n\nDetails, with quoted texts: report.json, report.html."


def provenance(model: ExportedModel) -> str:
    """Return each training stage with its data, seed, commit and hashes, and the versions of the last."""
    rows = [["base", *_model_cells(base_model(model.config, model.stage))]]
    for stage in model.stages:
        if stage == PPO and model.config.reward is not None:
            rows.append(_reward_row(model))
        rows.append(_stage_row(model, stage, ""))
    versions = ", ".join(f"{name} {version}" for name, version in model.run.record(model.stage)["versions"].items())
    return (
        table(["stage", "model", "data", "seed", "commit", "model, sha256"], rows)
        + f"\n\nContent hash of this folder's model: {model.sha256[:HASH_DIGITS]}. All hashes are the first "
        f"{HASH_DIGITS} digits of a sha256; data hashes were computed at export time. Versions: {escape(versions)}."
    )


def _model_cells(name: str) -> list[str]:
    """Return the cells of a model that no stage of the run trained."""
    return [public_name(name), "", "", "", (content_hash(Path(name).expanduser()) or "")[:HASH_DIGITS]]


def _reward_row(model: ExportedModel) -> list[str]:
    """Return the row of the reward that was optimized."""
    reward = model.config.reward
    assert reward is not None
    if reward.model is None:
        return _stage_row(model, REWARD, f"from {public_name(reward_training(model.config).model)}")
    return [REWARD, reward_description(reward), *_model_cells(reward.model)[1:]]


def _stage_row(model: ExportedModel, stage: str, name: str) -> list[str]:
    """Return the row of a stage of the run."""
    record = model.run.record(stage)
    data = ", ".join(_data(source) for source in training_sources(model.config, stage))
    digest = (content_hash(model.run.folder / stage) or "")[:HASH_DIGITS]
    return [stage, name, data, str(record["seed"]), record["commit"] or "", digest]


def _data(source: DataSource) -> str:
    """Return the name and split of a data source and, for a file, its hash."""
    file = Path(source.path).expanduser()
    digest = content_hash(file) if file.is_file() else None
    return f"{public_name(source.path)} ({source.split}{f', sha256 {digest[:HASH_DIGITS]}' if digest else ''})"


def training_settings(model: ExportedModel) -> str:
    """Return the main hyperparameters under their keys in the configuration."""
    config = model.config
    rows: list[tuple[str, Any]] = [("seed", config.seed)]
    if model.stage != REWARD:
        rows += [(f"policy.{name}", getattr(config.policy, name)) for name in ("precision", "quantization")]
        lora = dataclasses.asdict(config.policy.lora) if config.policy.lora else {}
        rows += [(f"policy.lora.{name}", value) for name, value in lora.items()] or [("policy.lora", "none")]
    names: tuple[str, ...]
    for stage in model.stages:
        if stage == REWARD:
            key, section, names = "reward.train", dataclasses.asdict(reward_training(config)), REWARD_SETTINGS
        else:
            key, section = stage, dataclasses.asdict(config)[stage]
            names = PPO_SETTINGS if stage == PPO else SFT_SETTINGS
        if stage == SFT:
            rows.append(("sft steps", model.run.record(SFT)["metrics"]["steps"]))
        rows += [(f"{key}.{name}", section[name]) for name in names]
    return table(["setting", "value"], [row for row in rows if row[1] is not None])


def policy_limitations(model: ExportedModel, results: Results | None) -> list[str]:
    """Return what the numbers do not show."""
    config = model.config
    limitations = [NOT_EVALUATED] if results is None else evaluation_limitations(model, results)
    limitations.append(f"One training run, with seed {config.seed}; results vary between seeds.")
    limitations.append("The languages of the training data are not recorded.")
    if config.policy.quantization:
        limitations.append(
            f"Trained on a base quantized to {config.policy.quantization}; completions on the unquantized base differ "
            "slightly."
        )
    if config.policy.model.startswith("toy:"):
        limitations.append("The base is a toy model that knows only generated dialogues.")
    return [*limitations, "Not for deployment without human review of its completions."]


def evaluation_limitations(model: ExportedModel, results: Results) -> list[str]:
    """Return what the evaluation did not measure, and where it is weak."""
    limitations = [
        "Only the metrics in the tables were measured. Not measured: factual accuracy, helpfulness, bias against "
        "groups, memorization of training data, adversarial prompts."
    ]
    if results.settings.reward_is_only_judge and model.stage == PPO:
        limitations.append(
            "The only toxicity judge is the reward that was optimized, so reward hacking cannot be ruled out."
        )
    elif results.settings.judges:
        judges = ", ".join(map(escape, results.settings.judges))
        limitations.append(f"Toxicity was measured by these judges only: {judges}.")
    else:
        limitations.append("No toxicity judge was configured.")
    for result in results.sets:
        count, name = result.size, escape(result.name)
        if result.units < MINIMUM_PROMPTS:
            limitations.append(f"{name}: {count}, too few to detect a small change.")
        if result.seen_in_training:
            limitations.append(f"{name}: the training data contains {result.seen_in_training} of {count}.")
    return limitations


def reward_limitations() -> list[str]:
    """Return the limitations that every reward model has."""
    return [
        "It reproduces the labels of its training data, errors included; the languages of the data are not recorded.",
        "The numbers are from the run's own validation rows; it may do worse on other data.",
        "A policy optimized against it will find texts that it overrates.",
        "Not for decisions about people or their texts without human review.",
    ]
