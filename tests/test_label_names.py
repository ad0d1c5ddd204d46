"""The names that labels get in a published classifier: who reads them, and which names are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reward_runs import labeled, launch, lines
from transformers import AutoConfig, pipeline

from reward_models.classifier import load
from workbench.config.reward_training import RewardTraining
from workbench.config.sources import DataSource, LabeledSource
from workbench.errors import UserError
from workbench.rewards.registry import load_reward
from workbench.rewards.training.datasets import load_classifier_rows

TEXTS = ["Anna is a friend, said Tom.", "Anna is an idiot, said Tom."]


def training(folder: Path, rows: list[dict[str, Any]], **options: Any) -> RewardTraining:
    """The settings of a classifier of these rows, which it also is validated on."""
    source = DataSource(**lines(folder / "rows.jsonl", rows))
    return RewardTraining("toy:gpt2", source, source, **options)


@pytest.mark.parametrize("target", ["ok", "clean"])
def test_a_saved_classifier_says_what_its_labels_mean(target: str, in_project: Path, tmp_path: Path) -> None:
    folder = launch(tmp_path, {"label_names": {"ok": "clean", "rude": "toxic"}, "target_label": target})
    config = AutoConfig.from_pretrained(folder)
    assert config.id2label == {0: "clean", 1: "toxic"}
    assert config.label2id == {"clean": 0, "toxic": 1}
    assert [entry["label"] for entry in pipeline("text-classification", model=str(folder))(TEXTS)] == ["clean", "toxic"]
    # By its name, by the label of the data, by the opposite, and with nothing set, as `clean` is known.
    options: list[dict[str, str]] = [{"target_label": "clean"}, {"target_label": "ok"}, {"penalized_label": "rude"}, {}]
    scores = [load_reward(str(folder), polarity_pair=None, **option)(["", ""], TEXTS) for option in options]
    assert scores[0] == scores[1] == scores[2] == scores[3]
    assert scores[0][0] > 0 > scores[0][1]
    with pytest.raises(UserError, match="target_label is 'polite', but its labels are clean, toxic"):
        load(str(folder), target_label="polite")


def test_rows_and_sources_may_use_labels_of_the_data_or_their_names(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    more = lines(tmp_path / "more.jsonl", [{"text": "c", "label": "toxic"}, {"text": "d", "label": "0"}])
    rude = lines(tmp_path / "rude.jsonl", [{"text": "e"}, {"text": "f"}])
    for label in ("1", "toxic"):
        train = training(
            tmp_path,
            rows,
            target_label="0",
            label_names={"1": "toxic", "0": "clean"},
            more_data=[LabeledSource(**more), LabeledSource(**rude, label=label)],
            clean_data=[DataSource(**lines(tmp_path / "clean.jsonl", [{"text": "g"}]))],
        )
        loaded = load_classifier_rows(train, 0)
        assert loaded.labels == {"0": "clean", "1": "toxic"}
        assert list(loaded.labels) == ["0", "1"], "in the order of the data's labels, whatever that of the names"
        assert loaded.target == "clean"
        assert loaded.training.texts == list("abcdefg")
        assert loaded.training.labels == ["clean", "toxic", "toxic", "clean", "toxic", "toxic", "clean"]
        assert loaded.validation.labels == ["clean", "toxic"]


def test_without_names_labels_are_those_of_the_data(tmp_path: Path) -> None:
    loaded = load_classifier_rows(
        training(tmp_path, [{"text": "a", "label": 7}, {"text": "b", "label": "x"}], target_label="7"), 0
    )
    assert loaded.labels == {"7": "7", "x": "x"}
    assert loaded.training.labels == ["7", "x"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"label_names": {"ok": "clean"}}, r"reward\.train\.label_names: no name for 'rude', a label of the data"),
        (
            {"label_names": {"ok": "clean", "rude": "toxic", "odd": "x"}},
            r"reward\.train\.label_names: 'odd' is not a label of the data: ok, rude; remove it",
        ),
        (
            {"label_names": {"ok": "clean", "rude": "clean"}},
            r"reward\.train\.label_names: ok and rude are both named clean",
        ),
        (
            {"label_names": {"ok": "rude", "rude": "ok"}},
            r"reward\.train\.label_names: ok is named rude, which is another label of the data",
        ),
        (
            {"label_names": {"ok": "clean", "rude": "toxic"}, "target_label": "fine"},
            r"target_label: 'fine' is not a label of the data: ok, rude, or by name: clean, toxic",
        ),
        ({"objective": "preference", "label_names": {"ok": "clean"}, "target_label": None}, "label_names: only for"),
        ({"freeze_embeddings": True, "lora": {}}, r"reward\.train\.freeze_embeddings: with reward\.train\.lora"),
    ],
)
def test_names_that_do_not_fit_are_refused_in_a_line(
    train: dict[str, Any], message: str, in_project: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        launch(tmp_path, train, "--dry_run")
    assert "\n" not in str(caught.value)


def test_a_label_that_no_row_can_have_is_refused(in_project: Path, tmp_path: Path) -> None:
    more = labeled(tmp_path / "more.jsonl", 8, 2)
    with pytest.raises(UserError, match=r"more_data\[0\]\.label: 'odd' is not one of ok, rude"):
        launch(tmp_path, {"more_data": [more | {"label": "odd"}]}, "--dry_run")
    pairs = {"objective": "preference", "target_label": None, "more_data": [more | {"label": "ok"}]}
    with pytest.raises(UserError, match=r"more_data\[0\]\.label: only for objective: classifier"):
        launch(tmp_path, pairs, "--dry_run")
