"""What the rows of a comparison of prompts inherit, read and leave unread, and how its tokens are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_prompting import REFERENCE, RESPONSE, TEMPLATE, options, planned, rows, run, write_lines
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from workbench.config.parsing import dump, parse
from workbench.errors import UserError
from workbench.evaluation.generation import ComparedModel
from workbench.evaluation.results_files import read_results
from workbench.models.loading import load_policy_tokenizer
from workbench.models.memory_plan import number_of_copies
from workbench.prompting import pipeline
from workbench.prompting.inspection import token_text
from workbench.run.files import content_hash


def ways(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the ways to generate of a parsed configuration."""
    config = parse(options(folder, **changes))[0]
    assert config.prompting is not None
    (folder / "saved.yaml").write_text(dump(config))
    assert parse([f"--config={folder / 'saved.yaml'}"])[0] == config, "a saved configuration means the same"
    return config.prompting.generation


def test_a_way_to_generate_inherits_what_it_leaves_out(tmp_path: Path) -> None:
    evaluation = {"repetition_penalty": 1.5, "stop_strings": ["\n"], "min_new_tokens": 2, "top_k": 7, "top_p": 0.5}
    keys = {f"evaluation.{name}": value for name, value in evaluation.items()} | {"evaluation.temperature": 0.4}
    entries = {"same": {}, "warm": {"temperature": 2, "stop_strings": [], "top_k": None}, "greedy": {"temperature": 0}}
    way = ways(tmp_path, **keys, **{"prompting.generation": entries})
    assert {name: vars(way["same"])[name] for name in evaluation} == evaluation
    assert (way["same"].temperature, way["same"].max_new_tokens) == (0.4, 4)
    assert (way["warm"].temperature, way["warm"].top_k, way["warm"].top_p, way["warm"].stop_strings) == (
        2,
        None,
        0.5,
        [],
    )
    assert (way["greedy"].top_k, way["greedy"].top_p, way["greedy"].repetition_penalty) == (None, None, 1.5)


def test_a_way_to_generate_inherits_nothing_that_its_own_settings_make_meaningless(tmp_path: Path) -> None:
    beams = {"evaluation.temperature": 0, "evaluation.num_beams": 3}
    way = ways(tmp_path, **beams, **{"prompting.generation": {"beams": {}, "warm": {"temperature": 1}}})
    assert (way["beams"].num_beams, way["warm"].num_beams) == (3, 1)
    searched = {"beams": {"num_beams": 2, "temperature": 0}, "default": {}}
    way = ways(tmp_path, **{"evaluation.top_p": 0.9, "prompting.generation": searched})
    assert (way["beams"].top_p, way["default"].top_p) == (None, 0.9)


def test_several_samples_are_refused_only_where_every_row_is_greedy(tmp_path: Path) -> None:
    several = {"evaluation.samples": 2, "evaluation.temperature": 0}
    greedy, warm = {"temperature": 0}, {"temperature": 1}
    assert parse(options(tmp_path, **several, **{"prompting.generation": {"a": greedy, "b": warm}}))
    with pytest.raises(UserError, match=r"prompting\.generation: every way has temperature 0"):
        parse(options(tmp_path, **{"evaluation.samples": 2, "prompting.generation": {"a": greedy, "b": greedy}}))
    with pytest.raises(UserError, match=r"evaluation\.temperature: 0 samples the same"):
        parse(options(tmp_path, **several))
    further = {"evaluation.models": {"other": "toy:gpt2"}, "prompting.generation": {"a": warm}}
    with pytest.raises(UserError, match=r"evaluation\.temperature: 0 samples the same"):
        parse(options(tmp_path, **several, **further))


def test_a_column_that_an_example_lacks_is_blamed_on_the_examples(tmp_path: Path) -> None:
    data = {"test": {"path": write_lines(tmp_path / "topics.jsonl", with_topics("t")), **REFERENCE}}
    templates = {"a": TEMPLATE, "b": "{topic}: {dialogue} "}
    with pytest.raises(UserError, match=r"^prompting\.examples: .*no column 'topic'"):
        planned(tmp_path, **{"evaluation.data": data, "prompting.templates": templates})


def test_the_order_of_the_templates_changes_neither_the_split_nor_the_examples(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "topics.jsonl", with_topics("t", 40))
    fractions = {"path": file, "fractions": {"train": 0.5, "test": 0.5}}
    changes = {
        "evaluation.data": {"test": fractions | {"split": "test"} | REFERENCE},
        "prompting.examples": fractions | RESPONSE,
    }
    templates = {"a": "{dialogue}\nSummary: ", "b": "About {topic}: {dialogue}\nSummary: "}
    one, other = (
        planned(tmp_path, **changes, **{"prompting.templates": dict(items)}).sets[0]
        for items in (templates.items(), reversed(templates.items()))
    )
    assert one.identities == other.identities
    assert one.rows["few-shot 2, a"] == other.rows["few-shot 2, a"]


