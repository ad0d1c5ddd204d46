"""Evaluation: base, SFT and aligned policy side by side, with toxicity, ROUGE and paired intervals."""

# Imports of torch and transformers stand inside the functions, so that --help answers at once.
from __future__ import annotations

import json
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes import ppo
from workbench.config.schema import Config, DataSource, completion_limit
from workbench.errors import UserError, error_context
from workbench.run.cli import Stage, main
from workbench.run.distributed import print_once
from workbench.run.folder import Run

if TYPE_CHECKING:
    from accelerate import Accelerator

    from workbench.evaluation.generation import Answer
    from workbench.evaluation.metrics.similarity import Encoder
    from workbench.rewards.contract import CheckedReward, Judge

NAME = "evaluation"
Rows = list[dict[str, Any]]


def wanted(config: Config) -> bool:
    """Whether a policy was trained, whose answers can be compared with the base's."""
    return config.sft is not None or config.ppo is not None


def rows(config: Config, model: str, name: str, source: DataSource) -> Rows:
    """The rows of a prompt set, as `model` reads them."""
    from workbench.data.prompt_rows import prompt_rows
    from workbench.evaluation.corpus_metrics import references

    key = f"evaluation.data.{name}"
    found = prompt_rows(model, source, key=key, max_new_tokens=completion_limit(config))
    for row in found:
        given = row.get("reference")
        if not isinstance(given, str | list | None) or not all(isinstance(text, str) for text in references(row)):
            raise UserError(f"{source.path}: reference must be a text or a list of texts, found {row['reference']!r}")
    return found


def judges(config: Config, reward: CheckedReward | None) -> dict[str, Judge]:
    """The reward model as a judge, where it can judge, and the judges that were never a reward."""
    from workbench.rewards.registry import judge_of, load_judge

    found: dict[str, Judge] = {}
    if reward is not None and (judge := judge_of(reward)) is not None:
        found["reward"] = judge
    for name in config.evaluation.judges:
        if "reward" in found and name in parts_of_reward(config):
            print_once(f"evaluation.judges: {name} is the reward itself or a part of it, and no judge of it")
            continue
        with error_context("evaluation.judges"):
            found[name] = load_judge(name, **config.evaluation.judge_options.get(name, {}))
    return found


def parts_of_reward(config: Config) -> set[str]:
    """The names of the reward and of everything that it is made of."""
    assert config.reward is not None
    options = config.reward.options
    named_in = [options.get("model"), *options.get("models", []), *(term["model"] for term in options.get("terms", []))]
    return {str(name) for name in (config.reward.model, *named_in)}


def seen_in_training(config: Config, sets: dict[str, Rows]) -> dict[str, int]:
    """How many rows of each set were trained on as well, whatever the template around them."""
    from recipes import sft
    from workbench.data.prompts import identities

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
    from workbench.evaluation.settings import check_settings, notes_on_models, seeds_of

    check_settings(config)
    judges(config, None)
    encoder_of(config, "cpu")
    lines, models = notes_on_models(config), 1 + bool(config.sft) + bool(config.ppo) + len(config.evaluation.models)
    answers = config.evaluation.samples * len(seeds_of(config))
    for name, of_set in prompts(config)[config.policy.model].items():
        lines.append(
            f"{name}: {len(of_set)} prompts x {models} models x {answers} answers, up to {completion_limit(config)} tokens"
        )
    return lines


def encoder_of(config: Config, device: str) -> Encoder | None:
    """The encoder that compares answers with references, if one is wanted."""
    from workbench.evaluation.metrics.similarity import load_encoder

    if config.evaluation.similarity is None:
        return None
    with error_context("evaluation.similarity"):
        return load_encoder(config.evaluation.similarity, device=device)


