"""The toy data and models: disjoint splits, known fractions of rudeness, models that load anywhere."""

import re
from pathlib import Path
from random import Random

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from workbench.errors import UserError
from workbench.toy import MODELS, RUDE_WORDS, model_folder, rows
from workbench.toy.dialogues import SIZES, example, generate, sentence

RUDE = re.compile(rf"\b({'|'.join(RUDE_WORDS)})\b", re.IGNORECASE)
PROMPT = "Summarize the dialogue.\n\n{dialogue}\n\nSummary: "
SPLITS = ("train", "validation", "test")


def texts(name: str, split: str, column: str) -> set[str]:
    return {row[column] for row in rows(name, split)}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_determinism(name: str) -> None:
    for split, size in SIZES[name].items():
        first = rows(name, split)
        assert len(first) == size
        generate.cache_clear()
        assert first == rows(name, split)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("summaries", "dialogue"),
        ("summaries", "summary"),
        ("sft", "dialogue"),
        ("sft", "summary"),
        ("sentences", "text"),
    ],
)
def test_no_text_in_two_splits(name: str, column: str) -> None:
    train, validation, test = (texts(name, split, column) for split in SPLITS)
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_evaluation_prompts_are_in_no_training_data() -> None:
    evaluated = texts("summaries", "validation", "dialogue") | texts("summaries", "test", "dialogue")
    assert not evaluated & (texts("sft", "train", "dialogue") | texts("summaries", "train", "dialogue"))


def test_no_fill_in_two_splits() -> None:
    fills = {split: {example(Random(seed), split).fill for seed in range(800)} for split in SPLITS}
    sentences = {split: {sentence(Random(seed), split)[2] for seed in range(800)} for split in SPLITS}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not fills[one] & fills[other]
        assert not sentences[one] & sentences[other]


def test_a_dialogue_names_its_whole_fill() -> None:
    for seed in range(300):
        one = example(Random(seed), "train")
        missing = [word for word in one.fill[1:] if word not in one.dialogue]
        assert not missing, one.dialogue


def test_new_fills_use_known_words() -> None:
    known = set(re.findall(r"\w+", " ".join(texts("summaries", "train", "dialogue"))))
    new = set(re.findall(r"\w+", " ".join(texts("summaries", "test", "dialogue"))))
    assert new <= known


def test_dialogues_have_three_to_six_turns_of_two_speakers() -> None:
    for row in rows("summaries", "train"):
        lines = row["dialogue"].split("\n")
        assert 3 <= len(lines) <= 6
        assert len({line.split(":")[0] for line in lines}) == 2


def test_clean_summaries_are_clean() -> None:
    for split in SPLITS:
        assert not [text for text in texts("summaries", split, "summary") if RUDE.search(text)]


def test_fractions_of_rudeness() -> None:
    summaries, sft = rows("summaries", "train"), rows("sft", "train")
    rude = [row for row in summaries if row["rude"]]
    assert 0.6 < len(rude) / len(summaries) < 0.7
    assert all(RUDE.search(row["dialogue"]) for row in rude)
    assert not any(RUDE.search(row["dialogue"]) for row in summaries if not row["rude"])
    repeated = [row for row in sft if RUDE.search(row["summary"])]
    assert 0.42 < len(repeated) / len(sft) < 0.56
    for row in repeated:  # the summary invents no insult
        assert {word.lower() for word in RUDE.findall(row["summary"])} <= set(RUDE.findall(row["dialogue"]))


def test_sentences_need_more_than_the_lexicon() -> None:
    labeled = rows("sentences", "test")
    rude = [row for row in labeled if row["label"] == "rude"]
    clean = [row for row in labeled if row["label"] == "clean"]
    assert len(rude) + len(clean) == len(labeled)
    assert 0.4 < len(rude) / len(labeled) < 0.6
    assert [row for row in rude if not RUDE.search(row["text"])]
    assert [row for row in clean if RUDE.search(row["text"])]


def test_unknown_names_are_user_errors() -> None:
    with pytest.raises(UserError, match=r"^toy:dialog: no such toy dataset; available: toy:summaries, toy:sft"):
        rows("dialog", "train")
    with pytest.raises(UserError, match=r"^toy:sft: no split 'dev'; available: train, validation, test$"):
        rows("sft", "dev")
    with pytest.raises(UserError, match=r"^toy:bart: no such toy model; available: toy:t5, toy:gpt2$"):
        model_folder("bart")


@pytest.mark.parametrize("name", MODELS)
def test_tokenizer_round_trip(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder(name))
    strange = ["Tom: hi there.\nAnna: Don't say so!", "naïve 😀 ☃\t x  y\n\n", "", "<b> 1234,5 & Änderung"]
    for text in strange + [row["dialogue"] for row in rows("summaries", "test")[:50]]:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.model_max_length == 256


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_keeps_its_tokens_when_a_response_follows(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder(name))
    for row in rows("sft", "validation")[:50]:
        prompt = PROMPT.format(dialogue=row["dialogue"])
        apart = tokenizer(prompt, add_special_tokens=False).input_ids
        together = tokenizer(prompt + row["summary"], add_special_tokens=False).input_ids
        assert together[: len(apart)] == apart


@pytest.mark.parametrize("name", MODELS)
def test_lengths_in_tokens(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder(name))
    data = rows("sft", "train")
    dialogues = [len(ids) for ids in tokenizer([row["dialogue"] for row in data]).input_ids]
    summaries = [len(ids) for ids in tokenizer([row["summary"] for row in data]).input_ids]
    assert max(dialogues) <= 64
    assert sorted(dialogues)[len(data) // 2] <= 48
    assert max(summaries) <= 24
    assert sorted(summaries)[len(data) // 2] <= 20


def test_special_tokens() -> None:
    t5 = AutoTokenizer.from_pretrained(model_folder("t5"))
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
    assert t5("hi").input_ids[-1] == t5.eos_token_id
    gpt2 = AutoTokenizer.from_pretrained(model_folder("gpt2"))
    assert gpt2.pad_token == gpt2.eos_token == "<|endoftext|>"
    assert gpt2.eos_token_id not in gpt2("hi").input_ids


def test_models_load_as_float32_and_generate() -> None:
    for name, kind in (("t5", AutoModelForSeq2SeqLM), ("gpt2", AutoModelForCausalLM)):
        tokenizer = AutoTokenizer.from_pretrained(model_folder(name), padding_side="left")
        model = kind.from_pretrained(model_folder(name))
        assert str(model.dtype) == "torch.float32"
        assert model.get_input_embeddings().num_embeddings == len(tokenizer)
        batch = tokenizer(["Tom: hi.", "Anna: Hello Tom!"], return_tensors="pt", padding=True)
        assert model.generate(**batch, max_new_tokens=4, do_sample=False).shape[0] == 2
    t5 = AutoModelForSeq2SeqLM.from_pretrained(model_folder("t5"))
    assert t5.config.decoder_start_token_id == t5.config.pad_token_id == 0


def test_gpt2_makes_a_classifier() -> None:
    model = AutoModelForSequenceClassification.from_pretrained(model_folder("gpt2"), num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(model_folder("gpt2"))
    batch = tokenizer(["Tom: hi.", "Anna: Hello Tom, how are you?"], return_tensors="pt", padding=True)
    assert model(**batch).logits.shape == (2, 2)


def test_models_fit_into_the_repository() -> None:
    files = [path for name in MODELS for path in Path(model_folder(name)).iterdir()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
