"""Every reward in the table keeps the contract; classifiers are addressed by name and right in any batch."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from reward_models import TABLE, load_judge, load_reward
from reward_models.classifier import load
from workbench.errors import RewardError, UserError

SPECIAL = ["<|endoftext|>", "[PAD]", "[CLS]", "[SEP]", "[UNK]", "</s>"]
LABELS = {0: "hate", 1: "nothate", 2: "spam"}
TEXTS = [
    "",
    "Thank you.",
    "You are a stupid idiot, and rude words are all you know, you moron.",
    " \n\t",
    "\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439 \u4f60\u597d \U0001f642",
    "A sentence. " * 834,  # 10,000 characters
    "Thank you.<|endoftext|>",
    "Thank you.</s></s>",
    "<|endoftext|>",
    "[PAD] [SEP]",
    "a b c d e f g h",
]


def byte_tokenizer(**options):
    """A tokenizer whose tokens are the 256 bytes, with the special tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = options.pop("template", None)
    if template:
        marks = [(token, vocabulary[token]) for token in template.split() if token in vocabulary]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=SPECIAL, **options)


def build(kind, labels=None):
    """A tiny random classifier whose scores differ from text to text, and its tokenizer."""
    torch.manual_seed(0)
    common = {"vocab_size": 256 + len(SPECIAL), "id2label": labels or LABELS, "initializer_range": 0.3}
    common["label2id"] = {name: index for index, name in common["id2label"].items()}
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ends = {"eos_token": "<|endoftext|>"}
    if kind == "bert":
        tokenizer = byte_tokenizer(pad_token="[PAD]", template="[CLS] $A [SEP]")
        return BertForSequenceClassification(BertConfig(**common, **small, max_position_embeddings=64)), tokenizer
    if kind == "roberta":
        tokenizer = byte_tokenizer(pad_token="[PAD]", template="[CLS] $A [SEP]")
        options = {"max_position_embeddings": 65 + tokenizer.pad_token_id, "pad_token_id": tokenizer.pad_token_id}
        return RobertaForSequenceClassification(RobertaConfig(**common, **small, **options)), tokenizer
    if kind == "t5":
        tokenizer = byte_tokenizer(pad_token="[PAD]", eos_token="</s>", template="$A </s>", model_max_length=64)
        options = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "initializer_factor": 2.0}
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        return T5ForSequenceClassification(T5Config(**common, **options, **ids, decoder_start_token_id=0)), tokenizer
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 256, "eos_token_id": 256}
    return GPT2ForSequenceClassification(GPT2Config(**common, **size)), byte_tokenizer(**ends)


def save(folder, kind, labels=None):
    model, tokenizer = build(kind, labels)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


