"""Completions are sampled once for the same weights, prompts and settings; no failure loses them or the results."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_runs import evaluation_source, record_files, small

from recipes import evaluation, ppo, sft
from workbench.errors import UserError
from workbench.evaluation import cache, models
from workbench.evaluation.cache import Cache, completions_from_json, completions_to_json, open_cache, weights_hash
from workbench.evaluation.generation import Completion
from workbench.evaluation.results import Results
from workbench.evaluation.results_files import read_results
from workbench.models.policy import Policy
from workbench.run import cli

ROOT = Path(__file__).parent.parent
REWARD = ("--reward.model", "length")  # every completion has another score, so that PPO does move
OTHER_JUDGE = ["--evaluation.judges", "[toy_lexicon, profanity]"]

BROKEN_JUDGE = """
class Judge:
    def __call__(self, prompts, completions, **columns):
        return [0.0] * len(completions)

    def judge(self):
        return self.toxicity

    def toxicity(self, texts):
        raise OSError("out of quota")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the runs folder of a finished chain of a few steps with its evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(ROOT)
        cli.launch([sft.STAGE, ppo.STAGE, evaluation.STAGE], "", small("quickstart", folder, *REWARD))
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, in_project: Path) -> Path:
    """Return a copy of it for one test."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the number of prompts in each call to `generate`."""
    sizes: list[int] = []
    generate = Policy.generate

    def counted(self: Policy, ids, mask, **options):
        sizes.append(len(ids))
        return generate(self, ids, mask, **options)

    monkeypatch.setattr(Policy, "generate", counted)
    return sizes


def evaluate(runs: Path, *options: str) -> Results:
    """Return the results of the evaluation, done again with further options."""
    cli.launch([evaluation.STAGE], "", [*small("quickstart", runs, *REWARD), "--force", "evaluation", *options])
    return read_results(runs / "quickstart" / "evaluation" / "results.json")


def test_another_judge_scores_the_cached_completions(
    runs: Path, batches: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs / "quickstart" / "evaluation"
    before, lines = read_results(folder / "results.json"), (folder / "completions.jsonl").read_text()
    after = evaluate(runs, *OTHER_JUDGE)
    assert batches == []
    assert capsys.readouterr().out.count("reusing cached completions") == 3
    assert after.sets[0].summary("toxicity", "profanity") is not None
    for summary in before.sets[0].summaries:
        assert after.sets[0].summary(summary.metric.name, summary.metric.judge) == summary
    assert after.sets[0].reference_perplexity == before.sets[0].reference_perplexity
    again = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    for old, new in zip(map(json.loads, lines.splitlines()), again, strict=True):
        assert (old["completions"], old["token_log_ratios"]) == (new["completions"], new["token_log_ratios"])


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
        (["--evaluation.models", "{other: toy:gpt2}"], 13),  # three are sampled to check the architecture
    ],
)
def test_what_completions_depend_on_has_them_sampled_anew(
    options: list[str], sampled: int, runs: Path, batches: list[int]
) -> None:
    evaluate(runs, *options)
    assert sum(batches) == sampled


def test_other_weights_sample_anew(runs: Path, batches: list[int]) -> None:
    source = runs / "quickstart" / "ppo" / "adapter_model.safetensors"
    old = read_results(runs / "quickstart" / "evaluation" / "results.json").sets[0]
    shutil.copyfile(runs / "quickstart" / "sft" / "adapter_model.safetensors", source)
    record_files(source.parent)  # as if the stage had been done again
    new = evaluate(runs).sets[0]
    assert sum(batches) == 30
    old_kl, new_kl = (result.summary("KL to reference, nats").means for result in (old, new))
    assert new_kl["aligned"] == new_kl["sft"]
    assert old_kl["aligned"] != old_kl["sft"]


