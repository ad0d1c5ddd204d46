"""Classifiers and preference models are addressed by name and right in any batch; mistakes are named on one line."""

import subprocess
import sys

import pytest
import torch
from tiny_classifiers import KINDS, build, byte_tokenizer, save
from transformers import GPT2LMHeadModel

from reward_models import preference
from reward_models.classifier import ToxicityClassifier, load
from reward_models.preference import PreferenceModel
from workbench.config.sources import Scorer
from workbench.errors import RewardError, UserError
from workbench.models.batching import encode
from workbench.rewards.preference_encoding import encode_preferences
from workbench.rewards.registry import load_judge, load_reward

PROMPT, LONG_PROMPT, LONG = "Say something.", "0123456789" * 10, "abcdefghij" * 10


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.set_num_threads(1)
    return {kind: save(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    return {kind: save(tmp_path_factory.mktemp(kind), kind, {0: "score"}) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_margin_and_probability_come_from_the_logits_of_one_unpadded_row(kind, folders):
    reward = load(folders[kind], target_label="spam", polarity_pair=None)
    text = "Thank you."
    ids = reward.network.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = reward.network.model(input_ids=ids).logits[0].double()
    others = torch.log(torch.exp(logits[0]) + torch.exp(logits[1]))
    assert reward(["p", "p"], [text, "a longer neighbor"])[0] == pytest.approx((logits[2] - others).item(), abs=1e-5)
    expected = 1 - torch.softmax(logits, dim=0)[2]
    assert reward.judge()([text, "x"])[0] == pytest.approx(expected.item(), abs=1e-6)


def test_the_label_is_found_by_name_wherever_it_stands(tmp_path):
    first = load(save(tmp_path / "a", "bert", {0: "Non-Toxic", 1: "toxic"}), polarity_pair=None)
    second = load(save(tmp_path / "b", "bert", {0: "toxic", 1: "Non-Toxic"}), polarity_pair=None)
    assert (first.label.index, second.label.index) == (0, 1)
    # the same weights under swapped names: the margin changes its sign
    assert first([""], ["text"])[0] == pytest.approx(-second([""], ["text"])[0], abs=1e-5)


def test_a_spelled_out_end_of_text_is_text(folders):
    reward = load(folders["gpt2"], polarity_pair=None)
    plain, marked = reward(["", ""], ["Thank you.", "Thank you.<|endoftext|>"])
    assert abs(plain - marked) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_truncated_at_the_context_length(kind, folders):
    reward = load(folders[kind], polarity_pair=None)
    assert reward.network.max_tokens == 64
    assert max(len(row) for row in encode(reward.network.tokenizer, ["word " * 2000], 64)) == 64
    short = load(folders[kind], polarity_pair=None, max_tokens=8)
    assert short([""], ["a" * 8 + "b"]) == pytest.approx(short([""], ["a" * 8 + "c"]))
    special = reward.network.tokenizer.num_special_tokens_to_add()
    for max_tokens in (special, 65):
        line = rf"max_tokens is {max_tokens}, but the model accepts {special + 1} \(its special tokens .*\) to 64"
        with pytest.raises(UserError, match=line):
            load(folders[kind], polarity_pair=None, max_tokens=max_tokens)
    smallest = load(folders[kind], polarity_pair=None, max_tokens=special + 1)
    assert len(smallest(["", ""], ["a " * 200, "b"])) == 2


def test_scores_are_fp32_inside_another_precision(folders):
    reward = load(folders["bert"], polarity_pair=None)
    expected = reward([""], ["some text"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reward([""], ["some text"]) == expected
    assert not reward.network.model.training


def test_polarity_is_tested_at_load(folders):
    plain = load(folders["bert"], polarity_pair=None)
    low, high = sorted(["one sentence", "another sentence"], key=lambda text: plain([""], [text])[0])
    load(folders["bert"], polarity_pair=[high, low])
    with pytest.raises(RewardError, match="must score higher"):
        load(folders["bert"], polarity_pair=[low, high])


def test_a_neutral_label_among_others_is_not_taken_for_the_target(tmp_path):
    three = save(tmp_path / "three", "bert", {0: "friendly", 1: "neutral", 2: "rude"})
    with pytest.raises(UserError, match="set target_label, the label to reward, to one of friendly, neutral, rude"):
        load(three, polarity_pair=None)
    assert load(three, target_label="friendly", polarity_pair=None).label.index == 0
    assert load(save(tmp_path / "two", "bert", {0: "rude", 1: "neutral"}), polarity_pair=None).label.index == 1


def test_classifiers_that_cannot_be_trusted_are_refused(tmp_path, folders):
    with pytest.raises(UserError, match="target_label is 'nothat', but its labels are hate, nothate, spam"):
        load(folders["bert"], target_label="nothat")
    with pytest.raises(UserError, match=r"set target_label.*LABEL_0, LABEL_1"):
        load(save(tmp_path / "names", "bert", {0: "LABEL_0", 1: "LABEL_1"}))
    model, tokenizer = build("bert")
    torch.nn.init.constant_(model.classifier.weight, torch.nan)
    for folder in (tmp_path / "nan", tmp_path / "headless"):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="NaN"):
        load(str(tmp_path / "nan"))
    bare, tokenizer = build("gpt2")
    GPT2LMHeadModel(bare.config).save_pretrained(tmp_path / "headless")
    with pytest.raises(UserError, match=r"not a trained classifier: it lacks score\.weight"):
        load(str(tmp_path / "headless"))
    with pytest.raises(UserError, match="missing"):
        load(str(tmp_path / "missing"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_preference_is_the_logit_of_prompt_and_completion_as_one_unpadded_row(kind, preferences):
    reward = preference.load(preferences[kind], polarity_pair=None)
    ids = reward.network.tokenizer(f"{PROMPT}\n\nThank you.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = reward.network.model(input_ids=ids).logits[0, 0].item()
    first, other = reward([PROMPT, "Say another thing, please."], ["Thank you."] * 2)
    assert first == pytest.approx(expected, abs=1e-5)
    assert abs(first - other) > 1e-3
    alone = preference.load(preferences[kind], prompt=False, polarity_pair=None)
    assert alone([PROMPT, ""], ["Thank you."] * 2) == pytest.approx(reward(["", ""], ["Thank you."] * 2))


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("", "short", "short"),
        (PROMPT, "short", f"{PROMPT}\n\nshort"),
        (LONG_PROMPT, "short", f"{LONG_PROMPT}\n\nshort"[-64:]),
        (PROMPT, LONG, LONG[:64]),
        (LONG_PROMPT, LONG[:64], LONG[:64]),
        (LONG_PROMPT, LONG[:63], "\n" + LONG[:63]),
    ],
)
def test_a_long_preference_loses_the_start_of_its_prompt_and_then_its_own_end(
    preferences, prompt, completion, expected
):
    tokenizer = preference.load(preferences["gpt2"], polarity_pair=None).network.tokenizer
    (ids,) = encode_preferences(tokenizer, [prompt], [completion], 64)
    assert tokenizer.decode(ids) == expected
    assert tokenizer.truncation_side == "right"
    assert tokenizer.backend_tokenizer.truncation["direction"].lower() == "right"


def test_a_truncated_preference_keeps_the_marks_of_its_architecture(preferences):
    tokenizer = preference.load(preferences["bert"], polarity_pair=None).network.tokenizer
    (ids,) = encode_preferences(tokenizer, [LONG_PROMPT], ["short"], 64)
    assert tokenizer.decode(ids) == "[CLS]" + f"{LONG_PROMPT}\n\nshort"[-62:] + "[SEP]"


def test_a_folder_or_id_is_what_its_number_of_labels_says(folders, preferences):
    reward = load_reward(preferences["bert"], max_tokens=32, polarity_pair=None).reward
    assert isinstance(reward, PreferenceModel)
    assert reward.network.max_tokens == 32
    assert isinstance(load_reward(folders["bert"], polarity_pair=None).reward, ToxicityClassifier)
    with pytest.raises(UserError, match=r"set target_label, the label to reward, to one of score; or penalized_label"):
        load(preferences["bert"])
    with pytest.raises(UserError, match=r"one label, not hate, nothate, spam; use reward\.model: toxicity"):
        preference.load(folders["bert"])
    assert isinstance(
        load_reward(preferences["bert"], target_label="score", polarity_pair=None).reward, ToxicityClassifier
    )
    with pytest.raises(UserError, match="is not a judge"):
        load_judge(Scorer(preferences["bert"], {"polarity_pair": None}))


def test_preference_models_that_cannot_be_trusted_are_refused(tmp_path):
    model, tokenizer = build("gpt2", {0: "score"})
    tokenizer.save_pretrained(tmp_path / "headless")
    GPT2LMHeadModel(model.config).save_pretrained(tmp_path / "headless")
    with pytest.raises(UserError, match=r"not a trained classifier: it lacks score\.weight"):
        preference.load(str(tmp_path / "headless"))
    model.save_pretrained(tmp_path / "unpadded")
    byte_tokenizer().save_pretrained(tmp_path / "unpadded")
    with pytest.raises(UserError, match="neither pad_token nor eos_token"):
        preference.load(str(tmp_path / "unpadded"))
    torch.nn.init.constant_(model.score.weight, torch.nan)
    model.save_pretrained(tmp_path / "nan")
    tokenizer.save_pretrained(tmp_path / "nan")
    with pytest.raises(UserError, match="NaN"):
        preference.load(str(tmp_path / "nan"))


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
    ("model", "options", "message"),
    [
        ("lexcion", {}, "unknown reward 'lexcion'; did you mean lexicon.*owner/name or folder, or package.module:obj"),
        ("xyz", {}, "unknown reward 'xyz'; available: toxicity, preference, lexicon, .*, http; a reward can also be"),
        ("https://host:1", {}, "is a URL; use the http reward"),
        ("toxicity", {"model": "any", "wanted_label": "0"}, "no option 'wanted_label'; did you mean target_label"),
        ("toxicity", {}, "missing a required argument: 'model'"),
        ("length", {"targt": 3}, "length: no option 'targt'; did you mean target"),
        ("users_rewards:by_lenght", {}, "did you mean by_length"),
        ("users_rewards:by_length", {"factor": 2}, "it is a reward itself"),
        ("users_rewards:number", {}, "int is neither"),
        ("users_rewards:wrong", {}, "returned a int, not a reward"),
        ("users_broken:reward", {}, "cannot import users_broken: ModuleNotFoundError: No module named 'nowhere"),
        ("users_absent:reward", {}, "cannot import users_absent"),
        ("no/such/folder/here", {}, "no/such/folder/here"),
    ],
)
def test_mistakes_name_the_fix_on_one_line(user_module, model, options, message):
    with pytest.raises(UserError, match=message) as caught:
        load_reward(model, **options)
    assert "\n" not in str(caught.value)


def test_length_is_not_a_judge():
    with pytest.raises(UserError, match="length is not a judge"):
        load_judge(Scorer("length"))


def test_a_folder_is_a_classifier(folders):
    reward = load_reward(folders["bert"], polarity_pair=None, target_label="spam")
    assert len(reward(["p"], ["text"])) == 1


@pytest.mark.parametrize("module", ["reward_models", "workbench.rewards", "workbench.rewards.registry"])
def test_importing_the_registry_imports_no_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
