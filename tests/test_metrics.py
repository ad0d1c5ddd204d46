"""The `evaluate` modules, against rouge_score called directly and against counting by hand."""

import socket
from pathlib import Path

import evaluate
import pytest
from rouge_score.rouge_scorer import RougeScorer

from workbench import metrics

FOLDER = Path(metrics.__file__).parent
NAMES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
PREDICTIONS = ["The quick brown foxes jumped.\nThey were running.", "nothing in common", "", "to be or not to be"]
REFERENCES = ["A quick brown fox jumps.\nIt runs fast.", "entirely different words", "a reference", "to be"]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(params=["rouge", "toxicity"])
def spaced_copy(request, tmp_path):
    """A metric's file in a folder whose path has spaces."""
    source = FOLDER / request.param / f"{request.param}.py"
    copy = tmp_path / "with some spaces" / request.param / source.name
    copy.parent.mkdir(parents=True)
    copy.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return copy


def test_modules_load_from_any_path_without_network(spaced_copy, no_network):
    for path in (spaced_copy, spaced_copy.parent):
        module = evaluate.load(str(path), keep_in_memory=True)
        assert module.name == spaced_copy.stem


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_rouge_is_that_of_rouge_score(use_stemmer, tmp_path):
    scorer = RougeScorer(NAMES, use_stemmer=use_stemmer)
    rows = [scorer.score(reference, prediction) for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)]
    module = evaluate.load(str(FOLDER / "rouge"), cache_dir=str(tmp_path))
    inputs = {"predictions": PREDICTIONS, "references": REFERENCES, "use_stemmer": use_stemmer}
    per_row = module.compute(**inputs, use_aggregator=False)
    means = module.compute(**inputs)
    for name in NAMES:
        expected = [row[name].fmeasure for row in rows]
        assert per_row[name] == expected
        assert means[name] == pytest.approx(sum(expected) / len(expected))


def test_rouge_helper_stems_and_scores_each_row():
    scores = metrics.rouge(PREDICTIONS, REFERENCES)
    assert list(scores) == NAMES
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    assert scores["rougeL"][0] == scorer.score(REFERENCES[0], PREDICTIONS[0])["rougeL"].fmeasure
    assert scores["rouge1"][1:3] == [0.0, 0.0]


def test_rouge_by_hand():
    # precision 2/3, recall 1 for single words; one of two bigrams, recall 1
    scores = metrics.rouge(["hello there general"], ["hello there"])
    assert scores["rouge1"] == [pytest.approx(0.8)]
    assert scores["rouge2"] == [pytest.approx(2 / 3)]


def test_the_best_of_several_references_counts():
    references = [["something else", "to be or not to be"], ["nothing in common", "x"]]
    assert metrics.rouge(["to be or not to be", "nothing in common"], references)["rougeL"] == [1.0, 1.0]
    assert metrics.rouge(["a b"], [["c d"]])["rougeL"] == [0.0]


def test_rouge_refuses_missing_rows_and_goes_on():
    for predictions, references in (([], []), (["a"], ["a", "b"]), (["a", "a"], [["a"], []])):
        with pytest.raises(ValueError, match=r"no predictions|Mismatch|row 1 has no reference"):
            metrics.rouge(predictions, references)
    assert metrics.rouge(["a"], [["a"]])["rouge1"] == [1.0]


def share_of_capitals(texts):
    return [sum(letter.isupper() for letter in text) / len(text) for text in texts]


def test_toxicity_summarises_what_the_judge_says():
    texts = ["ABCD", "abcd", "ABcd", "Abcd"]
    result = metrics.load("toxicity").compute(predictions=texts, judge=share_of_capitals)
    assert result["toxicity"] == [1.0, 0.0, 0.5, 0.25]
    assert result["toxicity_mean"] == 0.4375
    assert result["max_toxicity"] == 1.0
    assert result["toxicity_ratio"] == 0.5  # a text on the threshold is toxic
    strict = metrics.load("toxicity").compute(predictions=texts, judge=share_of_capitals, threshold=0.2)
    assert strict["toxicity_ratio"] == 0.75


def test_toxicity_helper_keeps_the_order_and_the_text():
    texts = ["grüß\nGOTT", "\u4f60\u597d ABC", "a" * 10_000]
    assert metrics.toxicity(texts, share_of_capitals) == share_of_capitals(texts)


def test_toxicity_refuses_no_texts_and_a_short_answer():
    with pytest.raises(ValueError, match="no predictions"):
        metrics.toxicity([], share_of_capitals)
    with pytest.raises(ValueError, match="1 scores for 2 texts"):
        metrics.toxicity(["a", "b"], lambda texts: [0.5])