def run(run: Run) -> dict[str, Any]:
    """Write completions.jsonl, results.json, report.md and report.html into the stage's folder and print the tables."""
    from accelerate import Accelerator

    from workbench.evaluation.settings import check_settings, notes_on_models

    config = run.config
    check_settings(config)
    for stage in ("sft", "ppo"):
        if (stage == "sft" and config.sft) or (stage == "ppo" and config.ppo):
            run.record(stage)
    for note in notes_on_models(config):
        print_once(f"evaluation.models.{note}")
    accelerator = Accelerator()
    sets, answers = answered(run, accelerator)
    if not accelerator.is_main_process:
        return {"inputs": {}, "metrics": {}}
    inputs = {name: source.path for name, source in config.evaluation.data.items()}
    return {"inputs": inputs, "metrics": report(run, sets, answers, accelerator.device.type)}


def answered(run: Run, accelerator: Accelerator) -> tuple[dict[str, Rows], dict[str, dict[str, list[list[Answer]]]]]:
    """The prompts of each set, and every model's answers to them; those that are kept from before are not sampled.

    The main process alone knows what is kept, and alone returns answers that were.
    """
    from accelerate.utils import broadcast_object_list

    from workbench.evaluation import cache as kept
    from workbench.evaluation.generation import answer
    from workbench.evaluation.models import candidates, loader
    from workbench.evaluation.settings import sampling_of

    config, folder, load, sampling = run.config, run.stage(NAME), loader(run, accelerator), sampling_of(run.config)
    known, content = kept.read(folder) if accelerator.is_main_process else {}, cache(kept.content_of)
    asked, used = prompts(config), {}
    answers: dict[str, dict[str, list[list[Answer]]]] = {name: {} for name in config.evaluation.data}
    for candidate in candidates(run):
        title, contender = candidate.title, None
        for name, own in asked[candidate.model].items():
            key = ""
            if accelerator.is_main_process:
                weights = [content(place) for place in candidate.weights]
                key = kept.key_of(candidate, weights, own, sampling, config.policy, accelerator)
            key, is_known = broadcast_object_list([key, key in known])
            if is_known:
                print_once(f"evaluation {name} {title}: the answers of before, from the same weights and settings")
            else:
                contender = contender or load(candidate)
                label = f"evaluation {name} {title}"
                known[key] = kept.lines_of(answer(contender, own, sampling, accelerator=accelerator, label=label))
                if accelerator.is_main_process:
                    kept.add(folder, key, known[key])
            if accelerator.is_main_process:
                used[key] = known[key]
                answers[name][title] = kept.answers_of(known[key])
    if accelerator.is_main_process and known.keys() != used.keys():
        kept.replace(folder, used)
    return asked[config.policy.model], answers


def prompts(config: Config) -> dict[str, dict[str, Rows]]:
    """The rows of each set as the policy's model reads them, and as each further model that is no adapter of it does.

    Raises UserError where the two do not read the same rows.
    """
    from workbench.data.prompts import identities
    from workbench.models.adapters import is_adapter

    def read(model: str) -> dict[str, Rows]:
        return {name: rows(config, model, name, source) for name, source in config.evaluation.data.items()}

    own = config.policy.model
    found = {own: read(own)}
    for title, place in config.evaluation.models.items():
        if place in found or is_adapter(Path(place).expanduser()):
            continue
        found[place] = read(place)
        for name, source in config.evaluation.data.items():
            if identities(found[place][name], source) != identities(found[own][name], source):
                raise UserError(
                    f"evaluation.models.{title}: other prompts of {name} fit it than fit the policy, since each counts "
                    f"its own tokens; take the longest ones out, or raise evaluation.data.{name}.max_prompt_tokens"
                )
    return found