def test_a_row_with_a_scored_prompt_in_one_template_is_no_example(tmp_path: Path) -> None:
    data = {"test": {"path": write_lines(tmp_path / "topics.jsonl", with_topics("t")), **REFERENCE}}
    examples = [row | {"topic": "another"} for row in with_topics("t")] + with_topics("e", 3)
    changes = {
        "evaluation.data": data,
        "prompting.examples": {"path": write_lines(tmp_path / "both.jsonl", examples), **RESPONSE},
        "prompting.templates": {"b": "About {topic}: {dialogue}\nSummary: ", "a": "{dialogue}\nSummary: "},
    }
    assert "3 rows to draw from; 6 of the 9 are rows of evaluation.data" in "\n".join(
        planned(tmp_path, **changes).lines
    )


def with_topics(prefix: str, count: int = 6) -> list[dict[str, Any]]:
    return [row | {"topic": f"topic {i}"} for i, row in enumerate(rows(count, prefix))]


def test_the_plan_names_what_it_does_not_read(tmp_path: Path) -> None:
    examples = {"path": write_lines(tmp_path / "e.jsonl", rows(9, "e")), "chat": True, **RESPONSE}
    plan = planned(tmp_path, **{"evaluation.models": {"other": "toy:gpt2"}, "prompting.examples": examples})
    assert plan.lines[0] == "evaluation.models: not read; toy:gpt2 is compared as it is, alone"
    assert plan.lines[1].startswith("prompting.examples.chat: not read;")
    strategies = {
        "evaluation.best_of": {"b": {"model": "base"}},
        "evaluation.prompted": {"p": {"model": "base", "prefix": "Be kind. "}},
        "evaluation.anti_expert": {"a": {"model": "base", "adapter": "no/folder"}},
    }
    changes = {"reward.model": "toy_lexicon", "evaluation.temperature": 1}
    plan = planned(tmp_path, **strategies, **changes)
    assert plan.lines[0] == f"{', '.join(strategies)}: not read; toy:gpt2 is compared as it is, alone"
    assert all(not vars(plan.config.evaluation)[key.removeprefix("evaluation.")] for key in strategies)
    plan = planned(tmp_path, **{"prompting.shots": [0]})
    assert plan.lines[0] == "prompting.examples: not read; prompting.shots has no number above 0"


def test_a_stop_string_that_is_a_special_token_is_blamed_on_its_way(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^prompting\.generation\.b\.stop_strings: '<\|endoftext\|>' is a special"):
        planned(tmp_path, **{"prompting.generation": {"b": {"stop_strings": ["<|endoftext|>"]}}})


def test_the_model_is_loaded_once_and_the_data_hashed_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], pipeline.load_model

    def counted(*arguments: Any, **options: Any) -> Any:
        loads.append(arguments)
        (tmp_path / "test.jsonl").write_text("{}\n")  # while the run goes on
        return load(*arguments, **options)

    monkeypatch.setattr(pipeline, "load_model", counted)
    options(tmp_path)
    digests = {name: content_hash(tmp_path / f"{name}.jsonl") for name in ("test", "examples")}
    folder = run(tmp_path, **{"policy.lora": "null"})
    assert len(loads) == 1
    assert number_of_copies(planned(tmp_path, **{"policy.lora": "null"}).config, "evaluation") == 1, "so says the plan"
    sources = {source.name: source.sha256 for source in read_results(folder / "results.json").provenance.sources}
    assert (sources["test"], sources["prompting.examples"]) == (digests["test"], digests["examples"])
    (folder / "stage.json").unlink()
    (folder / "results.json").write_text("{")
    with pytest.raises(UserError, match="--force prompting"):
        read_results(folder / "results.json")


def test_tokens_show_the_space_before_a_word_and_the_bytes_of_a_part_of_a_character() -> None:
    vocabulary = {name: i for i, name in enumerate(["</s>", "\u2581Hello", "Hello", "\u2581", "<0xE2>", "é"])}
    pieces = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    pieces.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    model = compared(PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="</s>"))
    texts = [token_text(model, token) for token in range(len(vocabulary))]
    assert texts == ["</s>", " Hello", "Hello", " ", "<0xE2>", "é"]
    byte_level = compared(load_policy_tokenizer("toy:gpt2"))
    ids = byte_level.tokenizer(" \u96ea").input_ids
    assert "\\x" in "".join(token_text(byte_level, token) for token in ids)
    for text in (" a", "a", "\n", " Hello"):
        ids = byte_level.tokenizer(text, add_special_tokens=False).input_ids
        assert "".join(token_text(byte_level, token) for token in ids) == text


def compared(tokenizer: Any) -> ComparedModel:
    """Return a model of which only the tokenizer is there."""
    policy: Any = None
    return ComparedModel("base", policy, "base", tokenizer, None, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompting.templates": {"a": "Sum {dialogue} {summary}"}}, "{summary} is the reference of evaluation.data."),
        ({"prompting.templates": {"a": "Sum {dialogue}", "b": "Sum {dialogue}"}}, "templates.a: the same as b"),
        ({"prompting.generation": {"a": {"temperature": 0}, "b": {"temperature": 0}}}, "generation.a: the same"),
        ({"prompting.templates": {"a": "Sum it."}}, "has no {column} field, so all prompts would be equal"),
    ],
)  # fmt: skip
def test_rows_that_say_nothing_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        planned(tmp_path, **changes)
    assert message in str(raised.value)
