"""The run folder: finished stages, other configurations, and writes that fail."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.config.parsing import load_saved
from workbench.config.schema import Config, EvaluationConfig, PolicyConfig, PPOConfig, RewardConfig
from workbench.config.sources import DataSource, PromptSet
from workbench.errors import UserError
from workbench.run.files import atomic_folder, content_hash, write_text
from workbench.run.folder import lock_run, open_run
from workbench.run.stage_record import Origin


def config(folder: Path) -> Config:
    """Return a small configuration with its run folders in `folder`."""
    source = DataSource("x.jsonl")
    return Config(
        name="test",
        policy=PolicyConfig("gpt2"),
        evaluation=EvaluationConfig(data={"set": PromptSet("x.jsonl")}),
        reward=RewardConfig("lexicon"),
        ppo=PPOConfig(source),
        runs=str(folder),
    )


def test_a_finished_stage_is_known_by_its_record(tmp_path: Path) -> None:
    run = open_run(config(tmp_path), force=None)
    run.stage("sft")
    assert not run.finished("sft")
    with pytest.raises(UserError, match="stage sft is not finished; run it first"):
        run.record("sft")
    run.finish("sft", minutes=1.0, inputs={"data": "x"}, metrics={"loss": 0.5}, origin=Origin())
    assert run.finished("sft")
    record = run.record("sft")
    assert (record["metrics"], record["seed"]) == ({"loss": 0.5}, 0)
    assert record["versions"]["torch"]


def test_another_configuration_is_refused_with_the_difference_and_nothing_changes(tmp_path: Path) -> None:
    first = config(tmp_path)
    run = open_run(first, force=None)
    saved = (run.folder / "config.yaml").read_text()
    other = dataclasses.replace(first, seed=3)
    with pytest.raises(UserError, match="seed: 0 -> 3"):
        open_run(other, force=None)
    assert (run.folder / "config.yaml").read_text() == saved


def test_a_run_folder_may_be_moved_and_renamed(tmp_path: Path) -> None:
    first = config(tmp_path)
    run = open_run(first, force=None)
    run.stage("sft")
    run.finish("sft", minutes=0, inputs={}, metrics={}, origin=Origin())
    (tmp_path / "elsewhere").mkdir()
    run.folder.rename(tmp_path / "elsewhere" / "other")
    moved = open_run(dataclasses.replace(first, name="other", runs=str(tmp_path / "elsewhere")), force=None)
    assert moved.finished("sft")


def test_force_clears_a_stage_and_those_after_it_and_allows_them_to_change(tmp_path: Path) -> None:
    first = config(tmp_path)
    run = open_run(first, force=None)
    for stage in ("sft", "reward", "ppo", "evaluation"):
        run.stage(stage)
        run.finish(stage, minutes=0, inputs={}, metrics={}, origin=Origin())
    assert first.ppo is not None
    changed = dataclasses.replace(first, ppo=dataclasses.replace(first.ppo, kl_coef=0.5))
    with pytest.raises(UserError, match=r"ppo.kl_coef: 0.05 -> 0.5"):
        open_run(changed, force="evaluation")
    assert run.finished("ppo"), "a refused run loses nothing"
    run = open_run(changed, force="ppo")
    assert [run.finished(stage) for stage in ("sft", "reward", "ppo", "evaluation")] == [True, True, False, False]


def test_two_commands_do_not_work_in_one_run_folder(tmp_path: Path) -> None:
    run = open_run(config(tmp_path), force=None)
    with lock_run(run), pytest.raises(UserError, match="another command is using this run folder"), lock_run(run):
        pass
    with lock_run(run):
        pass


def test_with_the_first_stage_forced_everything_may_change(tmp_path: Path) -> None:
    first = config(tmp_path)  # it has no SFT and a given reward, so PPO comes first
    open_run(first, force=None)
    with pytest.raises(UserError, match="rerun the affected stages with --force ppo"):
        open_run(dataclasses.replace(first, seed=3), force="evaluation")
    assert open_run(dataclasses.replace(first, seed=3), force="ppo").config.seed == 3


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [\n"])
def test_a_damaged_configuration_in_the_run_folder_is_named(text: str, tmp_path: Path) -> None:
    run = open_run(config(tmp_path), force=None)
    (run.folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config.yaml: corrupt"):
        open_run(config(tmp_path), force=None)


def test_a_damaged_configuration_does_not_stand_in_the_way_of_starting_over(tmp_path: Path) -> None:
    run = open_run(config(tmp_path), force=None)
    (run.folder / "config.yaml").write_text("")
    with pytest.raises(UserError, match=r"correct that file, choose another --name, or start over with --force ppo"):
        open_run(config(tmp_path), force="evaluation")
    open_run(config(tmp_path), force="ppo")
    assert load_saved(run.folder / "config.yaml") == config(tmp_path)


def test_a_run_of_an_older_version_is_refused_in_a_line_that_names_the_key(tmp_path: Path) -> None:
    """The config.yaml that the quickstart of an older version saved; corrected key by key it is readable."""
    text = (Path(__file__).parent / "older_config.yaml").read_text()
    (tmp_path / "test").mkdir()
    saved = tmp_path / "test" / "config.yaml"
    corrections = {
        "embedded:": ("policy.model: embedded:t5 is now toy:t5", "toy:"),
        "  watch: null\n": ("reward.watch: this key is now reward.held_out.model", ""),
        "  watch_options: {}\n": ("reward.watch_options: this key is now reward.held_out.options", ""),
        "wanted_label": ("reward.train.wanted_label: this key is now reward.train.target_label", "target_label"),
        "variants": ("reward.train.variants: this key is now reward.train.perturbation_rate", "perturbation_rate"),
        "  judge_options: {}\n": ("evaluation.judge_options: this key is now the options of an entry of", ""),
        "  neutral: []\n": ("evaluation.neutral: this key is now neutral: true in an entry of evaluation.data", ""),
    }
    seen = []
    for _ in corrections:
        saved.write_text(text)
        with pytest.raises(UserError) as raised:
            open_run(config(tmp_path), force=None)
        (old,) = [old for old, (message, _) in corrections.items() if message in str(raised.value)]
        assert "\n" not in str(raised.value)
        assert str(raised.value).endswith("or start over with --force ppo")
        text = text.replace(old, corrections[old][1])
        seen.append(old)
    assert sorted(seen) == sorted(corrections)
    saved.write_text(text)
    older = load_saved(saved)
    assert open_run(dataclasses.replace(older, name="test", runs=str(tmp_path)), force=None).config.seed == 0


def test_a_damaged_record_names_the_stage_to_redo(tmp_path: Path) -> None:
    run = open_run(config(tmp_path), force=None)
    (run.stage("sft") / "stage.json").write_text("")
    with pytest.raises(UserError, match=r"redo the stage with --force sft"):
        run.record("sft")


def test_a_folder_of_something_else_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not empty, and not a run folder"):
        open_run(config(tmp_path), force=None)


def test_a_folder_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(UserError, match="cannot be written"):
        open_run(config(Path("/proc/none")), force=None)


def test_an_evaluation_that_is_forced_stays_readable_and_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(config(tmp_path), force=None)
    for name in ("stage.json", "report.html"):
        (run.stage("evaluation") / name).write_text("{}")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda path, missing_ok: (_ for _ in ()).throw(PermissionError(13, "denied")))
        with pytest.raises(UserError, match=r"evaluation: cannot be written: denied"):
            open_run(config(tmp_path), force="evaluation")
    assert run.finished("evaluation")
    open_run(config(tmp_path), force="evaluation")
    assert not run.finished("evaluation")
    assert (run.stage("evaluation") / "report.html").is_file()
    open_run(config(tmp_path), force="ppo")
    assert not (run.folder / "evaluation").exists()


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path) -> None:
    """A real failing write: the process may not write files of more than 1000 bytes."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from workbench.run.folder import write_text; from workbench.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_text(Path(sys.argv[1]), 'x' * 10_000)\n"
        "except UserError as error: print(error)\n"
    )
    target = tmp_path / "report.md"
    target.write_text("old")
    result = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert "File too large; the previous contents are unchanged" in result.stdout
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.md", "old")]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(error: Exception, tmp_path: Path) -> None:
    target = tmp_path / "step_000001"
    with atomic_folder(target) as partial:
        (partial / "state.pt").write_text("first")

    def failing() -> None:
        with atomic_folder(target) as partial:
            (partial / "state.pt").write_text("torn")
            raise error

    with pytest.raises(UserError, match="cannot be written"):
        failing()
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]
    assert (target / "state.pt").read_text() == "first"


