"""Every registered reward keeps the contract, and those without a network compute what they say."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from tiny_classifiers import KINDS, TEXTS, save

from workbench.config.sources import Scorer
from workbench.data.templates import PROMPT_MESSAGES
from workbench.errors import RewardError, UserError
from workbench.rewards.registry import REWARDS, load_judge, load_reward, load_scorer
from workbench.toy import RUDE_WORDS

# Options for the contract test by registered name; a classifier's `model` stands for the folder of its kind.
CASES = {
    "toxicity": [{"model": kind, "polarity_pair": None, "batch_size": 4} for kind in KINDS],
    "preference": [{"model": f"{kind} preference", "polarity_pair": None, "batch_size": 4} for kind in KINDS],
    "lexicon": [{"words": ["idiot", "moron"]}],
    "toy_lexicon": [{}],
    "profanity": [{}],
    "length": [{}],
    "repetition": [{}],
    "rouge": [{}, {"type": "rouge1"}],
    "combine": [{"terms": [{"model": "toy_lexicon", "weight": 0.5}, {"model": "rouge", "weight": -2.0}]}],
    "ensemble": [{"members": ["toy_lexicon", "profanity"], "k": 0.5}],
}
HTTP = {"http"}  # asks a server; it has tests of its own
JUDGES = ("toxicity", "lexicon", "toy_lexicon", "profanity", "combine", "ensemble")
PARAMETERS = [
    pytest.param(name, options, id=f"{name} {options.get('model', index)}")
    for name, several in CASES.items()
    for index, options in enumerate(several)
]
PROMPTS = [("Say something.", "", "Summarize: {x}")[row % 3] for row in range(len(TEXTS))]
REFERENCES = ["A sentence, you moron. " * (row % 3) + "thank you" for row in range(len(TEXTS))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.set_num_threads(1)
    scorers = {f"{kind} preference": save(tmp_path_factory.mktemp(kind), kind, {0: "score"}) for kind in KINDS}
    return scorers | {kind: save(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture
def fake_profanity_check(monkeypatch):
    """Stands in for the optional package: a probability per text, an error for no texts, as the package has."""

    def predict_prob(texts):
        if not texts:
            raise ValueError("Found array with 0 sample(s)")
        return np.array([min(text.count("idiot"), 1) for text in texts], dtype=float)

    monkeypatch.setitem(sys.modules, "profanity_check", SimpleNamespace(predict_prob=predict_prob))


def located(options, folders):
    """The options with a folder for the kind of a classifier."""
    return options | {"model": folders[options["model"]]} if "model" in options else options


def test_every_entry_of_the_table_is_held_to_the_contract():
    assert CASES.keys() == REWARDS.keys() - HTTP, "add options for the new entry to CASES"


@pytest.mark.parametrize(("name", "options"), PARAMETERS)
def test_contract(name, options, folders, fake_profanity_check):
    score = load_reward(name, **located(options, folders))
    together = score(PROMPTS, TEXTS, reference=REFERENCES)
    assert len(together) == len(TEXTS)
    assert np.isfinite(together).all()
    assert np.ptp(together) > 0.1  # or the comparisons below would compare nothing
    assert together == score(PROMPTS, TEXTS, reference=REFERENCES)
    assert together == load_reward(name, **located(options, folders))(PROMPTS, TEXTS, reference=REFERENCES)
    rows = zip(PROMPTS, TEXTS, REFERENCES, strict=True)
    alone = [score([prompt], [text], reference=[reference])[0] for prompt, text, reference in rows]
    assert alone == pytest.approx(together, abs=1e-5)
    reversed_order = score(PROMPTS[::-1], TEXTS[::-1], reference=REFERENCES[::-1])[::-1]
    assert reversed_order == pytest.approx(together, abs=1e-5)
    assert score([], [], reference=[]) == []
    assert score(PROMPTS, TEXTS, reference=REFERENCES, other=REFERENCES[::-1]) == together
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    assert score(PROMPTS, TEXTS, reference=REFERENCES, **{PROMPT_MESSAGES: chats}) == together, "it reads texts"
    others = score(["another prompt"] * len(TEXTS), TEXTS, reference=REFERENCES)
    assert (others == together) == (name != "preference")
    terms = score.terms(PROMPTS, TEXTS, reference=REFERENCES)
    assert [sum(values) for values in zip(*terms.values(), strict=True)] == together  # PPO's score, the evaluation's


@pytest.mark.parametrize(("name", "options"), PARAMETERS)
def test_what_is_no_text_is_named(name, options, folders, fake_profanity_check):
    score = load_reward(name, **located(options, folders))
    for bad, kind in ((None, "NoneType"), (3, "int"), ([{"role": "user", "content": "hi"}], "list")):
        with pytest.raises(RewardError, match=f"reward {name}, row 1: the completion is .*, a {kind}; it must be"):
            score(["", ""], ["text", bad], reference=["", ""])
        with pytest.raises(RewardError, match=f"reward {name}, row 0: the prompt is .*, a {kind}; it must be"):
            score([bad], ["text"], reference=[""])


@pytest.mark.parametrize(("name", "options"), [p for p in PARAMETERS if p.values[0] in JUDGES])
def test_judges_give_probabilities(name, options, folders, fake_profanity_check):
    scorer = Scorer(name, located(options, folders))
    judge, score = load_judge(scorer), load_scorer(scorer)
    probabilities = judge(TEXTS)
    assert len(probabilities) == len(TEXTS)
    assert all(0.0 <= probability <= 1.0 for probability in probabilities)
    assert judge([]) == []
    rewards = score([""] * len(TEXTS), TEXTS, reference=["nothing"] * len(TEXTS))
    assert np.argmax(rewards) in np.flatnonzero(np.isclose(probabilities, min(probabilities)))
    with pytest.raises(RewardError, match=f"judge {name}, row 1: the text is None"):
        judge(["text", None])


@pytest.mark.parametrize("name", sorted(CASES.keys() - set(JUDGES) - {"preference"}))
def test_others_are_not_judges(name):
    with pytest.raises(UserError, match=f"^{name} is not a judge: it has no judge\\(\\) method"):
        load_judge(Scorer(name))


def test_lexicon_counts_whole_words_in_any_case():
    reward = load_reward("lexicon", words=["idiot", "damn it"])
    completions = ["IDIOT! idiot", "idiots and nonidiot", "Damn it.", "", "fine"]
    assert reward([""] * 5, completions) == [-2.0, 0.0, -1.0, 0.0, 0.0]
    assert load_judge(Scorer("lexicon", {"words": ["idiot"]}))(completions) == [1.0, 0.0, 0.0, 0.0, 0.0]
    for options in ({}, {"words": []}):
        with pytest.raises(UserError, match=r"lexicon: words is empty; .* or use toy_lexicon for the toy data"):
            load_reward("lexicon", **options)


def test_the_toy_lexicon_is_a_lexicon_of_the_toy_datas_rude_words():
    assert len(RUDE_WORDS) == 22
    completions = [*RUDE_WORDS, "a friendly word"]
    toy, copy = load_reward("toy_lexicon"), load_reward("lexicon", words=RUDE_WORDS)
    assert toy([""] * 23, completions) == copy([""] * 23, completions) == [-1.0] * 22 + [0.0]


def test_length_is_the_distance_from_the_target():
    assert load_reward("length", target=2)([""] * 3, ["a b", "", "a b c"]) == [0.0, -2.0, -1.0]


def test_profanity_is_a_clipped_margin(fake_profanity_check):
    reward = load_reward("profanity")
    assert reward(["", ""], ["idiot", "fine"]) == pytest.approx([-13.8155, 13.8155], abs=1e-3)


def test_profanity_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(UserError, match="pip install alt-profanity-check"):
        load_reward("profanity")


def test_repetition_is_the_fraction_of_ngrams_that_came_before():
    texts = ["a b a b a b", "a b c", "a b", "", "no no no no", "A a\na"]
    # 2-grams: ab ba ab ba ab has 2 distinct of 5; "no no" 1 of 3; "A a", "a a" 2 of 2
    assert load_reward("repetition", n=2)([""] * 6, texts) == pytest.approx([-3 / 5, 0, 0, 0, -2 / 3, 0])
    # 3-grams: aba bab aba bab has 2 distinct of 4; "no no no" 1 of 2
    assert load_reward("repetition")([""] * 6, texts) == pytest.approx([-2 / 4, 0, 0, 0, -1 / 2, 0])
    for n in (0, "3"):
        with pytest.raises(UserError, match=f"options.n is {n!r}"):
            load_reward("repetition", n=n)


@pytest.mark.parametrize("type", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_the_f_measure_of_the_best_reference(type):
    completions = ["the cat sat on the mat", "the mat sat on a cat", "", "a dog"]
    references = [
        "the cat lay on the mat",
        ["a dog", "the cat sat on the mat today"],
        "something",
        ["nothing", "a dog"],
    ]
    scorer = RougeScorer([type])
    expected = [
        max(scorer.score(one, text)[type].fmeasure for one in ([several] if isinstance(several, str) else several))
        for several, text in zip(references, completions, strict=True)
    ]
    scores = load_reward("rouge", type=type, column="summary")([""] * 4, completions, summary=references)
    assert scores == pytest.approx(expected)
    assert 0 < scores[0] < 1 == scores[3]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"summary": ["x"], "label": [1]}, "it needs a column 'reference'; the data passes on summary, label"),
        ({}, "it needs a column 'reference'; the data passes on none"),
        ({"reference": [None]}, "reward rouge, row 0: reference is None; it must be a string or a list of strings"),
        ({"reference": [[]]}, r"reference is \[\]; it must be"),
        ({"reference": [["a", 3]]}, r"reference is \['a', 3\]; it must be"),
        ({"reference": []}, "it failed with ValueError: zip"),
    ],
)
def test_rouge_names_what_it_lacks(columns, message):
    with pytest.raises(RewardError, match=message) as caught:
        load_reward("rouge")([""], ["text"], **columns)
    assert "\n" not in str(caught.value)


TERMS = [{"model": "lexicon", "options": {"words": ["idiot"]}}, {"model": "length", "weight": 0.25, "name": "short"}]


def test_combine_is_the_weighted_sum_of_its_terms():
    combined = load_reward("combine", terms=TERMS)
    texts = ["You idiot, idiot!", "one two three", ""]
    assert combined.terms([""] * 3, texts) == {"lexicon": [-2.0, 0.0, 0.0], "short": [-17 / 4, -17 / 4, -20 / 4]}
    assert combined([""] * 3, texts) == [-6.25, -4.25, -5.0]
    assert load_judge(Scorer("combine", {"terms": TERMS}))(texts) == [1.0, 0.0, 0.0]
    nested = load_reward("combine", terms=[{"model": "combine", "weight": 2, "options": {"terms": TERMS}}])
    assert nested.terms([""] * 3, texts) == {"combine": [-12.5, -8.5, -10.0]}


def test_combine_judges_only_by_a_single_judge(fake_profanity_check):
    assert load_reward("combine", terms=["length"]).judge() is None
    with pytest.raises(UserError, match="combine is not a judge"):
        load_judge(Scorer("combine", {"terms": ["toy_lexicon", "profanity"]}))


def test_a_term_may_be_a_name_alone():
    texts = ["You idiot.", "one two three"]
    short, long = (load_reward("combine", terms=[term]) for term in ("length", {"model": "length"}))
    assert short.terms([""] * 2, texts) == long.terms([""] * 2, texts) == {"length": [-18.0, -17.0]}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"model": "length"}, "options.terms is {'model': 'length'}; use a list like"),
        ([], r"options.terms is \[\]; use a list"),
        ([{"model": "length"}, 3], r"options.terms\[1\]: 3 must be a name, or a mapping with model and options"),
        ([{"model": "length", "wieght": 2}], r"options.terms\[0\].wieght: unknown key; did you mean weight\?"),
        ([{"model": "length", "q": 2}], r"options.terms\[0\].q: unknown key; available: model, options, weight, name"),
        ([{"weight": 2}], r"options.terms\[0\].model: missing"),
        ([{"model": 3}], r"options.terms\[0\].model: missing"),
        ([{"model": "length", "options": [1]}], r"options.terms\[0\].options: \[1\] must be a mapping"),
        ([{"model": "length", "name": 1}], r"options.terms\[0\].name is 1; it must be a string"),
        ([{"model": "lenght"}], r"options.terms\[0\]: unknown reward 'lenght'; did you mean length"),
        ([{"model": "length", "options": {"goal": 1}}], r"options.terms\[0\]: length: no option 'goal'"),
        (
            [{"model": "length"}, {"model": "length"}],
            r"options.terms\[1\]: an earlier term .*with `name`",
        ),
        *(
            (["toy_lexicon", {"model": "length", "weight": weight}], r"options.terms\[1\].weight is .*finite")
            for weight in (0, math.nan, math.inf, "1", None, True)
        ),
    ],
)
def test_a_wrong_term_is_named_on_one_line(terms, message):
    with pytest.raises(UserError, match=message) as caught:
        load_reward("combine", terms=terms)
    assert "\n" not in str(caught.value)


def test_an_ensemble_is_the_mean_less_k_standard_deviations(fake_profanity_check):
    members, texts = ["toy_lexicon", "length", "profanity"], ["You idiot.", "fine", "", "a b c d e f"]
    scores = np.array([load_reward(member)([""] * 4, texts) for member in members])
    ensemble = load_reward("ensemble", members=members, k=0.7)
    centred = scores - scores.sum(axis=0) / 3
    deviation = np.sqrt((centred**2).sum(axis=0) / 3)
    assert ensemble([""] * 4, texts) == pytest.approx(scores.sum(axis=0) / 3 - 0.7 * deviation)
    terms = ensemble.terms([""] * 4, texts)
    assert list(terms) == ["mean", "disagreement"]
    assert terms["mean"] == pytest.approx(scores.sum(axis=0) / 3)
    assert terms["disagreement"] == pytest.approx(-0.7 * deviation)
    assert load_reward("ensemble", members=members, k=0)([""] * 4, texts) == pytest.approx(scores.mean(axis=0))


def test_an_ensemble_judges_by_the_mean_of_its_judges(fake_profanity_check):
    texts = ["idiot", "You moron.", "fine"]
    assert load_judge(Scorer("ensemble", {"members": ["toy_lexicon", "profanity"]}))(texts) == [1.0, 0.5, 0.0]
    with pytest.raises(UserError, match="ensemble is not a judge"):
        load_judge(Scorer("ensemble", {"members": ["toy_lexicon", "length"]}))


def test_each_member_of_an_ensemble_has_options_of_its_own():
    members = ["length", {"model": "length", "options": {"target": 1}}, Scorer("length", {"target": 3})]
    scores = load_reward("ensemble", members=members, k=0)(["", ""], ["one", "one two"])
    assert scores == pytest.approx([-(19 + 0 + 2) / 3, -(18 + 1 + 1) / 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": ["length"]}, r"options.members is \['length'\]; use a list of at least two rewards"),
        ({"members": "length"}, "options.members is 'length'; use a list"),
        ({"members": ["length", 3]}, r"options.members\[1\]: 3 must be a name, or a mapping with model and options"),
        ({"members": ["length", "lenght"]}, r"options.members\[1\]: unknown reward 'lenght'; did you mean length"),
        (
            {"members": ["length", {"model": "lexicon", "options": {"target": 2}}]},
            r"options.members\[1\]: lexicon: no option 'target'",
        ),
        ({"members": ["length", {"model": "length", "options": 3}]}, r"options.members\[1\].options: 3 must be"),
        ({"members": ["length", {"modle": "length"}]}, r"options.members\[1\].modle: unknown key; did you mean model"),
        ({"models": ["length", "length"]}, "ensemble: no option 'models'; .*members"),
        *(
            ({"members": ["length"] * 2, "k": k}, "options.k is .*; must be a number")
            for k in (-1, math.nan, "1", True)
        ),
    ],
)
def test_a_wrong_ensemble_is_named_on_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        load_reward("ensemble", **options)
    assert "\n" not in str(caught.value)
