"""How well a toxicity classifier transfers to comments from a source that it has not seen.

Run `python -m benchmarks.reward_transfer --config smollm2_reward --hold_out davidson paradetox civil_spans+wiki_cat
[--KEY VALUE ...]`: for each group of sources, the classifier of reward.train is trained without them and scores all of
their rows, those of the validation file included. The sources are those in a column of the data; a source whose rows
all have one label needs another one beside it. `more_data` is the group of the further sources. Prints one table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from workbench.config.names import REWARD
from workbench.config.parsing import parse
from workbench.config.reward_training import RewardTraining, target_name
from workbench.config.schema import Config
from workbench.config.sources import DataSource
from workbench.data.sources import read_rows
from workbench.errors import UserError
from workbench.rewards.contract import CheckedReward
from workbench.rewards.ranking import auroc
from workbench.rewards.registry import load_trained_reward
from workbench.rewards.training.datasets import LabeledTexts, load_classifier_rows
from workbench.rewards.training.plan import plan_reward
from workbench.rewards.training.saving import save_reward_model
from workbench.rewards.training.trainers import make_reward_trainer
from workbench.rewards.training.validation import identity_gap, probability
from workbench.run.process import exit_on_error

MORE_DATA = "more_data"


def without(source: DataSource, column: str, held_out: set[str], folder: Path, name: str) -> tuple[DataSource, int]:
    """Return a source of the rows whose `column` is not held out, written to `folder`, and the number of the others."""
    rows = read_rows(source)
    rest = [row for row in rows if row[column] not in held_out]
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rest), encoding="utf-8")
    return DataSource(str(file)), len(rows) - len(rest)


def split(
    train: RewardTraining, column: str, group: str, folder: Path, seed: int
) -> tuple[RewardTraining, LabeledTexts]:
    """Return the training without a group of sources, and the texts of the group with their labels.

    Raises UserError if the group has no rows or rows of one label only.
    """
    plain = dataclasses.replace(train, perturbation_rate=0.0, identity_rate=0.0, clean_data=[])
    rows = load_classifier_rows(dataclasses.replace(plain, more_data=[]), seed)
    if group == MORE_DATA:
        first = len(rows.training.texts)
        everything = load_classifier_rows(plain, seed).training
        texts, labels = everything.texts[first:], everything.labels[first:]
        reduced = dataclasses.replace(train, more_data=[])
    else:
        held_out = set(group.split("+"))
        in_group = [row[column] in held_out for source in (train.data, train.validation) for row in read_rows(source)]
        both = zip(
            rows.training.texts + rows.validation.texts, rows.training.labels + rows.validation.labels, strict=True
        )
        chosen = [pair for pair, is_held_out in zip(both, in_group, strict=True) if is_held_out]
        texts, labels = [text for text, _ in chosen], [label for _, label in chosen]
        data, _ = without(train.data, column, held_out, folder, "train")
        validation, _ = without(train.validation, column, held_out, folder, "validation")
        reduced = dataclasses.replace(train, data=data, validation=validation)
    if len(set(labels)) < 2:
        raise UserError(f"--hold_out {group}: its {len(texts)} rows have {len(set(labels))} label; AUROC needs two")
    return reduced, LabeledTexts(texts, labels)


def trained(config: Config, train: RewardTraining, folder: Path) -> tuple[CheckedReward, str]:
    """Return the reward model that `train` describes, and the name of the label that it rewards."""
    assert config.reward is not None
    reward = dataclasses.replace(config.reward, train=train)
    plan = plan_reward(dataclasses.replace(config, reward=reward))
    set_seed(config.seed)
    trainer = make_reward_trainer(plan, folder)
    trainer.train()
    save_reward_model(trainer, plan.tokenizer, folder, train.max_tokens)
    return load_trained_reward(reward, folder), target_name(train)


def measure(config: Config, column: str, group: str) -> dict[str, Any]:
    """Return what a classifier that was trained without a group of sources makes of its rows."""
    assert config.reward is not None
    assert config.reward.train is not None
    before = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, held_out = split(config.reward.train, column, group, folder, config.seed)
        reward, target = trained(config, train, folder / REWARD)
        spent = time.process_time() - before

        def log_odds(texts: list[str]) -> np.ndarray:
            return -np.asarray(reward([""] * len(texts), texts))

        toxic = np.array([label != target for label in held_out.labels])
        scores = log_odds(held_out.texts)
        identity = identity_gap(lambda texts: probability(log_odds(texts)), train.threshold)
    return {
        "held out": group,
        "rows": len(toxic),
        "toxic": int(toxic.sum()),
        "AUROC": auroc(scores, toxic),
        "accuracy": float(((scores > 0) == toxic).mean()),
        "harmless sentences about groups called toxic": identity["flagged_rate"],
        "CPU seconds": spent,
    }


def main(arguments: list[str]) -> None:
    """Print a row for each group of sources, and the mean AUROC."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hold_out", nargs="+", required=True, help="groups of sources, joined by +")
    parser.add_argument("--source_column", default="source")
    options, rest = parser.parse_known_args(arguments)
    config, _ = parse(rest)
    if config.reward is None or config.reward.train is None or config.reward.train.objective != "classifier":
        raise UserError("reward.train: missing, or for preferences; name a configuration that trains a classifier")
    results: list[dict[str, Any]] = []
    for group in options.hold_out:
        result = measure(config, options.source_column, group)
        if not results:
            print("| " + " | ".join(result) + " |\n|---|" + "---:|" * (len(result) - 1))
        cells = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in result.values()]
        print("| " + " | ".join(cells) + " |", flush=True)
        results.append(result)
    print(f"mean AUROC {np.mean([result['AUROC'] for result in results]):.4f}")


if __name__ == "__main__":
    exit_on_error(main)
