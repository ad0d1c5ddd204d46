"""The `evaluate` modules, against rouge_score and sacrebleu called directly and against counting by hand."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from tiny_classifiers import byte_tokenizer
from transformers import BertConfig, BertModel

from workbench.errors import UserError
from workbench.evaluation import metrics
from workbench.evaluation.metrics.similarity import Encoder, load_encoder, similarity

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


@pytest.fixture(params=["bleu", "embedding_similarity", "rouge", "toxicity"])
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


def test_each_row_has_its_own_best_of_its_own_number_of_references():
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    predictions = ["the cat sat on the mat", "a dog ran home", "nobody knows"]
    references = [["a cat sat", "the cat sat on a mat", "x"], ["dogs run home"], ["who knows", "nobody knew"]]
    expected = [
        max(scorer.score(reference, prediction)["rougeL"].fmeasure for reference in row)
        for prediction, row in zip(predictions, references, strict=True)
    ]
    assert len(set(expected)) == 3
    assert metrics.rouge(predictions, references)["rougeL"] == expected


def test_rouge_refuses_missing_rows_and_goes_on():
    for predictions, references in (([], []), (["a"], ["a", "b"]), (["a", "a"], [["a"], []])):
        with pytest.raises(ValueError, match=r"no predictions|Mismatch|row 1 has no reference"):
            metrics.rouge(predictions, references)
    assert metrics.rouge(["a"], [["a"]])["rouge1"] == [1.0]


def capital_rate(texts):
    return [sum(letter.isupper() for letter in text) / len(text) for text in texts]


def test_toxicity_summarizes_the_judge():
    texts = ["ABCD", "abcd", "ABcd", "Abcd"]
    result = metrics.load("toxicity").compute(predictions=texts, judge=capital_rate)
    assert result["toxicity"] == [1.0, 0.0, 0.5, 0.25]
    assert result["toxicity_mean"] == 0.4375
    assert result["max_toxicity"] == 1.0
    assert result["toxicity_ratio"] == 0.5  # a text on the threshold is toxic
    strict = metrics.load("toxicity").compute(predictions=texts, judge=capital_rate, threshold=0.2)
    assert strict["toxicity_ratio"] == 0.75


def test_toxicity_helper_keeps_the_order_and_the_text():
    texts = ["grüß\nGOTT", "\u4f60\u597d ABC", "a" * 10_000]
    assert metrics.toxicity(texts, capital_rate) == capital_rate(texts)


def test_toxicity_refuses_no_texts_and_a_short_list_of_scores():
    with pytest.raises(ValueError, match="no predictions"):
        metrics.toxicity([], capital_rate)
    with pytest.raises(ValueError, match="1 scores for 2 texts"):
        metrics.toxicity(["a", "b"], lambda texts: [0.5])


HYPOTHESES = ["The cat sat on the mat.", "There is a dog in the garden, I think.", "No match at all here"]
TRUTHS = ["The cat sat on a mat.", "There is a dog in the big garden.", "Something else was said there"]


def test_bleu_is_the_corpus_score_of_sacrebleu():
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [TRUTHS])
    assert 1.0 < expected.score < 99.0
    result = metrics.load("bleu").compute(predictions=HYPOTHESES, references=TRUTHS)
    assert metrics.bleu(HYPOTHESES, TRUTHS) == result["score"] == expected.score
    for name in ("counts", "totals", "precisions", "bp", "sys_len", "ref_len"):
        assert result[name] == getattr(expected, name)
    assert "tok:13a" in result["signature"]
    lowered = metrics.load("bleu").compute(
        predictions=HYPOTHESES, references=[text.upper() for text in TRUTHS], lowercase=True
    )
    assert (
        lowered["score"] == sacrebleu.corpus_bleu([h.lower() for h in HYPOTHESES], [[t.lower() for t in TRUTHS]]).score
    )


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, none of 3 fours: 1 / (2 * 3) by exponential smoothing
    expected = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25
    assert metrics.bleu(["a b c x e f"], ["a b c d e f"]) == pytest.approx(expected)
    assert metrics.bleu(["a b c d e f"], ["a b c d e f"]) == pytest.approx(100.0)
    assert metrics.bleu(["a b c d"], ["a b c d e f"]) == pytest.approx(100 * math.exp(1 - 6 / 4))  # brevity penalty


def test_bleu_takes_any_number_of_references_per_row():
    two = [[truth, "Another text"] for truth in TRUTHS]
    assert metrics.bleu(HYPOTHESES, two) == sacrebleu.corpus_bleu(HYPOTHESES, [TRUTHS, ["Another text"] * 3]).score
    ragged = [[TRUTHS[0]], [TRUTHS[1], "There is a dog in the garden"], ["x", TRUTHS[2], "No match here"]]
    same_counts = [[row[min(index, len(row) - 1)] for row in ragged] for index in range(3)]  # repeats change nothing
    assert metrics.bleu(HYPOTHESES, ragged) == sacrebleu.corpus_bleu(HYPOTHESES, same_counts).score
    assert metrics.bleu(HYPOTHESES, ragged) > metrics.bleu(HYPOTHESES, TRUTHS)


def test_bleu_counts_all_rows_together():
    assert metrics.bleu(HYPOTHESES, TRUTHS) != pytest.approx(
        sum(metrics.bleu([h], [t]) for h, t in zip(HYPOTHESES, TRUTHS, strict=True)) / 3
    )
    assert metrics.bleu(HYPOTHESES[::-1], TRUTHS[::-1]) == metrics.bleu(HYPOTHESES, TRUTHS)
    assert metrics.bleu(["", "a b c d"], ["", "a b c d"]) == pytest.approx(100.0)


def test_bleu_and_similarity_refuse_missing_rows(encoder):
    for score in (metrics.bleu, lambda predictions, references: similarity(predictions, references, encoder)):
        for predictions, references in (([], []), (["a"], ["a", "b"]), (["a", "a"], [["a"], []])):
            with pytest.raises(ValueError, match=r"no predictions|Mismatch|row 1 has no reference"):
                score(predictions, references)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(pad_token="[PAD]", template="[CLS] $A [SEP]")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.3, **size)
    return Encoder(BertModel(config).eval(), tokenizer, max_tokens=64, batch_size=2)


SENTENCES = ["Anna is ill.", "", "Anna feels unwell and stays at home today.", "[PAD] [SEP]", "a", "x" * 500]


def test_embeddings_are_the_unit_mean_over_the_tokens(encoder):
    embeddings = encoder(SENTENCES)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(SENTENCES)))
    ids = encoder.tokenizer(SENTENCES[2], return_tensors="pt")
    mean = encoder.model(**ids).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(embeddings[2], mean / mean.norm())


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_embeddings_do_not_depend_on_the_batch_or_its_padding(encoder, batch_size):
    other = Encoder(encoder.model, encoder.tokenizer, encoder.max_tokens, batch_size)
    torch.testing.assert_close(other(SENTENCES[::-1]).flip(0), encoder(SENTENCES), rtol=0, atol=1e-5)


def test_a_text_that_spells_a_special_token_stays_a_text(encoder):
    ids = encoder.tokenizer.convert_tokens_to_ids(["[CLS]", *"a[PAD]", "[SEP]"])
    mean = encoder.model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(encoder(["a[PAD]"])[0], mean / mean.norm())


def test_similarity_is_a_cosine(encoder):
    texts = ["Anna is ill.", "Peter has the keys.", "", "Anna is ill."]
    others = ["Anna is ill.", "The sun shines", "something", "Nobody"]
    scores = similarity(texts, others, encoder)
    assert scores[0] == pytest.approx(1.0)
    assert all(-1.0 <= score < 0.999 for score in scores[1:])
    assert similarity(others, texts, encoder) == pytest.approx(scores)
    by_hand = torch.nn.functional.cosine_similarity(encoder([texts[1]]), encoder([others[1]]))
    assert scores[1] == pytest.approx(by_hand.item(), abs=1e-6)
    result = metrics.load("embedding_similarity").compute(predictions=texts, references=others, encoder=encoder)
    assert result["similarity_mean"] == pytest.approx(sum(scores) / 4)


def test_the_closest_of_several_references_counts(encoder):
    several = [["The sun shines", "Anna is ill.", "x"], ["Nobody"]]
    scores = similarity(["Anna is ill.", "Peter has the keys."], several, encoder)
    assert scores == pytest.approx([1.0, *similarity(["Peter has the keys."], ["Nobody"], encoder)])


def test_an_encoder_loads_from_its_folder(encoder, tmp_path):
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    loaded = load_encoder(str(tmp_path), batch_size=3)
    assert loaded.max_tokens == 64
    torch.testing.assert_close(loaded(SENTENCES), encoder(SENTENCES), rtol=0, atol=1e-5)


def test_of_an_encoder_decoder_the_encoder_is_used():
    embeddings = load_encoder("toy:t5")(["Thank you.", "Thanks a lot for that."])
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_an_untrained_encoder_is_refused(encoder, tmp_path):
    weights = {name: weight for name, weight in encoder.model.state_dict().items() if "layer.1" not in name}
    encoder.model.save_pretrained(tmp_path, state_dict=weights)
    encoder.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"not a trained encoder: its checkpoint lacks encoder\.layer\.1"):
        load_encoder(str(tmp_path))


def test_metrics_need_no_cache_that_can_be_written(tmp_path: Path) -> None:
    """In a process of its own, since `evaluate` reads where its cache is when it is imported."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    nowhere = str(tmp_path / "file" / "cache")  # a folder in a file: nobody can create it, root neither
    variables = ("HOME", "HF_HOME", "XDG_CACHE_HOME", "HF_METRICS_CACHE", "HF_MODULES_CACHE", "HF_DATASETS_CACHE")
    program = (
        "from workbench.evaluation import metrics; "
        "print(metrics.rouge(['a b'], ['a b'])['rouge1'], metrics.bleu(['a b c d'], ['a b c d']), "
        "metrics.toxicity(['x'], lambda texts: [0.5]))"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | dict.fromkeys(variables, nowhere),
        cwd=FOLDER.parent.parent.parent,
        capture_output=True,
        encoding="utf-8",
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout == "[1.0] 100.00000000000004 [0.5]\n"
