"""Options of a quickstart that takes a few steps."""

from __future__ import annotations

import json
from pathlib import Path

from recipes import evaluation, ppo, prompting, reward, sft, tuning
from workbench.run.checksums import checksums
from workbench.run.folder import is_result
from workbench.run.stage_record import CHECKSUM, write_record

CHAIN = [sft.STAGE, reward.STAGE, ppo.STAGE, evaluation.STAGE]
RECIPES = {
    "detox": CHAIN,
    **{stage.name: [stage] for stage in (*CHAIN, prompting.STAGE, tuning.STAGE)},
}
CONFIGS = Path(__file__).resolve().parent.parent / "recipes" / "configs"

SMALL = [
    *("--sft.max_steps", "3", "--sft.batch_size", "8", "--sft.data.limit", "64"),
    *("--reward.train.data.limit", "64", "--reward.train.validation.limit", "40", "--reward.train.epochs", "1"),
    *("--reward.train.clean_data", "[]", "--reward.train.clean_validation.limit", "40"),
    *("--ppo.steps", "2", "--ppo.batch_size", "8", "--ppo.minibatch_size", "4", "--ppo.epochs", "1"),
    *("--ppo.data.limit", "64", "--ppo.max_new_tokens", "6", "--evaluation.batch_size", "10"),
]


def small(name: str, folder: Path, *options: str) -> list[str]:
    """Return options of a short quickstart in `folder`; the reward is the toy lexicon unless `options` name another."""
    reward_options = [] if "--reward.model" in options else ["--reward.model", "toy_lexicon"]
    sets = ["--evaluation.data", json.dumps({"test dialogues": evaluation_source(10)})]
    return ["--config", str(CONFIGS / f"{name}.yaml"), "--runs", str(folder), *SMALL, *sets, *reward_options, *options]


def record_files(stage: Path) -> None:
    """Let a stage's record say that it left the files that are there now."""
    record = json.loads((stage / "stage.json").read_text())
    del record[CHECKSUM]
    files = [path for path in stage.iterdir() if path.is_file() and is_result(Path(path.name))]
    write_record(stage, record | {"files": checksums(stage, files)})


def evaluation_source(limit: int, split: str = "test") -> dict[str, object]:
    """Return a prompt set of a few toy dialogues."""
    return {
        "path": "toy:summaries",
        "split": split,
        "template": "{dialogue}",
        "columns": {"reference": "summary"},
        "limit": limit,
    }


def drop(options: list[str], *names: str) -> list[str]:
    """Return the options without those called so, and without their values."""
    rest = []
    skip = False
    for option in options:
        if not skip and option not in names:
            rest.append(option)
        skip = option in names
    return rest


def fraction_of_e(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """Score the fraction of letters e: a reward that cannot judge toxicity."""
    return [text.count("e") / max(len(text), 1) for text in completions]