def report(
    run: Run,
    sets: dict[str, Rows],
    answers: dict[str, dict[str, list[list[Answer]]]],
    device: str,
) -> dict[str, Any]:
    """Measure the answers, write the files, print the tables, and return the sets' results."""
    from workbench.evaluation.guards import guards
    from workbench.evaluation.metrics.similarity import similarity
    from workbench.evaluation.results import completion_lines, curves, head
    from workbench.evaluation.scoring import Scorers, given_toxicity, measure, set_result
    from workbench.evaluation.settings import seeds_of
    from workbench.evaluation.verdicts import overall
    from workbench.ppo.overoptimization import points
    from workbench.report.blurring import toxic_texts, toxic_words
    from workbench.report.evaluation_page import evaluation_page
    from workbench.report.markdown import markdown
    from workbench.run.files import write_text

    config, folder, threshold = run.config, run.stage(NAME), run.config.evaluation.threshold
    reward = ppo.reward_of(run) if config.reward else None
    encoder = encoder_of(config, device)
    scorers = Scorers(
        reward,
        judges(config, reward),
        (lambda texts, given: similarity(texts, given, encoder)) if encoder else None,
        threshold,
    )
    # The reward knows texts like the answers; of the prompts around them others can say more.
    independent = {name: judge for name, judge in scorers.judges.items() if name != "reward"}
    models = list(next(iter(answers.values())))
    after = "aligned" if "aligned" in models else "sft"
    before = "sft" if "sft" in models and after == "aligned" else "base"
    pairs = dict.fromkeys([(before, after), ("base", after), ("base", models[1])])
    pairs |= dict.fromkeys((before, title) for title in config.evaluation.models)
    seen_by_set, found, completions = seen_in_training(config, sets), {}, []
    for name, of_set in sets.items():
        measured = measure(of_set, answers[name], scorers, len(seeds_of(config)))
        neutral, seen = name in config.evaluation.neutral, seen_by_set[name]
        found[name] = set_result(measured, prompts=len(of_set), seeds=len(seeds_of(config)), pairs=list(pairs)) | {
            "neutral": neutral,
            "seen_in_training": seen,
        }
        toxicity = given_toxicity(of_set, independent or scorers.judges)
        completions += completion_lines(name, of_set, answers[name], measured, after, toxicity)
    limit, judged_by = completion_limit(config), independent_of_reward(list(scorers.judges), completions)
    results = head(run, models, before, after, judges=judged_by, device=device, max_new_tokens=limit) | {"sets": found}
    results |= {"verdict": overall(results), "guards": guards(results)}
    words = toxic_words(toxic_texts(completions, threshold), scorers.judges, threshold)
    reward_report = run.folder / "reward" / "report.json"
    page = evaluation_page(
        results,
        completions,
        offensive=words,
        curves=curves(run.folder),
        reward_report=json.loads(reward_report.read_text()) if reward_report.is_file() else None,
        watch=points(run.folder / "ppo" / "metrics.jsonl"),
    )
    lines = [json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in completions]
    write_text(folder / "completions.jsonl", "".join(lines))
    write_text(folder / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    write_text(folder / "report.md", markdown(results))
    write_text(folder / "report.html", page)
    print("\n" + markdown(results), flush=True)
    return found


def independent_of_reward(judged_by: list[str], completions: Rows) -> list[str]:
    """The judges without those that, under whatever name, say of every answer exactly what the reward says."""
    if "reward" not in judged_by:
        return judged_by
    said = {judge: [line["scores"][f"toxicity ({judge})"] for line in completions] for judge in judged_by}
    same = [judge for judge in judged_by if judge != "reward" and said[judge] == said["reward"]]
    for judge in same:
        print_once(f"evaluation.judges: {judge} says of every answer what the reward says, and is no judge of it")
    return [judge for judge in judged_by if judge not in same]


def failed(run: Run) -> str | None:
    """Why the finished evaluation shall end the command with exit code 1, if it shall."""
    from workbench.evaluation.guards import fails

    results = json.loads((run.stage(NAME) / "results.json").read_text())
    if run.config.evaluation.fail_on is None or not fails(results):
        return None
    broken = [guard["name"] for guard in results["guards"] if not guard["passed"]]
    return f"evaluation: verdict {results['verdict']['word']}, guards failed: {', '.join(broken) or 'none'}"


STAGE = Stage(NAME, wanted, plan, run, failed)

if __name__ == "__main__":
    main([STAGE], __doc__)
