"""Answers are sampled once for the same weights, prompts and settings; no failure loses them or the last results."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_runs import evaluation_source, small

from recipes import evaluation, ppo, sft
from workbench.errors import UserError
from workbench.evaluation import kept
from workbench.evaluation.generation import Answer
from workbench.models.policy import Policy
from workbench.run import cli

ROOT = Path(__file__).parent.parent
REWARD = ("--reward.model", "length")  # every answer earns something else, so that PPO does move
OTHER_JUDGE = ["--evaluation.judges", "[lexicon, profanity]"]

BROKEN_JUDGE = """
class Judge:
    def __call__(self, prompts, completions, **columns):
        return [0.0] * len(completions)

    def toxicity(self, texts):
        raise OSError("out of quota")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a finished chain of a few steps with its evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(ROOT)
        cli.launch([sft.STAGE, ppo.STAGE, evaluation.STAGE], "", small("quickstart", folder, *REWARD))
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, in_project: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many prompts each call to `generate` has answered so far."""
    found: list[int] = []
    generate = Policy.generate

    def counted(self: Policy, ids, mask, **options):
        found.append(len(ids))
        return generate(self, ids, mask, **options)

    monkeypatch.setattr(Policy, "generate", counted)
    return found


def evaluate(runs: Path, *options: str) -> dict:
    """The results of the evaluation, done again with further options."""
    cli.launch([evaluation.STAGE], "", [*small("quickstart", runs, *REWARD), "--force", "evaluation", *options])
    return json.loads((runs / "quickstart" / "evaluation" / "results.json").read_text())


def test_another_judge_judges_the_answers_of_before(runs: Path, batches: list[int]) -> None:
    folder = runs / "quickstart" / "evaluation"
    before, lines = json.loads((folder / "results.json").read_text()), (folder / "completions.jsonl").read_text()
    after = evaluate(runs, *OTHER_JUDGE)
    assert batches == []
    assert "toxicity (profanity)" in after["sets"]["test dialogues"]["metrics"]
    for metric, of in before["sets"]["test dialogues"]["metrics"].items():
        assert after["sets"]["test dialogues"]["metrics"][metric] == of, metric
    again = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    for old, new in zip(map(json.loads, lines.splitlines()), again, strict=True):
        assert (old["completions"], old["moved"]) == (new["completions"], new["moved"])


@pytest.mark.parametrize(
    ("options", "sampled"),
    [
        (["--evaluation.temperature", "0.5"], 30),
        (["--evaluation.max_new_tokens", "7"], 30),
        (["--evaluation.seeds", "[9]"], 30),
        (["--evaluation.batch_size", "5"], 30),
        (["--evaluation.data", json.dumps({"other": evaluation_source(4)})], 12),
        (["--evaluation.data", json.dumps({"other": evaluation_source(10) | {"split": "validation"}})], 30),
        (["--evaluation.data", json.dumps({name: evaluation_source(10) for name in ("same", "again")})], 0),
        (["--evaluation.models", "{other: toy:gpt2}"], 10),
    ],
)
def test_what_answers_depend_on_has_them_sampled_anew(
    options: list[str], sampled: int, runs: Path, batches: list[int]
) -> None:
    evaluate(runs, *options)
    assert sum(batches) == sampled


def test_other_weights_answer_anew(runs: Path, batches: list[int]) -> None:
    source = runs / "quickstart" / "ppo" / "adapter_model.safetensors"
    results = json.loads((runs / "quickstart" / "evaluation" / "results.json").read_text())
    old = results["sets"]["test dialogues"]["metrics"]["nats per token under the base"]["means"]
    shutil.copyfile(runs / "quickstart" / "sft" / "adapter_model.safetensors", source)
    means = evaluate(runs)["sets"]["test dialogues"]["metrics"]["nats per token under the base"]["means"]
    assert sum(batches) == 30
    assert means["aligned"] == means["sft"]
    assert old["aligned"] != old["sft"]


def test_a_judge_that_fails_loses_neither_the_answers_nor_the_last_results(
    runs: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = runs / "quickstart" / "evaluation"
    old = {name: (folder / name).read_text() for name in ("results.json", "report.html", "completions.jsonl")}
    (tmp_path / "broken_judge.py").write_text(BROKEN_JUDGE)
    monkeypatch.syspath_prepend(tmp_path)
    changed = ["--evaluation.temperature", "0.5"]
    with pytest.raises(UserError, match="out of quota"):
        evaluate(runs, *changed, "--evaluation.judges", "[broken_judge:Judge]")
    assert sum(batches) == 30
    assert old == {name: (folder / name).read_text() for name in old}
    assert not (folder / "stage.json").exists()
    found = evaluate(runs, *changed)
    assert sum(batches) == 30, "they were kept"
    assert found["temperature"] == 0.5


def test_an_evaluation_that_was_interrupted_goes_on_with_the_next_model(
    runs: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(runs / "quickstart" / "evaluation")
    whole, add = [], kept.add

    def add_until(folder: Path, key: str, lines: kept.Lines) -> None:
        if len(whole) == 2:
            raise KeyboardInterrupt
        whole.append(key)
        add(folder, key, lines)

    with monkeypatch.context() as patched:
        patched.setattr(kept, "add", add_until)
        with pytest.raises(KeyboardInterrupt):
            cli.launch([evaluation.STAGE], "", small("quickstart", runs, *REWARD))
    batches.clear()
    cli.launch([evaluation.STAGE], "", small("quickstart", runs, *REWARD))
    assert sum(batches) == 10


def test_two_sets_of_the_same_prompts_are_answered_once(runs: Path, batches: list[int]) -> None:
    (runs / "quickstart" / "evaluation" / kept.FILE).unlink()
    sets = {name: evaluation_source(6) for name in ("one", "another")}
    found = evaluate(runs, "--evaluation.data", json.dumps(sets))["sets"]
    assert sum(batches) == 18
    assert found["one"]["metrics"] == found["another"]["metrics"]


def test_a_further_model_is_known_by_what_it_is_not_by_its_title(runs: Path, batches: list[int]) -> None:
    place = str(shutil.copytree(runs / "quickstart" / "ppo", runs / "elsewhere"))
    evaluate(runs, "--evaluation.models", json.dumps({"one": place}))
    assert sum(batches) == 10
    models = evaluate(runs, "--evaluation.models", json.dumps({"two": place}))["models"]
    assert sum(batches) == 10
    assert models == ["base", "sft", "aligned", "two"]


def test_weights_are_known_by_their_content_wherever_and_whenever_they_were_written(
    runs: Path, batches: list[int]
) -> None:
    weights = runs / "quickstart" / "ppo" / "adapter_model.safetensors"
    written = weights.stat()
    weights.touch()
    evaluate(runs)
    assert batches == []
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    os.utime(weights, ns=(written.st_atime_ns, written.st_mtime_ns))
    evaluate(runs)
    assert sum(batches) == 30


def test_a_model_of_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for commit in ("a", "b"):
        monkeypatch.setattr(kept, "load_config", lambda place, commit=commit: SimpleNamespace(_commit_hash=commit))
        found.append(kept.content_of("owner/name"))
    assert found == ["a", "b"]


@pytest.mark.parametrize("line", ["null", "12", "[]", "{}", '{"key": "a"}', '{"key": [], "answers": []}', "\udcff"])
def test_a_line_of_another_kind_harms_no_other(line: str, tmp_path: Path) -> None:
    kept.add(tmp_path, "first", [[{"of": "another version"}]])
    with (tmp_path / kept.FILE).open("a", errors="surrogateescape") as file:
        file.write(f"{line}\n")
    kept.add(tmp_path, "second", [])
    assert kept.read(tmp_path) == {"first": [[{"of": "another version"}]], "second": []}


def test_answers_that_cannot_be_read_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.add(tmp_path, "first", [])

    def refuse(path: Path, **options: str) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"answers.jsonl: cannot be read: Permission denied; delete it"):
        kept.read(tmp_path)


def test_answers_come_back_as_they_were_and_half_a_line_harms_no_other(tmp_path: Path) -> None:
    answers = [
        [Answer("a \u2028 b\n\r\t\x00 \U0001f600", 3, True, 1 / 3, 2.5e-17, [("a", -0.125), ("\n", 1e9)])],
        [Answer("", 0, False, None, None, None)],
    ]
    kept.add(tmp_path, "first", kept.lines_of(answers))
    with (tmp_path / kept.FILE).open("a") as file:
        file.write('{"key": "torn", "answers": [[{"te')
    kept.add(tmp_path, "second", kept.lines_of(answers[:1]))
    found = kept.read(tmp_path)
    assert {key: kept.answers_of(lines) for key, lines in found.items()} == {"first": answers, "second": answers[:1]}
    kept.replace(tmp_path, {"second": found["second"]})
    assert list(kept.read(tmp_path)) == ["second"]
    assert kept.read(tmp_path / "nowhere") == {}