def test_other_errors_pass_through_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape mismatch"), atomic_folder(tmp_path / "x"):
        raise RuntimeError("shape mismatch")
    assert list(tmp_path.iterdir()) == []


def test_text_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "one")
    write_text(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"


def test_a_file_and_a_model_folder_have_a_hash_of_their_content(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b"abc")
    assert content_hash(tmp_path / "data.jsonl") == hashlib.sha256(b"abc").hexdigest()
    assert content_hash(tmp_path / "nowhere") is None
    assert content_hash(tmp_path) is None, "a folder without a file of a model"
    hashes = [content_hash(model_folder(tmp_path / "first"))]
    assert content_hash(model_folder(tmp_path / "second")) == hashes[0], "the folder's name does not count"
    folder = tmp_path / "first"
    for name in ("stage.json", "metrics.jsonl", "report.html", "report.json", "report.md", "README.md"):
        (folder / name).write_text("a run's record")
        assert content_hash(folder) == hashes[0], name
    for name in ("pytorch_model.bin", "config.json", "vocab.txt", "calibration.json", "chat_template.jinja", "x.model"):
        (folder / name).write_text("another")
        hashes.append(content_hash(folder))
    (folder / "x.model").rename(folder / "y.model")
    hashes.append(content_hash(folder))
    assert len(set(hashes)) == len(hashes)


def model_folder(folder: Path) -> Path:
    """Make the folder of a model whose weights are a .bin file."""
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder
