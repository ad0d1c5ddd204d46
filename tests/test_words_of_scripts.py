"""Words in every script: identical texts match whatever the language, and English is counted as before."""

from __future__ import annotations

import random
import unicodedata

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU

from reward_models.length import length
from reward_models.lexicon import Lexicon
from reward_models.rouge import load
from workbench.data.words import (
    WordTokenizer,
    count_words,
    is_same_without_words,
    normalized_words,
    separate_characters,
    split_words,
)
from workbench.evaluation import metrics
from workbench.evaluation.completion_metrics import METRICS, Sampled, Scorers
from workbench.evaluation.corpus_metrics import measure_corpus
from workbench.evaluation.generation import Completion
from workbench.evaluation.metrics.text_statistics import copy_rate, distinct_n, repetition
from workbench.toy import rows

ROUGE = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
TEXTS = {
    "English": "They meet at six to see a play.",
    "German": "Über Bücher müssen wir heute reden.",
    "Russian": "Они идут сегодня в библиотеку.",
    "Hebrew": "הם הולכים היום לספרייה הגדולה.",
    "Arabic": "هُمْ ذاهبون إلى المكتبة اليوم.",
    "Hindi": "वे आज पुस्तकालय जा रहे हैं।",
    "Greek": "Πηγαίνουν σήμερα στη βιβλιοθήκη μαζί.",
    "Korean": "그들은 오늘 도서관에 함께 간다.",
    "Chinese": "两人说要去图书馆。",
    "Japanese": "二人はきょう図書館へ行く。",
    "Thai": "พวกเขาไปห้องสมุดวันนี้",
    "Khmer": "ពួកគេទៅបណ្ណាល័យ",
}
OTHERS = {
    "Russian": "Вчера была хорошая погода.",
    "Hebrew": "מזג אוויר נעים אתמול בערב.",
    "Chinese": "天气很好，下雨了吗？",
}


@pytest.mark.parametrize("language", TEXTS)
def test_identical_texts_match_in_every_language(language: str) -> None:
    text = TEXTS[language]
    assert metrics.rouge([text], [text]) == {name: [1.0] for name in ROUGE}
    assert metrics.bleu([text], [text]) == pytest.approx(100)
    assert load()(["p"], [text], reference=[text]) == [1.0]
    assert copy_rate(f"{text} {text}", text) == 1.0
    assert distinct_n([text, text], 2) == pytest.approx(0.5)
    assert repetition(" ".join([text] * 8)) > 0.5
    assert count_words(text) >= 5


@pytest.mark.parametrize("language", OTHERS)
def test_unrelated_texts_do_not_match(language: str) -> None:
    scores = metrics.rouge([OTHERS[language]], [TEXTS[language]])
    assert scores == {name: [0.0] for name in ROUGE}
    assert copy_rate(TEXTS[language], OTHERS[language]) == 0.0
    assert metrics.bleu([OTHERS[language]], [TEXTS[language]]) < 10


@pytest.mark.parametrize("text", ["😀🎉", "...", "¿?", "🎉"])
def test_a_text_without_a_word_matches_only_itself(text: str) -> None:
    other = "!" if text == "..." else "..."
    assert metrics.rouge([text, f" {text}\n", other, ""], [text] * 4) == {name: [1.0, 1.0, 0.0, 0.0] for name in ROUGE}
    assert metrics.rouge([text, ""], [["one", text], ["", ""]]) == {name: [1.0, 0.0] for name in ROUGE}
    for kind in ("rouge1", "rouge2", "rougeL"):
        assert load(kind)(["p"] * 3, [text, other, "one"], reference=[text, text, text]) == [1.0, 0.0, 0.0]
    assert load()(["p"], [text], reference=[["one", text]]) == [1.0]


def test_the_evaluation_of_chinese_completions_that_are_the_references() -> None:
    texts = ["两人说要去图书馆。", "天气很好，是吗？", "他们一起吃饭。"]
    completions = [
        Completion(text, tokens=9, truncated=False, kl=None, base_nll=None, token_log_ratios=None) for text in texts
    ]
    references = [[text] for text in texts]
    sampled = Sampled([{"prompt": "小明：我饿了。"}] * 3, references, completions, Scorers(None, {}, {}, None, 0.5))
    for name in ("ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"):
        np.testing.assert_array_equal(METRICS[name].measure(sampled), [1.0, 1.0, 1.0])
    pooled = {
        metric.name: values.mean() for metric, values in measure_corpus([[c] for c in completions], references).items()
    }
    assert pooled["BLEU"] == pytest.approx(100)
    assert pooled["distinct-2"] > 0.8


def english_texts() -> list[str]:
    """Texts of the toy data, and random ones of every printable ASCII character."""
    generator = random.Random(0)
    letters = [chr(code) for code in (*range(32, 127), 9, 10)]
    noise = ["".join(generator.choices(letters, k=60)) for _ in range(50)]
    return [row["summary"] for row in rows("summaries", "train")[:50]] + noise


