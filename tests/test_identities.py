"""Generated sentences about groups of people: balanced, apart from the report's, and mixed in at their rate."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from reward_runs import lines

from workbench.config.reward_training import RewardTraining
from workbench.config.sources import DataSource
from workbench.errors import UserError
from workbench.rewards.training.datasets import load_classifier_rows
from workbench.rewards.training.identities import GROUPS, HARMLESS, INSULTING, identity_texts
from workbench.rewards.training.validation import IDENTITIES, TEMPLATES


def test_every_group_is_named_as_often_in_harmless_as_in_insulting_sentences() -> None:
    rows = identity_texts(4 * len(GROUPS), seed=1)
    made = {(template.format(group), harmless): group for group in GROUPS for template, harmless in labeled_templates()}
    counts = Counter((made[row], row[1]) for row in rows)
    assert counts == {(group, harmless): 2 for group in GROUPS for harmless in (True, False)}
    assert identity_texts(4 * len(GROUPS), seed=1) == rows != identity_texts(4 * len(GROUPS), seed=2)
    assert [len(identity_texts(count, seed=0)) for count in (0, 1, 7)] == [0, 1, 7]


def labeled_templates() -> list[tuple[str, bool]]:
    """Every template, and whether it is harmless."""
    return [*((template, True) for template in HARMLESS), *((template, False) for template in INSULTING)]


def test_the_report_measures_on_other_sentences_and_on_some_other_groups() -> None:
    templates = [template for template, _ in labeled_templates()]
    assert len(set(templates)) == len(templates)
    assert all(template.count("{}") == 1 for template in [*templates, *TEMPLATES])
    assert not {template.lower() for template in TEMPLATES} & {template.lower() for template in templates}
    unseen = {term.lower() for term in IDENTITIES} - {group.lower() for group in GROUPS}
    assert len(unseen) >= len(IDENTITIES) // 4


def test_the_rate_counts_texts_of_every_source_and_leaves_them_as_they_are(tmp_path: Path) -> None:
    rows = [{"text": f"text {row}", "label": row % 2} for row in range(60)]
    source = DataSource(**lines(tmp_path / "rows.jsonl", rows))
    clean = DataSource(**lines(tmp_path / "clean.jsonl", [{"text": f"clean {row}"} for row in range(40)]))
    train = RewardTraining("m", source, source, target_label="0", clean_data=[clean], identity_rate=0.2)
    loaded = load_classifier_rows(train, seed=3)
    assert len(loaded.training.texts) == 120
    assert loaded.training.texts[:60] == [row["text"] for row in rows]
    generated = dict(zip(loaded.training.texts[100:], loaded.training.labels[100:], strict=True))
    assert generated == {text: "0" if harmless else "1" for text, harmless in identity_texts(20, seed=3)}
    assert "reward.train.identity_rate: 20 generated texts" in "\n".join(loaded.sizes)
    three = [*rows, {"text": "x", "label": 2}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in three))
    with pytest.raises(UserError, match=r"reward\.train\.identity_rate: it needs two labels, and the data have 3"):
        load_classifier_rows(train, seed=3)
