"""Leaving sources out: which rows a classifier trains on and which it is measured on, and what is frozen meanwhile."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_runs import labeled, launch, lines, write_config
from transformers import AutoConfig, AutoModelForSequenceClassification

from benchmarks.reward_transfer import measure, split
from workbench.config.parsing import parse
from workbench.config.reward_training import RewardTraining
from workbench.config.sources import DataSource, LabeledSource
from workbench.data.sources import read_rows
from workbench.errors import UserError
from workbench.models.loading import resolve


def rows(kind: str) -> list[dict[str, Any]]:
    """Rows of three sources; the last two have one label each."""
    sources = [("a", 0), ("a", 1), ("b", 0), ("c", 1)]
    return [
        {"text": f"{kind} {source} {label} {i}", "label": label, "from": source}
        for source, label in sources
        for i in "xy"
    ]


def training(folder: Path) -> RewardTraining:
    """The settings of a classifier of these rows, and of a further source."""
    data, validation = (
        DataSource(**lines(folder / f"{kind}.jsonl", rows(kind))) for kind in ("training", "validation")
    )
    further = [
        LabeledSource(**lines(folder / f"more{label}.jsonl", [{"text": f"more {label}"}]), label=label)
        for label in "01"
    ]
    clean = [DataSource(**lines(folder / "clean.jsonl", [{"text": "clean"}]))]
    options: dict[str, Any] = {"perturbation_rate": 1.0, "identity_rate": 0.5, "label_names": {"0": "ok", "1": "bad"}}
    return RewardTraining("m", data, validation, target_label="0", more_data=further, clean_data=clean, **options)


@pytest.mark.parametrize("group", ["a", "b+c"])
def test_a_group_is_measured_on_all_of_its_rows_and_trained_on_none(group: str, tmp_path: Path) -> None:
    train = training(tmp_path)
    reduced, held_out = split(train, "from", group, tmp_path, 0)
    expected = [row for kind in ("training", "validation") for row in rows(kind) if row["from"] in group]
    assert held_out.texts == [row["text"] for row in expected]
    assert held_out.labels == [["ok", "bad"][row["label"]] for row in expected]
    for kind, source in (("training", reduced.data), ("validation", reduced.validation)):
        assert read_rows(source) == [row for row in rows(kind) if row["from"] not in group]
    assert (reduced.more_data, reduced.clean_data) == (train.more_data, train.clean_data)
    assert (reduced.perturbation_rate, reduced.identity_rate) == (1.0, 0.5)


def test_further_sources_are_a_group_and_a_group_needs_two_labels(tmp_path: Path) -> None:
    train = training(tmp_path)
    reduced, held_out = split(train, "from", "more_data", tmp_path, 0)
    assert (held_out.texts, held_out.labels) == (["more 0", "more 1"], ["ok", "bad"])
    assert not reduced.more_data
    assert (reduced.data, reduced.validation) == (train.data, train.validation)
    for group, count in (("b", 4), ("nothing", 0)):
        with pytest.raises(UserError, match=rf"^--hold_out {group}: its {count} rows have \d labels?; AUROC needs two"):
            split(train, "from", group, tmp_path, 0)


def test_a_classifier_is_measured_on_a_source_it_has_not_seen(in_project: Path, tmp_path: Path) -> None:
    sources = {"mild": ("silly", "nice"), "strong": ("idiot", "friend")}
    chance, texts = random.Random(0), {}
    for name, words in sources.items():
        for label, word in zip(("rude", "ok"), words, strict=True):
            people = [f"{chance.choice(['Anna', 'Tom', 'Mia'])} is a {word}, said Ben." for _ in range(40)]
            texts[name, label] = [{"text": text, "label": label, "source": name} for text in people]
    data = lines(tmp_path / "data.jsonl", [row for part in texts.values() for row in part])
    options = ["--config", str(write_config(tmp_path, {"data": data, "validation": data, "epochs": 4}))]
    config, _ = parse(options)
    result = measure(config, "source", "strong")
    assert (result["held out"], result["rows"], result["toxic"]) == ("strong", 160, 80)
    assert 0 <= result["AUROC"] <= 1
    assert result["CPU seconds"] > 0


def test_frozen_embeddings_stay_and_dropout_is_as_set(in_project: Path, tmp_path: Path) -> None:
    train = {"freeze_embeddings": True, "dropout": 0.25, "average_from": 0.5, "epochs": 1}
    folder = launch(tmp_path, train | {"data": labeled(tmp_path / "t.jsonl", 64, 0)})
    before, after = (AutoModelForSequenceClassification.from_pretrained(f) for f in (resolve("toy:gpt2"), folder))
    assert torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)
    changed = [
        not torch.equal(a, b)
        for a, b in zip(before.transformer.h.parameters(), after.transformer.h.parameters(), strict=True)
    ]
    assert all(changed)
    dropout = {name: value for name, value in AutoConfig.from_pretrained(folder).to_dict().items() if "pdrop" in name}
    assert dropout == dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.25)