def test_english_is_counted_exactly_as_before() -> None:
    texts = english_texts()
    assert all(split_words(text) == text.split() and separate_characters(text) == text for text in texts)
    for use_stemmer in (False, True):
        scorer = RougeScorer(ROUGE, use_stemmer=use_stemmer)
        tokenizer, default = WordTokenizer(use_stemmer), DefaultTokenizer(use_stemmer)
        assert all(tokenizer.tokenize(text) == default.tokenize(text) for text in texts)
        pairs = list(zip(texts[1:], texts[:-1], strict=True))
        scored = metrics.load("rouge").compute(
            predictions=texts[1:], references=texts[:-1], use_stemmer=use_stemmer, use_aggregator=False
        )
        for name in ROUGE:
            assert scored[name] == [scorer.score(target, text)[name].fmeasure for text, target in pairs]
    assert metrics.bleu(texts[1:], texts[:-1]) == BLEU().corpus_score(texts[1:], [texts[:-1]]).score


def test_bleu_of_chinese_is_that_of_sacrebleus_own_tokenizer() -> None:
    predictions, references = (
        ["两人说要去图书馆。", "他 5 点去 library 吃饭。"],
        ["两人说今天要去图书馆。", "他们 5 点去 library 一起吃饭。"],
    )
    expected = BLEU(tokenize="zh").corpus_score(predictions, [references]).score
    assert metrics.bleu(predictions, references) == pytest.approx(expected)
    assert 0 < expected < 100


def test_words_of_scripts_by_hand() -> None:
    assert normalized_words("Café, naïve – Straße №5") == ["café", "naïve", "straße", "5"]
    assert normalized_words("cafe\u0301") == normalized_words("café")  # however the accent is encoded
    assert normalized_words("हिन्दी में") == ["हिन्दी", "में"]  # vowel signs belong to their words
    assert normalized_words("می\u200cخواهم") == ["می\u200cخواهم"]
    assert normalized_words("去 GPT-2 图书馆。") == ["去", "gpt", "2", "图", "书", "馆"]
    assert normalized_words("ไปที่") == ["ไ", "ป", "ที่"]  # marks stay with their letter
    assert split_words("天气 good, 好。") == ["天", "气", "good,", "好", "。"]
    assert length(4)(["p"], ["去图书馆"]) == [0.0]


def test_a_listed_word_is_recognized_inside_a_sentence_without_spaces() -> None:
    lexicon = Lexicon(["傻瓜", "idiot", "дурак"])
    assert lexicon([""] * 5, ["你是傻瓜吗", "idiots", "an idiot", "Дурак!", "дураки"]) == [-1.0, 0.0, -1.0, -1.0, 0.0]


@pytest.mark.parametrize("text", ["Tiếng Việt đẹp", "Мой чай", "한국어 문장입니다", "がぎ時", "café là"])
def test_a_text_is_itself_however_its_marks_are_written(text: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert split_words(composed) == split_words(decomposed)
    assert metrics.bleu([decomposed], [composed]) == metrics.bleu([composed], [composed])
    assert copy_rate(composed, decomposed) == 1
    assert distinct_n([composed, decomposed], 1) == distinct_n([composed, composed], 1)
    assert repetition(f"{composed} {decomposed}") == repetition(f"{composed} {composed}")
    word = composed.split()[0]
    for listed in (word, unicodedata.normalize("NFD", word)):
        assert Lexicon([listed])(["", ""], [composed, decomposed]) == [-1.0, -1.0]


@pytest.mark.parametrize(
    ("word", "text", "count"),
    [
        ("कम", "कम है, कम", 2),
        ("कम", "कमी", 0),  # ends in a vowel sign, which is no letter
        ("म", "कीम", 0),
        ("कमी", "कमी है", 1),
        ("ن", "نَ", 0),
        ("ก", "กิ", 0),  # one character of a script without spaces
        ("กา", "การ", 1),
        ("か", "がか", 1),
        ("naïve", "nai\u0308ve, NAÏVE", 2),
        ("=", "=\u0338", 0),
        ("☠", "☠\ufe0f", 1),  # a variant of the same
        ("idiot", "idiot! idiots", 1),
        ("idiot", "两idiot", 0),
    ],
)
def test_a_listed_word_is_no_part_of_another_in_any_script(word: str, text: str, count: int) -> None:
    assert Lexicon([word])(["p"], [text]) == [-float(count)]
    assert Lexicon(["other", word, "別"])(["p"], [text]) == [-float(count)]


@pytest.mark.parametrize(
    ("first", "second", "same"), [("≠", "=\u0338", True), ("≠ ☠", "☠ ≠", False), ("≠", "=", False)]
)
def test_texts_without_words_are_compared_by_what_they_mean(first: str, second: str, same: bool) -> None:
    assert is_same_without_words(first, second) is same
    assert is_same_without_words(second, first) is same
