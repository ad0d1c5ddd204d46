"""Splits by hash: cut by a row's text alone, the same for everybody."""

from __future__ import annotations

import random

from tiny_data import write

from workbench.config.sources import DataSource
from workbench.data.sources import read_rows

FRACTIONS = {"train": 0.7, "validation": 0.2, "test": 0.1}


def split(path: str, name: str, fractions: dict[str, float] = FRACTIONS, **options) -> list[str]:
    source = DataSource(path, split=name, fractions=fractions, **options)
    return [row["prompt"] for row in read_rows(source)]


def test_fractions_cut_by_text_alone(tmp_path):
    texts = [f"text {number}" for number in range(1000)]
    path = write(tmp_path / "a.jsonl", [{"prompt": text} for text in texts])
    parts = {name: split(path, name) for name in FRACTIONS}
    assert sorted(text for part in parts.values() for text in part) == sorted(texts)
    for name, share in FRACTIONS.items():
        assert abs(len(parts[name]) / 1000 - share) < 0.04

    random.Random(0).shuffle(texts)
    more = [{"prompt": text, "other": 1} for text in [*texts, "text  7", "TEXT 7 ", *(f"new {n}" for n in range(99))]]
    longer = write(tmp_path / "b.jsonl", more)
    turned = dict(reversed(FRACTIONS.items()))
    for name, part in parts.items():
        now = split(longer, name, turned)
        assert set(part) <= set(now)
        assert ("text 7" in part) == ("text  7" in now) == ("TEXT 7 " in now)


def test_a_split_does_not_depend_on_wording_or_column_name(tmp_path):
    texts = [f"text {number}" for number in range(50)]
    plain = write(tmp_path / "a.jsonl", [{"prompt": text} for text in texts])
    renamed = write(tmp_path / "b.jsonl", [{"prompt": text, "dialogue": text} for text in texts])
    labeled = write(tmp_path / "c.jsonl", [{"text": text} for text in texts])
    expected = split(plain, "test")
    assert split(renamed, "test", template="dialogue_summary") == expected
    source = DataSource(labeled, split="test", fractions=FRACTIONS)
    assert [row["text"] for row in read_rows(source)] == expected


def test_the_hash_is_pinned(tmp_path):
    """Runs years apart must agree on who was held out: sha256 of these letters starts below 0x80."""
    path = write(tmp_path / "a.jsonl", [{"prompt": text} for text in "abcdefghij"])
    assert split(path, "train", {"train": 0.5, "validation": 0.5}) == list("bcdefj")