KINDS = ["bert", "roberta", "gpt2", "t5"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.set_num_threads(1)
    return {kind: save(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture
def fake_profanity_check(monkeypatch):
    """Stands in for the optional package: a probability per text, an error for no texts, as the package has."""

    def predict_prob(texts):
        if not texts:
            raise ValueError("Found array with 0 sample(s)")
        return np.array([min(text.count("idiot"), 1) for text in texts], dtype=float)

    monkeypatch.setitem(sys.modules, "profanity_check", SimpleNamespace(predict_prob=predict_prob))


def every_reward(folders):
    """Name -> reward, for each entry of the table and each kind of classifier."""
    rewards = {name: (name, {}) for name in TABLE if name != "toxicity"}
    for kind, folder in folders.items():
        rewards[f"toxicity {kind}"] = ("toxicity", {"model": folder, "polarity_pair": None, "batch_size": 4})
    return rewards


@pytest.mark.parametrize("name", [*(name for name in TABLE if name != "toxicity"), *(f"toxicity {k}" for k in KINDS)])
def test_contract(name, folders, fake_profanity_check):
    model, options = every_reward(folders)[name]
    score = load_reward(model, **options)
    together = score(["prompt"] * len(TEXTS), TEXTS)
    assert len(together) == len(TEXTS)
    assert np.isfinite(together).all()
    assert np.ptp(together) > 0.1  # or the comparisons below would compare nothing
    assert together == score(["prompt"] * len(TEXTS), TEXTS)
    alone = [score(["another prompt"], [text])[0] for text in TEXTS]
    assert alone == pytest.approx(together, abs=1e-5)
    reversed_order = score(["prompt"] * len(TEXTS), TEXTS[::-1])[::-1]
    assert reversed_order == pytest.approx(together, abs=1e-5)
    assert score([], []) == []
    assert score(["p"], ["text"], reference=["x"]) == score(["p"], ["text"])


@pytest.mark.parametrize("name", ["lexicon", "profanity", *(f"toxicity {kind}" for kind in KINDS)])
def test_judges_give_probabilities(name, folders, fake_profanity_check):
    model, options = every_reward(folders)[name]
    probabilities = load_judge(model, **options)(TEXTS)
    assert len(probabilities) == len(TEXTS)
    assert all(0.0 <= probability <= 1.0 for probability in probabilities)
    assert load_judge(model, **options)([]) == []
    rewards = load_reward(model, **options)([""] * len(TEXTS), TEXTS)
    assert np.argmax(rewards) in np.flatnonzero(np.isclose(probabilities, min(probabilities)))


@pytest.mark.parametrize("kind", KINDS)
def test_margin_and_probability_come_from_the_logits_of_one_unpadded_row(kind, folders):
    reward = load(folders[kind], wanted_label="spam", polarity_pair=None)
    text = "Thank you."
    ids = reward.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = reward.model(input_ids=ids).logits[0].double()
    others = torch.log(torch.exp(logits[0]) + torch.exp(logits[1]))
    assert reward(["p", "p"], [text, "a longer neighbour"])[0] == pytest.approx((logits[2] - others).item(), abs=1e-5)
    expected = 1 - torch.softmax(logits, dim=0)[2]
    assert reward.toxicity([text, "x"])[0] == pytest.approx(expected.item(), abs=1e-6)


def test_the_label_is_found_by_name_wherever_it_stands(tmp_path):
    first = load(save(tmp_path / "a", "bert", {0: "Non-Toxic", 1: "toxic"}), polarity_pair=None)
    second = load(save(tmp_path / "b", "bert", {0: "toxic", 1: "Non-Toxic"}), polarity_pair=None)
    assert (first.wanted, second.wanted) == (0, 1)
    # the same weights under swapped names: the margin changes its sign
    assert first([""], ["text"])[0] == pytest.approx(-second([""], ["text"])[0], abs=1e-5)


def test_a_spelled_out_end_of_text_is_text(folders):
    reward = load(folders["gpt2"], polarity_pair=None)
    plain, marked = reward(["", ""], ["Thank you.", "Thank you.<|endoftext|>"])
    assert abs(plain - marked) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_cut_at_the_window(kind, folders):
    reward = load(folders[kind], polarity_pair=None)
    assert reward.max_tokens == 64
    assert max(len(row) for row in reward._encode(["word " * 2000])) == 64
    short = load(folders[kind], polarity_pair=None, max_tokens=8)
    assert short([""], ["a" * 8 + "b"]) == pytest.approx(short([""], ["a" * 8 + "c"]))
    with pytest.raises(UserError, match="max_tokens is 65, but the model reads 1 to 64"):
        load(folders[kind], polarity_pair=None, max_tokens=65)


def test_scores_are_fp32_inside_another_precision(folders):
    reward = load(folders["bert"], polarity_pair=None)
    expected = reward([""], ["some text"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reward([""], ["some text"]) == expected
    assert not reward.model.training


def test_polarity_is_tested_at_load(folders):
    plain = load(folders["bert"], polarity_pair=None)
    low, high = sorted(["one sentence", "another sentence"], key=lambda text: plain([""], [text])[0])
    load(folders["bert"], polarity_pair=[high, low])
    with pytest.raises(RewardError, match="must score higher"):
        load(folders["bert"], polarity_pair=[low, high])


def test_classifiers_that_cannot_be_trusted_are_refused(tmp_path, folders):
    with pytest.raises(UserError, match="wanted_label is 'nothat', but its labels are hate, nothate, spam"):
        load(folders["bert"], wanted_label="nothat")
    with pytest.raises(UserError, match=r"set wanted_label.*LABEL_0, LABEL_1"):
        load(save(tmp_path / "names", "bert", {0: "LABEL_0", 1: "LABEL_1"}))
    with pytest.raises(UserError, match="one label"):
        load(save(tmp_path / "one", "bert", {0: "score"}))
    model, tokenizer = build("bert")
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(tmp_path / "multi")
    with pytest.raises(UserError, match="can hold together"):
        load(str(tmp_path / "multi"))
    model.config.problem_type = None
    torch.nn.init.constant_(model.classifier.weight, torch.nan)
    for folder in (tmp_path / "nan", tmp_path / "headless"):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="NaN"):
        load(str(tmp_path / "nan"))
    bare, tokenizer = build("gpt2")
    GPT2LMHeadModel(bare.config).save_pretrained(tmp_path / "headless")
    with pytest.raises(UserError, match=r"no trained classifier: it lacks score\.weight"):
        load(str(tmp_path / "headless"))
    with pytest.raises(UserError, match="missing"):
        load(str(tmp_path / "missing"))


def test_lexicon_counts_whole_words_in_any_case():
    reward = load_reward("lexicon", words=["idiot", "damn it"])
    completions = ["IDIOT! idiot", "idiots and nonidiot", "Damn it.", "", "fine"]
    assert reward([""] * 5, completions) == [-2.0, 0.0, -1.0, 0.0, 0.0]
    assert load_judge("lexicon", words=["idiot"])(completions) == [1.0, 0.0, 0.0, 0.0, 0.0]
    with pytest.raises(UserError, match="words is empty"):
        load_reward("lexicon", words=[])


def test_length_pays_for_the_target():
    assert load_reward("length", target=2)([""] * 3, ["a b", "", "a b c"]) == [0.0, -2.0, -1.0]


def test_profanity_is_a_clipped_margin(fake_profanity_check):
    reward = load_reward("profanity")
    assert reward(["", ""], ["idiot", "fine"]) == pytest.approx([-13.8155, 13.8155], abs=1e-3)


def test_profanity_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(UserError, match="pip install alt-profanity-check"):
        load_reward("profanity")


USER_MODULE = """
def by_length(prompts, completions, **columns):
    return [len(text) for text in completions]

def trl_style(completions, **kwargs):
    return [0.5 for _ in completions]

def scaled(factor=2.0):
    return lambda prompts, completions, **columns: [factor * len(text) for text in completions]

class Instance:
    def __call__(self, prompts, completions, **columns):
        return [1.0 for _ in completions]

ready = Instance()
number = 3

def wrong():
    return 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "users_rewards.py").write_text(USER_MODULE)
    (tmp_path / "users_broken.py").write_text("import nowhere_to_be_found")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("users_rewards", None)


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        ("by_length", {}, 4.0),
        ("trl_style", {}, 0.5),
        ("scaled", {}, 8.0),
        ("scaled", {"factor": 3.0}, 12.0),
        ("Instance", {}, 1.0),
        ("ready", {}, 1.0),
    ],
)
def test_a_users_object_is_a_reward_or_makes_one(user_module, target, options, expected):
    assert load_reward(f"users_rewards:{target}", **options)(["p"], ["four"]) == [expected]


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("lexcion", {}, "did you mean lexicon.*toxicity, lexicon, profanity, length"),
        ("toxicity", {}, "missing a required argument: 'model'"),
        ("length", {"targt": 3}, "'targt'; its options are: target"),
        ("users_rewards:by_lenght", {}, "did you mean by_length"),
        ("users_rewards:by_length", {"factor": 2}, "it is a reward itself"),
        ("users_rewards:number", {}, "int is neither"),
        ("users_rewards:wrong", {}, "made a int, not a reward"),
        ("users_broken:reward", {}, "cannot import users_broken: ModuleNotFoundError: No module named 'nowhere"),
        ("users_absent:reward", {}, "cannot import users_absent"),
        ("no/such/folder/here", {}, "no/such/folder/here"),
    ],
)
def test_mistakes_name_the_fix_on_one_line(user_module, model, options, said):
    with pytest.raises(UserError, match=said) as caught:
        load_reward(model, **options)
    assert "\n" not in str(caught.value)


def test_length_cannot_judge():
    with pytest.raises(UserError, match="length cannot judge"):
        load_judge("length")


def test_a_folder_is_a_classifier(folders):
    reward = load_reward(folders["bert"], polarity_pair=None, wanted_label="spam")
    assert len(reward(["p"], ["text"])) == 1


def test_importing_the_table_imports_no_torch():
    code = "import reward_models, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
