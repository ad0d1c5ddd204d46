"""Texts or messages: a reward reads what its annotation says, else what TRL would pass for the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, List  # noqa: UP035 - what a user may write

import pytest
from http_servers import isolated, serving
from tiny_data import byte_tokenizer

from reward_models.combine import Combination, Term
from reward_models.http import load as load_http
from reward_models.serve import Service
from workbench.config.sources import DataSource
from workbench.data.context import Context
from workbench.data.prompts import load_prompts
from workbench.data.templates import PROMPT_MESSAGES
from workbench.errors import RewardError
from workbench.ppo.scoring import reward_columns
from workbench.rewards.contract import CheckedReward

TEXTS = ["one", "second"]
CHATS = [[{"role": "system", "content": "Be short."}, {"role": "user", "content": text}] for text in TEXTS]
CHAT = {PROMPT_MESSAGES: CHATS}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def unannotated(prompts, completions, **columns):
    """Score 1 for messages."""
    return [float(isinstance(completion, list) and isinstance(prompts[0], list)) for completion in completions]


def in_quotes(completions: "list[list[dict[str, str]]]", **columns: Any) -> list[float]:  # noqa: UP037
    """Score the messages' length."""
    return [float(len(completion[0]["content"])) for completion in completions]


def of_texts(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Score the texts' length."""
    return [float(len(completion)) for completion in completions]


def by_prompts(prompts: Sequence[List[dict]], completions: Any) -> list[float]:  # noqa: UP006
    """Score the number of turns."""
    return [float(len(prompt)) for prompt in prompts]


def score(reward: Callable[..., Any], columns: dict[str, Any]) -> list[float]:
    """Score the texts."""
    return CheckedReward(reward, "test")(["p"] * 2, TEXTS, **columns)


@pytest.mark.parametrize(
    ("reward", "without_chat", "with_chat"),
    [
        (unannotated, [0.0, 0.0], [1.0, 1.0]),
        (in_quotes, [3.0, 6.0], [3.0, 6.0]),
        (of_texts, [3.0, 6.0], [3.0, 6.0]),
        (by_prompts, [1.0, 1.0], [2.0, 2.0]),
    ],
)
def test_the_annotation_decides_else_the_data(
    reward: Callable[..., Any], without_chat: list[float], with_chat: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (score(reward, {}), score(reward, CHAT)) == (without_chat, with_chat)
    sums = {"texts": Term(CheckedReward(of_texts, "t"), 0.5), "other": Term(CheckedReward(reward, "other"), 2.0)}
    expected = [0.5 * len(text) + 2.0 * value for text, value in zip(TEXTS, with_chat, strict=True)]
    assert score(Combination(sums), CHAT) == expected, "each term reads what it can"
    isolated(monkeypatch)
    with serving(Service("test", CheckedReward(reward, "test"), None, None)) as url:
        assert score(load_http(url=url, batch_size=1), CHAT) == with_chat


def test_a_reward_cannot_change_the_messages_of_the_run() -> None:
    def editing(prompts, completions, **columns):  # type: ignore[no-untyped-def]
        prompts[0][0]["content"] = "changed"
        completions[0][0]["content"] = "changed"
        return [1.0] * 2

    assert score(editing, CHAT) == [1.0, 1.0]
    assert CHATS[0][0]["content"] == "Be short."

    def reordering(prompts, completions, **columns):  # type: ignore[no-untyped-def]
        completions.reverse()
        return [1.0] * 2

    with pytest.raises(RewardError, match="reward test: it reordered its completions"):
        score(reordering, CHAT)


@pytest.mark.parametrize(
    ("reward", "columns", "message"),
    [
        (
            lambda completions, **columns: [len(c[0]["content"]) for c in completions],
            {},
            "TypeError: string indices must be integers, not 'str'; it was called with texts; for messages, as TRL",
        ),
        (
            lambda completions, **columns: [len(c.strip()) for c in completions],
            CHAT,
            "AttributeError: 'list' object has no attribute 'strip'; it was called with messages, as TRL does with",
        ),
    ],
)
def test_the_wrong_format_is_explained(reward: Callable[..., Any], columns: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=f"reward test: it failed with {message}"):
        score(reward, columns)


@pytest.mark.parametrize("kind", ["messages", "chat", "plain"])
def test_rows_carry_the_messages_that_their_prompts_were_made_from(kind: str, tmp_path: Path) -> None:
    rows = {
        "messages": '{"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Oh."}]}\n',
        "chat": '{"prompt": "Hi."}\n',
        "plain": '{"prompt": "Hi."}\n',
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(rows[kind] * 3, encoding="utf-8")
    source = DataSource(str(file), chat=kind == "chat")
    context = Context(length=None, is_decoder_only=True, vocabulary=None)
    loaded, _ = load_prompts(source, byte_tokenizer(chat_template=TEMPLATE), max_new_tokens=4, context=context)
    columns = reward_columns(loaded)
    if kind == "plain":
        assert PROMPT_MESSAGES not in columns
        return
    assert columns[PROMPT_MESSAGES] == [[{"role": "user", "content": "Hi."}]] * 3
    assert loaded[0]["prompt"] == "<user>Hi.<assistant>"
    strict = CheckedReward(by_prompts, "test")
    strict.check_columns({name: values for name, values in columns.items() if name == PROMPT_MESSAGES})
