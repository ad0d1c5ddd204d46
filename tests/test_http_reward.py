"""The HTTP reward and its server agree with the local reward, and its options mean what they say."""

from __future__ import annotations

import json
import pickle
import random
import threading
import time
from typing import Any

import pytest
from http_servers import PROMPTS, SECRET, TEXTS, Reply, always, ask, isolated, mistake, scripted, serving

import reward_models.http as client
from reward_models import toy_lexicon
from reward_models.lexicon import Lexicon
from reward_models.serve import Service, make_service
from workbench.config.sources import Scorer
from workbench.errors import UserError
from workbench.rewards.contract import CheckedReward
from workbench.rewards.registry import load_judge, load_reward


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have slept; it does not."""
    return isolated(monkeypatch)


def weighted(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
    """Depends on prompt, completion and column, with digits that no rounding survives."""
    weights = columns.get("weight", [1.0] * len(prompts))
    rows = zip(prompts, completions, weights, strict=True)
    return [(len(prompt) + len(text) / 3) * weight for prompt, text, weight in rows]


@pytest.mark.parametrize("batch_size", [1, 4, len(TEXTS), 100])
@pytest.mark.parametrize("concurrency", [1, 5])
def test_served_scores_are_the_local_ones_in_any_batch_and_order(batch_size: int, concurrency: int) -> None:
    weights = [0.1 * row for row in range(len(TEXTS))]
    order = random.Random(0).sample(range(len(TEXTS)), len(TEXTS))
    with serving(Service("weighted", CheckedReward(weighted, "weighted"), None, None)) as url:
        reward = load_reward("http", url=url, batch_size=batch_size, concurrency=concurrency)
        expected = weighted(PROMPTS, TEXTS, weight=weights)
        assert len(set(expected)) == len(expected)
        assert reward(PROMPTS, TEXTS, weight=weights) == expected
        shuffled = [[values[row] for row in order] for values in (PROMPTS, TEXTS, weights)]
        assert reward(shuffled[0], shuffled[1], weight=shuffled[2]) == [expected[row] for row in order]
        assert reward(PROMPTS, TEXTS) == weighted(PROMPTS, TEXTS)


def test_a_served_judge_judges_and_a_served_reward_without_one_does_not() -> None:
    with serving(make_service("lexicon", {"words": ["idiot"]}, None)) as url:
        judge = load_judge(Scorer("http", {"url": f"{url}/", "batch_size": 2}))
        assert judge(TEXTS) == Lexicon(["idiot"]).toxicity(TEXTS)
        assert load_reward("http", url=url)(PROMPTS, TEXTS) == Lexicon(["idiot"])(PROMPTS, TEXTS)
        assert ask(url, "GET", "/health") == (200, {"model": "lexicon", "judges": True})
    with serving(make_service("length", {"target": 3}, None)) as url:
        assert client.load(url).judge() is None
        assert "http is not a judge" in mistake(lambda: load_judge(Scorer("http", {"url": url})), UserError)
        assert ask(url, "GET", "/health") == (200, {"model": "length", "judges": False})
        status, reply = ask(url, "POST", "/toxicity", b'{"texts": []}')
        assert status == 404
        assert reply["error"].startswith("length is not a judge")
    with scripted(always('{"scores": [1.5]}'), health=(404, {}, b"nothing here")) as url:
        assert client.load(url).judge() is None
        assert client.load(url)(["p"], ["c"]) == [1.5]


def test_no_texts_need_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(make_service("toy_lexicon", {}, None)) as url:
        reward = client.load(url)
    assert reward.judge() is not None
    judge = reward.judge()
    monkeypatch.setattr(client.httpx2, "Client", None)
    assert reward([], []) == []
    assert judge([]) == []


def test_only_lists_are_columns_and_they_must_be_json() -> None:
    seen = []

    def respond(path: str, request: Any) -> Reply:
        assert path == "/base/score"
        seen.append(request)
        return 200, {}, json.dumps({"scores": [0] * len(request["completions"])}).encode()

    with scripted(respond) as url:
        reward = client.load(f"{url}/base/", batch_size=2, concurrency=1)
        reward(["a", "b", "c"], ["d", "e", "f"], reference=["x", None, ["z"]], trainer_state=object())
        assert seen == [
            {"prompts": ["a", "b"], "completions": ["d", "e"], "columns": {"reference": ["x", None]}},
            {"prompts": ["c"], "completions": ["f"], "columns": {"reference": [["z"]]}},
        ]
        for value in (object(), float("nan")):
            message = mistake(lambda value=value: reward(["a"], ["b"], picture=[value]), UserError)
            assert "JSON" in message
            assert "columns: picture" in message
        assert len(seen) == 2


def test_the_reward_survives_pickling_and_does_not_hold_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", SECRET)
    with serving(make_service("toy_lexicon", {}, SECRET)) as url:
        reward = client.load(url, token_env="REWARD_TOKEN")
        stored = pickle.dumps(reward)
        assert SECRET.encode() not in stored
        assert SECRET not in repr(reward)
        assert pickle.loads(stored)(PROMPTS, TEXTS) == reward(PROMPTS, TEXTS) == toy_lexicon.load()(PROMPTS, TEXTS)


def test_requests_in_flight_are_bounded_and_scores_keep_the_order() -> None:
    counting, flying, most = threading.Lock(), 0, 0
    meeting = threading.Barrier(3)

    def respond(path: str, request: Any) -> Reply:
        nonlocal flying, most
        with counting:
            flying += 1
            most = max(most, flying)
        meeting.wait(10)  # breaks unless three are in flight at a time
        number = int(request["completions"][0])
        time.sleep(0.02 * (3 - number % 3))  # the first of three is the last to respond
        with counting:
            flying -= 1
        return 200, {}, json.dumps({"scores": [number]}).encode()

    with scripted(respond) as url:
        reward = client.load(url, batch_size=1, concurrency=3)
        assert reward(["p"] * 12, [str(row) for row in range(12)]) == [float(row) for row in range(12)]
    assert most == 3


def test_the_token_is_needed_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(make_service("toy_lexicon", {}, SECRET)) as url:
        body = b'{"prompts": ["p"], "completions": ["idiot"]}'
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": SECRET},
            {"Authorization": "B\xe9arer"},
        ):
            assert ask(url, "POST", "/score", body, **headers)[0] == 401
            assert ask(url, "GET", "/health", **headers)[0] == 401
        assert ask(url, "POST", "/score", body, Authorization=f"Bearer {SECRET}") == (200, {"scores": [-1.0]})
        message = mistake(lambda: client.load(url))
        assert f"{url}/health refused the request (401)" in message
        assert "token_env" in message
        monkeypatch.setenv("REWARD_TOKEN", "wrong")
        assert "set the environment variable REWARD_TOKEN" in mistake(
            lambda: client.load(url, token_env="REWARD_TOKEN")
        )
        monkeypatch.setenv("REWARD_TOKEN", SECRET)
        reward = client.load(url, token_env="REWARD_TOKEN")
        assert reward(["p"], ["idiot"]) == [-1.0]
        monkeypatch.delenv("REWARD_TOKEN")
        assert "REWARD_TOKEN is not set" in mistake(lambda: reward(["p"], ["idiot"]), UserError)
    monkeypatch.setenv("REWARD_TOKEN", SECRET)
    with scripted(always(f"Authorization: Bearer {SECRET}", 400)) as url:
        assert "Bearer ***" in mistake(lambda: client.load(url, token_env="REWARD_TOKEN")(["p"], ["c"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://127.0.0.1:1"}, "'ftp://127.0.0.1:1'"),
        ({"url": "127.0.0.1:1"}, "use one like http://127.0.0.1:8765"),
        ({"url": "http://"}, "'http://'"),
        ({"url": "http://127.0.0.1:99999"}, "99999"),
        ({"url": "http://127.0.0.1:port"}, "'port'"),
        ({"url": "http://127.0.0.1:1/?a=b"}, "a=b"),
        ({"url": f"http://user:{SECRET}@127.0.0.1:1"}, "url contains a user name or password"),
        ({"url": 8765}, "url cannot be read"),
        ({"retries": -1}, "retries is -1, but it must be an integer of at least 0"),
        ({"retries": 1.5}, "retries is 1.5"),
        ({"concurrency": 0}, "concurrency is 0, but it must be an integer of at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "8"}, "batch_size is '8'"),
        ({"timeout": 0}, "timeout is 0, but it must be a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": "30"}, "timeout is '30'"),
        ({"token_env": "UNSET_REWARD_TOKEN"}, "UNSET_REWARD_TOKEN is not set; export UNSET_REWARD_TOKEN=TOKEN"),
        ({"token_env": SECRET}, "not the name of an environment variable"),
        ({"token_env": "BAD_REWARD_TOKEN"}, "BAD_REWARD_TOKEN must contain only ASCII"),
        ({"token": SECRET}, "http: no option 'token'; did you mean token_env?"),
    ],
)
def test_bad_options_are_refused_before_any_request(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setenv("BAD_REWARD_TOKEN", f"{SECRET}\n")
    assert message in mistake(lambda: load_reward("http", **{"url": "http://127.0.0.1:1", **options}), UserError)
    assert pauses == []