def test_a_judge_that_fails_loses_neither_the_completions_nor_the_last_results(
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
    results = evaluate(runs, *changed)
    assert sum(batches) == 30, "they were cached"
    assert results.settings.temperature == 0.5


def test_an_evaluation_that_was_interrupted_goes_on_with_the_next_model(
    runs: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(runs / "quickstart" / "evaluation")
    added, add = [], Cache.add

    def add_until(self: Cache, key: str, value: object) -> None:
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(key)
        add(self, key, value)

    with monkeypatch.context() as patched:
        patched.setattr(Cache, "add", add_until)
        with pytest.raises(KeyboardInterrupt):
            cli.launch([evaluation.STAGE], "", small("quickstart", runs, *REWARD))
    batches.clear()
    cli.launch([evaluation.STAGE], "", small("quickstart", runs, *REWARD))
    assert sum(batches) == 10


def test_two_sets_of_the_same_prompts_are_sampled_once(runs: Path, batches: list[int]) -> None:
    (runs / "quickstart" / "evaluation" / cache.FILE).unlink()
    sets = {name: evaluation_source(6) for name in ("one", "another")}
    one, another = evaluate(runs, "--evaluation.data", json.dumps(sets)).sets
    assert sum(batches) == 18
    assert one.summaries == another.summaries


def test_a_further_model_is_known_by_its_content_and_not_by_its_title(runs: Path, batches: list[int]) -> None:
    folder = str(shutil.copytree(runs / "quickstart" / "ppo", runs / "elsewhere"))
    evaluate(runs, "--evaluation.models", json.dumps({"one": folder}))
    assert sum(batches) == 10
    titles = evaluate(runs, "--evaluation.models", json.dumps({"two": folder})).models
    assert sum(batches) == 10
    assert titles == ["base", "sft", "aligned", "two"]


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
    record_files(weights.parent)
    evaluate(runs)
    assert sum(batches) == 30


def test_a_model_of_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = []
    monkeypatch.setattr(models, "resolve", lambda name: name)
    for commit in ("a", "b"):
        monkeypatch.setattr(cache, "load_config", lambda name, commit=commit: SimpleNamespace(_commit_hash=commit))
        hashes.append(weights_hash("owner/name"))
    assert hashes == ["a", "b"]


@pytest.mark.parametrize("line", ["null", "12", "[]", "{}", '{"key": "a"}', '{"key": [], "value": []}', "\udcff"])
def test_a_line_of_another_kind_harms_no_other(line: str, tmp_path: Path) -> None:
    open_cache(tmp_path).add("first", [[{"form": "of another version"}]])
    with (tmp_path / cache.FILE).open("a", errors="surrogateescape") as file:
        file.write(f"{line}\n")
    open_cache(tmp_path).add("second", [])
    assert open_cache(tmp_path).entries == {"first": [[{"form": "of another version"}]], "second": []}


def test_a_cache_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_cache(tmp_path).add("first", [])

    def refuse(path: Path, **options: str) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=rf"{cache.FILE}: cannot be read: Permission denied; make it readable"):
        open_cache(tmp_path)


def test_completions_come_back_as_they_were_and_half_a_line_harms_no_other(tmp_path: Path) -> None:
    completions = [
        [Completion("a \u2028 b\n\r\t\x00 \U0001f600", 3, True, 1 / 3, 2.5e-17, [("a", -0.125), ("\n", 1e9)])],
        [Completion("", 0, False, None, None, None)],
    ]
    open_cache(tmp_path).add("first", completions_to_json(completions))
    with (tmp_path / cache.FILE).open("a") as file:
        file.write('{"key": "cut off", "value": [[{"te')
    open_cache(tmp_path).add("second", completions_to_json(completions[:1]))
    again = open_cache(tmp_path)
    assert list(again.entries) == ["first", "second"]
    assert completions_from_json(again.entries["first"]) == completions
    assert completions_from_json(again.get("second")) == completions[:1]
    again.keep_used()
    assert list(open_cache(tmp_path).entries) == ["second"]
    assert open_cache(tmp_path / "nowhere").entries == {}
