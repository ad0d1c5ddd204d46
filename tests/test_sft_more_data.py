"""Further sources of SFT: each makes up its share of the training rows, drawn by the seed and never repeated."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_data import write

from recipes import sft
from workbench.config.derived import stage_sources
from workbench.config.parsing import parse
from workbench.config.schema import Config
from workbench.config.sources import MixedSource
from workbench.data.mixing import load_training_rows, mixed_counts, shuffled_together
from workbench.data.sources import source_hashes
from workbench.errors import UserError
from workbench.evaluation.prompt_sets import load_prompt_sets
from workbench.export.exported import training_sources
from workbench.models.loading import load_config, load_policy_tokenizer
from workbench.models.positions import model_context
from workbench.run import cli
from workbench.run.reuse import sft_seed, with_sft
from workbench.run.stage_record import write_record
from workbench.sft.plan import plan_sft
from workbench.sft.trainer import make_sft_trainer

WORDS = ("dog", "cake", "train", "park", "book", "phone", "garden", "table", "river", "letter")


def texts(name: str, count: int) -> list[dict[str, Any]]:
    """Return rows whose prompts are all different."""
    return [
        {"prompt": f"{name} {number // 10} {WORDS[number % 10]}", "response": f"the {WORDS[number % 10]}"}
        for number in range(count)
    ]


def configuration(
    folder: Path, *further: dict[str, Any], main: int = 80, sft_options: dict[str, Any] | None = None, **options: Any
) -> Config:
    """Return the configuration of a run on `main` rows, and on as many rows of each further source as it says."""
    sources = [
        {"path": write(folder / f"more{index}.jsonl", texts(f"more{index}", source.pop("rows"))), **source}
        for index, source in enumerate(further)
    ]
    values = {
        "name": "mixed",
        "runs": str(folder / "runs"),
        "policy": {"model": "toy:gpt2", "precision": "fp32"},
        "sft": {
            "data": {"path": write(folder / "main.jsonl", texts("main", main))},
            "more_data": sources,
            **(sft_options or {}),
        },
        "evaluation": {"data": {"seen": {"path": str(folder / "more0.jsonl")}}, "max_new_tokens": 8},
        **options,
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return parse(["--config", str(file)])[0]


def drawn(config: Config) -> tuple[list[list[str]], list[str]]:
    """Return the prompts that each source contributes, and the lines about them."""
    assert config.sft is not None
    tokenizer = load_policy_tokenizer("toy:gpt2")
    context = model_context(load_config("toy:gpt2"), tokenizer)
    sources, lines = load_training_rows(config.sft, config.seed, tokenizer, context)
    return [[row["prompt"] for row in rows] for _, rows in sources], lines


@pytest.mark.parametrize(
    ("main", "available", "shares", "counts"),
    [
        (80, [50], [0.2], [20]),  # of 100
        (100, [900], [0.9], [900]),  # of 1000
        (50, [1000, 1000], [0.25, 0.25], [25, 25]),  # of 100
        (300, [1000, 1000], [0.1, 0.5], [75, 375]),  # of 750
        (1, [9], [0.1], [1]),  # 0.11 of a row is one
        (80, [5], [0.2], [5]),  # all of too few
        (30, [10, 1000], [0.5, 0.2], [10, 10]),  # of 50: the second has its share of what is left
        (90, [9, 10, 1000], [0.3, 0.3, 0.3], [9, 10, 47]),  # of 156: the first two have all of theirs
        (70, [], [], []),
    ],
)
def test_each_source_makes_up_its_share(
    main: int, available: list[int], shares: list[float], counts: list[int]
) -> None:
    assert mixed_counts(main, available, shares) == counts


@pytest.mark.parametrize("main", [7, 80, 1001])
def test_the_shares_are_exact_to_half_a_row(main: int) -> None:
    shares = [0.13, 0.21, 0.4]
    counts = mixed_counts(main, [10**6] * 3, shares)
    whole = main / (1 - sum(shares))
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - share * whole) <= 0.5


def test_the_main_rows_are_whole_and_the_others_drawn_without_repetition(tmp_path: Path) -> None:
    config = configuration(tmp_path, {"rows": 50, "share": 0.2}, {"rows": 60, "share": 0.4})
    (main, first, second), lines = drawn(config)
    assert main == [row["prompt"] for row in texts("main", 80)]
    assert (len(first), len(second)) == (35, 60), "of 175: the second source has 60 rows, and its share would be 80"
    for prompts, name in ((first, "more0"), (second, "more1")):
        assert len(set(prompts)) == len(prompts)
        assert all(prompt.startswith(name) for prompt in prompts)
    assert lines[3:] == [
        "sft.data: 80 rows, 45.7 % of the 175 training rows",
        "sft.more_data[0]: 35 of its 50 rows drawn, 20.0 % of the 175 training rows",
        "sft.more_data[1]: all of its 60 rows, 34.3 % of the 175 training rows, too few for share 0.4; none is "
        "repeated",
    ]


def test_rows_are_drawn_by_the_seed(tmp_path: Path) -> None:
    config = configuration(tmp_path, {"rows": 50, "share": 0.2}, {"rows": 50, "share": 0.2})
    (_, first, second), _ = drawn(config)
    assert drawn(config)[0][1:] == [first, second]
    numbers = [[prompt.split(" ", 1)[1] for prompt in prompts] for prompts in (first, second)]
    assert numbers[0] != numbers[1], "each source has its own draw"
    assert first != sorted(first, key=[row["prompt"] for row in texts("more0", 50)].index), "not the first rows"
    (_, other, _), _ = drawn(dataclasses.replace(config, seed=1))
    assert len(other) == len(first)
    assert set(other) != set(first)


def test_the_rows_are_shuffled_into_one_set_unless_there_is_one_source(tmp_path: Path) -> None:
    rows = [[{"source": source, "number": number} for number in range(20)] for source in range(2)]
    mixed = shuffled_together(rows, 3)
    assert sorted(mixed, key=lambda row: (row["source"], row["number"])) == rows[0] + rows[1]
    assert len({row["source"] for row in mixed[:10]}) == 2
    assert shuffled_together(rows, 3) == mixed
    assert shuffled_together(rows, 4) != mixed
    assert shuffled_together(rows[:1], 3) == rows[0]


def test_training_uses_the_rows_that_the_plan_announces(tmp_path: Path) -> None:
    config = configuration(tmp_path, {"rows": 50, "share": 0.2}, sft_options={"batch_size": 4})
    plan = plan_sft(config)
    assert "25 steps of 4 rows from 100" in plan.lines
    trainer = make_sft_trainer(config, plan, tmp_path / "sft")
    tokenizer = load_policy_tokenizer("toy:gpt2")
    trained = [tokenizer.decode(ids) for ids in trainer.train_dataset["input_ids"]]
    assert sum(text.startswith("more0") for text in trained) == 20
    assert sum(text.startswith("main") for text in trained) == 80


def test_chat_and_plain_rows_are_mixed(tmp_path: Path) -> None:
    tokenizer = load_policy_tokenizer("toy:gpt2")
    tokenizer.chat_template = "{% for turn in messages %}<{{ turn.role }}> {{ turn.content }}{% endfor %}<assistant>"
    context = model_context(load_config("toy:gpt2"), tokenizer)
    turns = [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": "barks"}]
    chats = write(tmp_path / "chats.jsonl", [{"messages": turns}] * 10)
    config = configuration(tmp_path, {"rows": 50, "share": 0.25}, {"rows": 50, "share": 0.25, "chat": True})
    assert config.sft is not None
    config.sft.more_data.append(MixedSource(chats, share=0.25))
    sources, _ = load_training_rows(config.sft, 0, tokenizer, context)
    prompts = [{row["prompt"].split(" ")[0] for row in rows} for _, rows in sources]
    assert prompts == [{"main"}, {"more0"}, {"<user>"}, {"<user>"}]
    assert {row["response"] for row in sources[3][1]} == {"barks"}


def test_prompts_that_were_drawn_count_as_seen_in_training(tmp_path: Path) -> None:
    config = configuration(tmp_path, {"rows": 50, "share": 0.2})
    (loaded,), _ = load_prompt_sets(config, {"toy:gpt2": load_policy_tokenizer("toy:gpt2")}, {})
    assert (len(loaded.rows), loaded.seen_in_training) == (50, 20)


def test_the_rows_of_a_reused_stage_are_those_of_its_own_seed(tmp_path: Path) -> None:
    config = configuration(tmp_path, {"rows": 50, "share": 0.2}, seed=5)
    assert sft_seed(config) == 5
    config = dataclasses.replace(config, reuse=dataclasses.replace(config.reuse, sft=str(tmp_path / "other")))
    for folder, seed in ((tmp_path / "runs" / "mixed" / "sft", 6), (tmp_path / "other" / "sft", 7)):
        folder.mkdir(parents=True)
        write_record(folder, {"seed": seed})
        assert sft_seed(config) == seed, "the copy stands in for the other run, which may be gone"


def test_another_mixture_cannot_reuse_a_stage(tmp_path: Path) -> None:
    config = configuration(tmp_path, {"rows": 50, "share": 0.2})
    assert config.sft is not None
    other = dataclasses.replace(config, sft=dataclasses.replace(config.sft, more_data=[]))
    with pytest.raises(UserError, match=r"reuse\.sft: sft\.more_data is .* here, but \[\] in elsewhere"):
        with_sft(config, other, Path("elsewhere"))


def test_the_sources_are_recorded_with_their_hashes(tmp_path: Path) -> None:
    config = configuration(tmp_path, {"rows": 5, "share": 0.2}, {"rows": 5, "share": 0.2})
    assert [key for key, _ in stage_sources(config, "sft")] == ["sft.data", "sft.more_data[0]", "sft.more_data[1]"]
    hashes = source_hashes(config, "sft")
    assert len({hashes[key]["sha256"] for key in hashes} - {None}) == 3
    assert [source.path for source in training_sources(config, "sft")] == [entry["path"] for entry in hashes.values()]


REFUSED = {
    "sft.more_data[0].share: missing; set it in the YAML file": [{"path": "x"}],
    "sft.more_data[0].share: 0.0 must be above 0": [{"path": "x", "share": 0}],
    "sft.more_data[0].share: 1.0 must be below 1": [{"path": "x", "share": 1}],
    "sft.more_data[0].share: -0.5 must be above 0": [{"path": "x", "share": -0.5}],
    "sft.more_data[1].share: nan must be a finite number": [
        {"path": "x", "share": 0.1},
        {"path": "x", "share": ".nan"},
    ],
    "sft.more_data: the shares 0.5, 0.6 sum to 1.1 and leave nothing to sft.data; lower them to less than 1 together": [
        {"path": "x", "share": 0.5},
        {"path": "x", "share": 0.6},
    ],
    "sft.more_data: the shares 0.9, 0.1 sum to 1 and leave nothing": [
        {"path": "x", "share": 0.9},
        {"path": "x", "share": 0.1},
    ],
    "sft.more_data[0].shares: unknown key; did you mean share?": [{"path": "x", "shares": 0.5}],
    "sft.more_data[0]: missing.jsonl: no such file": [{"path": "missing.jsonl", "share": 0.5}],
    "sft.more_data[0]: template: unknown name 'dialog": [{"path": "main.jsonl", "share": 0.5, "template": "dialog"}],
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_mistake_is_one_line_in_the_plan(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    configuration(tmp_path)
    entries = json.dumps(REFUSED[message]).replace('".nan"', ".nan")
    argv = ["recipes/sft.py", "--config", "config.yaml", "--sft.more_data", entries, "--dry_run"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as leaving:
        cli.main([sft.STAGE], "")
    assert leaving.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
