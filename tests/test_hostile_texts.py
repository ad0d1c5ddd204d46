"""Texts and numbers of data, models and exceptions never control a terminal, a page or a Markdown file."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from random_results import HOSTILE, MODELS, REWARD, random_examples, random_results, with_means
from tiny_data import refusal, write

from workbench.config.sources import DataSource
from workbench.data.sources import read_rows
from workbench.errors import RewardError, UserError, one_line, printable, printable_lines
from workbench.evaluation.prompt_sets import row_references
from workbench.evaluation.results_files import read_examples, read_results, write_evaluation
from workbench.ppo.validation import Sample
from workbench.report.evaluation_page import evaluation_page
from workbench.report.markdown import markdown
from workbench.report.svg import Series, histogram, line_plot, scatter
from workbench.rewards.values import check_scores
from workbench.run.distributed import print_once
from workbench.run.files import append_text, read_json_lines, write_text

ATTACK = "a\x1b[2J\x9b31m\u202eb\u2066\r\nforged: ok\u2028c\x07\x00\ud800\u200f"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def test_an_error_is_one_line_that_controls_nothing() -> None:
    for error in (UserError(ATTACK), RewardError(ATTACK)):
        assert str(error) == r"a\x1b[2J\x9b31m\u202eb\u2066 forged: ok c\x07\x00\ud800\u200f"
    assert not UNSAFE.search(one_line(ValueError(ATTACK)))
    assert printable("two  blanks, é, 你好, שלום, 🙂") == "two  blanks, é, 你好, שלום, 🙂"
    assert printable_lines("a\tb\n\x1b[1mc\r\n") == "a\tb\n\\x1b[1mc\\r\n"


def test_names_of_columns_and_files_are_harmless_in_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{ATTACK: 1}])
    message = refusal(lambda: read_rows(DataSource(path, columns={"prompt": "x"})))
    assert "no column 'x'" in message
    assert not UNSAFE.search(message)
    assert not UNSAFE.search(refusal(lambda: read_rows(DataSource(f"./{ATTACK}.jsonl".replace("\0", "")))))


def test_a_command_prints_no_control_characters(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "reward_models.compare",
        "--models",
        "length",
        "toy_lexicon",
        "--data",
        str(tmp_path),
    ]
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} " * n + ATTACK}) + "\n" for n in range(1, 9))
    )
    result = subprocess.run(command, capture_output=True, timeout=60, check=False, cwd=Path(__file__).parent.parent)
    assert not UNSAFE.search(result.stdout.decode() + result.stderr.decode())
    missing = [*command[:-1], f"{tmp_path}/\x1b[2Jx\nerror: forged.csv"]
    result = subprocess.run(missing, capture_output=True, timeout=60, check=False, cwd=Path(__file__).parent.parent)
    assert result.returncode == 2
    assert result.stderr.count(b"\n") == 1
    assert not UNSAFE.search(result.stderr.decode())


def test_lines_of_a_plan_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    print_once(f"sft: {ATTACK}")
    assert not UNSAFE.search(capsys.readouterr().out)


def test_halves_of_characters_survive_every_file(tmp_path: Path) -> None:
    texts = [ATTACK, "\ud83d", "\udc00\\"]
    examples = [
        dataclasses.replace(example, prompt=ATTACK, references=["\udfff"], completions=dict.fromkeys(MODELS, texts[1:]))
        for example in random_examples(40)
    ]
    results = random_results(examples, MODELS)
    write_evaluation(tmp_path, results, examples)
    assert read_results(tmp_path / "results.json") == results
    assert read_examples(tmp_path / "completions.jsonl", results) == examples
    append_text(tmp_path / "samples.jsonl", Sample(ATTACK, texts[2], 1.0, 0.1).json_line(1))
    (sample,) = read_json_lines(tmp_path / "samples.jsonl")
    assert (sample["prompt"], sample["completion"]) == (ATTACK, texts[2])
    write_text(tmp_path / "report.html", evaluation_page(results, examples, toxic_words=()))
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "report.html").read_text())
    assert data
    assert json.loads(data[1])["rows"][0]["texts"][0] == texts[1:]


def test_a_reference_with_half_a_character_is_named() -> None:
    with pytest.raises(UserError, match="reference contains a lone surrogate"):
        row_references({"reference": ["fine", "x\ud800"]})


@pytest.mark.parametrize("values", [[1e308, -1e308, 0.0], [1e308, 1e308], [math.inf, 1.0], [math.nan], [5e-324, 0.0]])
def test_a_plot_leaves_out_what_it_cannot_draw(values: list[float]) -> None:
    xs = list(range(len(values)))
    plots = [
        line_plot("t", [Series("a", xs, values)], x_label="x", y_label="y"),
        scatter("t", values, values, x_label="a", y_label="b"),
        histogram("t", {"a": values}, x_label="x"),
    ]
    for plot in plots:
        assert not re.search(r'"-?(nan|inf)', plot)


def test_a_page_and_its_files_hold_the_largest_numbers(tmp_path: Path) -> None:
    examples = [with_means(e, {"base": 0.1, "sft": -3e38, "aligned": 3e38}, REWARD) for e in random_examples(40)]
    results = random_results(examples, MODELS)
    page = evaluation_page(results, examples, toxic_words=())
    assert not re.search(r'"-?(nan|inf)|Infinity|NaN', page.partition("<script>")[0])
    write_evaluation(tmp_path, results, examples)
    assert read_results(tmp_path / "results.json") == results
    for score in (1e308, -1e39):
        with pytest.raises(RewardError, match=r"row 0, text 'x'.*beyond 1e\+12 overflow"):
            check_scores([score], ["x"], "reward big")


def test_markdown_shows_names_and_makes_nothing_of_them() -> None:
    name = "![x](http://evil/?q) [a](b) | <img src=x> `c` **d** \\| _e_\n# heading\n| --- |" + HOSTILE
    examples = [dataclasses.replace(example, set=name) for example in random_examples(40)]
    results = random_results(examples, MODELS)
    guard = dataclasses.replace(results.guards[0], text=name, name=name)
    verdict = dataclasses.replace(results.verdict, sentence=name)
    text = markdown(dataclasses.replace(results, guards=[guard], verdict=verdict, other_verdicts=[]))
    assert not UNSAFE.search(text)
    assert not re.search(r"<|(?<!\\)!\[|(?<!\\)\]\(|(?<!\\)`|\w://|(?m:^#)", text)
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert len([line for line in text.splitlines() if line and not line.startswith("| ")]) == 3  # verdict, guard, set
