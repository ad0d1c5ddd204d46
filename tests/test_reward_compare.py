"""The comparison of rewards: its numbers against independent ones, its table, its file, its mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reward_models import compare
from workbench.errors import UserError

# Scores by lexicon (minus the rude words) and length (minus the distance from two words).
ROWS = [
    {"text": "you idiot", "label": 1, "prompt": None},  # -1, 0
    {"text": "thank you", "label": 0, "prompt": "Hi."},  # 0, 0
    {"text": "idiot idiot idiot", "label": 1, "prompt": ""},  # -3, -1
    {"text": "what a fine day it is", "label": 0, "prompt": "Hi."},  # 0, -4
    {"text": "fine", "label": 1, "prompt": "Hi."},  # 0, -1
]
LEXICON = "{model: lexicon, options: {words: [idiot]}}"
MODELS = (LEXICON, json.dumps({"model": "length", "options": {"target": 2}}))


def written(folder: Path, rows: list[dict]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def command(data: str, *more: str, models: tuple[str, ...] = MODELS) -> list[str]:
    return ["--models", *models, "--data", data, *more]


def test_the_numbers_are_those_of_other_libraries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "comparison.json"
    options = ("--target_label", "0", "--save", str(saved), "--disagreements", "2")
    compare.main(command(written(tmp_path, ROWS), *options))
    comparison = json.loads(saved.read_text())
    assert comparison["texts"] == 5
    lexicon, length = [-1, 0, -3, 0, 0], [0, 0, -1, -4, -1]
    # of the six pairs of a text with the target label and one without: lexicon has 4 right and 2 ties, length 2 and 1
    assert comparison["models"]["lexicon"]["auroc"] == pytest.approx((4 + 2 / 2) / 6)
    assert comparison["models"]["length"]["auroc"] == pytest.approx((2 + 1 / 2) / 6)
    assert all(model["texts_per_second"] > 0 for model in comparison["models"].values())
    frame = pd.DataFrame({"lexicon": lexicon, "length": length})
    (pair,) = comparison["pairs"]
    assert pair["models"] == ["lexicon", "length"]
    assert pair["spearman"] == pytest.approx(frame.rank().corr().iloc[0, 1])
    ranks = frame.rank()
    gaps = (ranks["lexicon"] - ranks["length"]).abs()
    assert [item["row"] for item in comparison["disagreements"]] == list(gaps.sort_values(ascending=False).index[:2])
    worst = comparison["disagreements"][0]
    assert (worst["text"], worst["label"], worst["rank_gap"]) == (ROWS[3]["text"], "0", gaps.max())
    assert worst["models"] == {"lexicon": {"score": 0.0, "rank": 4.0}, "length": {"score": -4.0, "rank": 1.0}}
    printed = capsys.readouterr().out.splitlines()
    head, first, second = printed[2:5]
    assert head.split() == ["model", "AUROC", "of", "0", "texts/s"]
    assert len(head) == len(first) == len(second)
    assert first.split()[:2] == ["lexicon", "0.8333"]
    assert ["lexicon", "/", "length", f"{pair['spearman']:.4f}"] in [line.split() for line in printed]
    assert "row 3, label 0: lexicon 4 (0); length 1 (-4)" in printed
    assert "    what a fine day it is" in printed


def test_rank_correlation_and_ranks_with_ties_are_those_of_pandas() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 10, 50), generator.normal(size=50) + np.arange(50) / 20
    ranks = [compare.ranks(list(values)) for values in (first, second)]
    for ours, values in zip(ranks, (first, second), strict=True):
        assert ours == pytest.approx(pd.Series(values).rank().to_numpy())
    expected = pd.DataFrame({"a": first, "b": second}).corr(method="spearman").iloc[0, 1]
    assert compare.spearman(*ranks) == pytest.approx(expected)
    assert compare.spearman(ranks[0], compare.ranks([1.0] * 50)) is None


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"text": row["text"]} for row in ROWS], (), "no AUROC: the data has no labels"),
        (ROWS, (), "no AUROC: set --target_label to the label that should score high, one of 0, 1"),
    ],
)
def test_without_labels_there_is_no_auroc(
    rows: list[dict], more: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare.main(command(written(tmp_path, rows), *more, models=(*MODELS, "repetition")))
    printed = capsys.readouterr().out
    assert message in printed
    assert "AUROC of" not in printed
    assert "lexicon / repetition  constant" in printed  # nothing repeats here


def test_prompts_and_columns_go_to_the_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("reply,kind,summary\na b,x,a b\nc d,y,d\ne f,x,nothing\n")
    saved = tmp_path / "comparison.json"
    more = ("--text_column", "reply", "--label_column", "kind", "--target_label", "x", "--limit", "2")
    rouge = "{model: rouge, options: {column: summary}}"
    compare.main(command(str(data), *more, "--save", str(saved), models=(rouge, "length")))
    comparison = json.loads(saved.read_text())
    assert comparison["texts"] == 2
    assert comparison["models"]["rouge"]["auroc"] == 1.0
    assert comparison["models"]["length"]["auroc"] == 0.5
    texts = compare.read_texts(compare.parse(command(written(tmp_path, ROWS))))
    assert texts.prompts == ["", "Hi.", "", "Hi.", "Hi."]
    assert texts.labels == ["1", "0", "1", "0", "1"]
    assert texts.columns == {"text": texts.texts, "label": [1, 0, 1, 0, 1]}


def test_a_title_is_the_models_name_unless_several_share_it() -> None:
    short, long = "{model: length, options: {target: 1}}", "{model: length, options: {target: 9}}"
    scorers = compare.read_scorers([LEXICON, short, long])
    assert list(scorers) == ["lexicon", short, long]
    assert [scorer.options for scorer in scorers.values()] == [{"words": ["idiot"]}, {"target": 1}, {"target": 9}]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--models", "lexcion"), "--models lexcion: unknown reward 'lexcion'; did you mean lexicon"),
        (("--models", "length", "length"), "--models: length is listed twice; remove one"),
        (
            ("--models", "lexicon"),
            "--models lexicon: lexicon: words is empty; .* toy_lexicon",
        ),
        (("--models", "rouge"), "reward rouge: it needs a column 'reference'; the data passes on text, label"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (("--models", "{bad"), "--models {bad: not a mapping; write {model: NAME, options: "),
        (("--models", "{modle: length}"), r"--models\.modle: unknown key; did you mean model"),
        (("--models", "{model: length, options: 3}"), r"--models\.options: 3 must be a mapping"),
        (("--models", "{model: length, options: {goal: 2}}"), "--models length: length: no option 'goal'"),
        (("--text_column", "txt"), "--text_column: .* has no column 'txt'; available: text, label, prompt"),
        (("--label_column", "lbl"), "--label_column: .* has no column 'lbl'; available: text, label, prompt"),
        (("--target_label", "3"), "--target_label: '3' is not a label of the data: 0, 1"),
        (("--target_label", "1", "--limit", "1"), "--target_label: every text is labeled 1"),
        (("--limit", "0"), "--limit: 0; use a number of at least 1"),
        (("--limit", "x"), "--limit: invalid int value: 'x'"),
        (("--disagreements", "-1"), "--disagreements: -1; use a number of at least 0"),
        (
            ("--save", "/nowhere/comparison.json"),
            "no such folder /nowhere; create it first",
        ),
        (("--wanted", "1"), "--wanted: unknown option"),
        (("--options", "{}"), "--options: unknown option"),
    ],
)
def test_mistakes_are_one_line(more: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compare.main([*command(written(tmp_path, ROWS)), *more])
    assert "\n" not in str(caught.value)


def test_the_command_exits_with_2_and_helps_at_once(in_project: Path) -> None:
    module = [sys.executable, "-m", "reward_models.compare"]
    wrong = subprocess.run([*module, "--models", "lexicon"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.splitlines() == ["error: --data: missing; expected a file, folder or hub id"]
    printed = subprocess.run([*module, "--help"], capture_output=True, text=True, check=True)
    assert "--target_label" in printed.stdout
    # What makes --help slow is torch, which it does without.
    code = "import reward_models.compare, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
