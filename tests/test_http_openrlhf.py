"""The HTTP reward talks to OpenRLHF's servers, as its own client does.

The server is written after openrlhf/cli/serve_rm.py#L128-L135 of OpenRLHF at commit
3c3be6234e0cb353e76bb8019947db9dfe99fca7.
"""

from __future__ import annotations

import json
import math
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from http_servers import PROMPTS, SECRET, TEXTS, Reply, always, isolated, mistake, running, scripted, serving

import reward_models.http as client
from reward_models.serve import make_service
from workbench.config.sources import Scorer
from workbench.errors import UserError
from workbench.rewards.registry import load_judge, load_reward

HANDSHAKE = {"query": ["Hello. Hi."], "prompts": ["Hello."], "labels": [""]}


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have slept; it does not."""
    return isolated(monkeypatch)


def reward_of(query: str) -> float:
    """Depends on every character of a query."""
    return sum(position * ord(letter) for position, letter in enumerate(query, 1)) / 7


@contextmanager
def openrlhf_server(seen: list[dict[str, Any]] | None = None, token: str = "") -> Iterator[str]:
    """The address of a reward model as OpenRLHF serves it, which reads `query` and nothing else."""

    class RewardServer(BaseHTTPRequestHandler):
        def send(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/get_reward":
                self.send(404, {"detail": "Not Found"})
            elif token and self.headers["Authorization"] != f"Bearer {token}":
                self.send(401, {"detail": "Unauthorized"})
            else:
                if seen is not None:
                    seen.append(data)
                rewards = [reward_of(query) for query in data["query"]]
                self.send(200, {"rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards}})

        def do_GET(self) -> None:
            is_here = self.path == "/get_reward"
            self.send(*((405, {"detail": "Method Not Allowed"}) if is_here else (404, {"detail": "Not Found"})))

        def log_message(self, *arguments: Any) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), RewardServer)) as url:
        yield f"{url}/get_reward"


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_rewards_are_those_of_openrlhfs_server_in_order(batch_size: int) -> None:
    seen: list[dict[str, Any]] = []
    with openrlhf_server(seen) as url:
        reward = load_reward("http", url=url, dialect="openrlhf", batch_size=batch_size, concurrency=3)
        assert seen == [HANDSHAKE]
        expected = [reward_of(prompt + text) for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
        assert reward(PROMPTS, TEXTS) == expected
        assert reward([], []) == []
    assert len(seen) == 1 + math.ceil(len(TEXTS) / batch_size)
    assert all(request.keys() == HANDSHAKE.keys() for request in seen)


def test_a_request_has_queries_prompts_and_labels() -> None:
    seen: list[dict[str, Any]] = []
    columns = {"label": ["4", None], "answer": [4, ["x"]]}
    with openrlhf_server(seen) as url:
        for options in ({}, {"label_column": "answer"}, {"eos_token": "</s>"}):
            client.load(url, dialect="openrlhf", **options)(["a ", "b "], ["c", "d"], **columns, state=object())
        client.load(url, dialect="openrlhf")(["a "], ["c"], answer=[4])
    prompts = ["a ", "b "]
    assert [request for request in seen if request["prompts"] != HANDSHAKE["prompts"]] == [
        {"query": ["a c", "b d"], "prompts": prompts, "labels": ["4", None]},
        {"query": ["a c", "b d"], "prompts": prompts, "labels": [4, ["x"]]},
        {"query": ["a c</s>", "b d</s>"], "prompts": prompts, "labels": ["4", None]},
        {"query": ["a c"], "prompts": ["a "], "labels": [""]},
    ]


def test_a_label_column_that_the_data_lack_is_found_before_the_first_call() -> None:
    message = "needs a column 'answer'; the data passes on label; map one with columns: {answer: ...}"
    with openrlhf_server() as url:
        reward = load_reward("http", url=url, dialect="openrlhf", label_column="answer")
        assert message in mistake(lambda: reward.check_columns({"label": ["x"]}), UserError)
        assert message in mistake(lambda: reward(["p"], ["c"], label=["x"]), UserError)
        reward.check_columns({"answer": ["x"]})
        load_reward("http", url=url, dialect="openrlhf").check_columns({})
        answers = {"answer": [object()], "other": [object()]}
        assert "(columns: answer)" in mistake(lambda: reward(["p"], ["c"], **answers), UserError)


def test_there_is_no_judge_and_the_token_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", SECRET)
    with openrlhf_server(token=SECRET) as url:
        assert f"{url} refused the request (401); set token_env" in mistake(
            lambda: client.load(url, dialect="openrlhf")
        )
        reward = client.load(url, dialect="openrlhf", token_env="REWARD_TOKEN")
        assert reward.judge() is None
        options = {"url": url, "dialect": "openrlhf", "token_env": "REWARD_TOKEN"}
        assert "http is not a judge" in mistake(lambda: load_judge(Scorer("http", options)), UserError)
        stored = pickle.dumps(reward)
        assert SECRET.encode() not in stored
        assert pickle.loads(stored)(["a"], ["b"]) == [reward_of("ab")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dialect": "openrhlf"}, "http: dialect is 'openrhlf'; did you mean openrlhf?"),
        ({"dialect": None}, "http: dialect is None; available: workbench, openrlhf"),
        ({"label_column": "answer"}, "label_column is 'answer', which only dialect: openrlhf reads"),
        ({"eos_token": "</s>"}, "eos_token is '</s>', which only dialect: openrlhf reads"),
        ({"dialect": "openrlhf", "label_column": 3}, "label_column is 3, but it must be the name of a column"),
        ({"dialect": "openrlhf", "label_column": ""}, "label_column is '', but it must be the name of a column"),
        ({"dialect": "openrlhf", "eos_token": None}, "eos_token is None, but it must be a text"),
        ({"dialect": "openrlhf", "batch_size": 0}, "batch_size is 0"),
        ({"dialect": "openrlhf", "url": "ftp://127.0.0.1"}, "'ftp://127.0.0.1'"),
        ({"dialect": "openrlhf", "lable_column": "x"}, "no option 'lable_column'; did you mean label_column?"),
    ],
)
def test_wrong_options_are_refused_before_any_request(
    options: dict[str, Any], message: str, pauses: list[float]
) -> None:
    assert message in mistake(lambda: load_reward("http", **{"url": "http://127.0.0.1:1", **options}), UserError)
    assert pauses == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"scores": [1.0, 2.0]}', '{"scores": [1.0, 2.0]}; it must return {"rewards": [one number per text]}'),
        ('{"rewards": 1.0}', 'it must return {"rewards": '),
        ("[1.0, 2.0]", 'it must return {"rewards": '),
        ("<html>", "returned <html> instead of JSON"),
        ('{"rewards": [1.0]}', "returned 1 rewards for 2 texts; it must return one per text"),
        ('{"rewards": [1.0, NaN]}', "row 1, text 'two': it returned nan; it must be finite"),
        ('{"rewards": [[1.0], 2.0]}', "row 0, text 'one': it returned [1.0], a list, not a number"),
    ],
)
def test_a_lying_server_is_named(body: str, message: str, pauses: list[float]) -> None:
    good = always('{"rewards": [1.0]}')
    with scripted(lambda path, request: (good if request == HANDSHAKE else always(body))(path, request)) as url:
        reward = client.load(url, dialect="openrlhf")
        error = mistake(lambda: reward(["p", "p"], ["one", "two"]))
    assert url in error
    assert message in error
    assert pauses == []


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{}", 200, 'returned {}; it must return {"rewards": [one number per text]}'),
        ('{"rewards": []}', 200, "returned 0 rewards for 1 texts"),
        ('{"rewards": [null]}', 200, "row 0, text ' Hi.': it returned None"),
        ("not here", 404, "returned 404: not here; correct the url: it is the whole address"),
        ("no", 405, "returned 405: no; correct the url"),
        ("no", 403, "refused the request (403)"),
    ],
)
def test_a_server_of_another_kind_is_found_when_the_reward_is_loaded(body: str, status: int, message: str) -> None:
    with scripted(always(body, status)) as url:
        assert message in mistake(lambda: client.load(url, dialect="openrlhf"))


@pytest.mark.parametrize("path", ["", "/rm", "/rm/"])
def test_requests_go_to_the_url_as_it_is(path: str) -> None:
    paths = []

    def respond(at: str, request: Any) -> Reply:
        paths.append(at)
        return 200, {}, b'{"rewards": [1]}'

    with scripted(respond) as url:
        assert client.load(f"{url}{path}", dialect="openrlhf")(["p"], ["c"]) == [1.0]
    assert paths == [path or "/"] * 2


def test_each_dialect_names_the_other() -> None:
    with openrlhf_server() as url:
        assert "dialect: openrlhf" in mistake(lambda: client.load(url)(["p"], ["c"]))
    with serving(make_service("toy_lexicon", {}, None)) as url:
        message = mistake(lambda: client.load(url, dialect="openrlhf"))
        assert "returned 404" in message
        assert "/get_reward" in message


def test_failures_are_retried_and_a_server_may_fail_at_the_row_of_the_handshake(pauses: list[float]) -> None:
    requests = 0

    def respond(path: str, request: Any) -> Reply:
        nonlocal requests
        requests += 1
        return (200, {}, b'{"rewards": [7]}') if request["labels"] == ["x"] and requests > 4 else (503, {}, b"busy")

    with scripted(respond) as url:
        reward = client.load(f"{url}/rm", dialect="openrlhf", retries=1)
        assert (requests, len(pauses)) == (2, 1)
        message = mistake(lambda: reward(["p"], ["c"], label=["x"]))
        assert f"{url}/rm returned 503 to the last of 2 requests: busy; see the server's log" in message
        assert reward(["p"], ["c"], label=["x"]) == [7.0]


def test_nobody_listens_or_responds_in_time() -> None:
    done = threading.Event()

    def respond(path: str, request: Any) -> Reply:
        done.wait(10)
        return 200, {}, b'{"rewards": [1]}'

    start = time.monotonic()
    with scripted(respond) as url:
        message = mistake(lambda: client.load(url, dialect="openrlhf", timeout=0.1, retries=1))
        done.set()
    assert f"{url} is too slow: no complete response within 0.1 s to any of 2 requests" in message
    assert "no response (retries is 0)" in mistake(lambda: client.load(url, dialect="openrlhf", retries=0))
    assert time.monotonic() - start < 5


def test_a_response_that_is_too_large_is_not_read() -> None:
    with scripted(always(b'{"rewards": [1], "more": "' + b"x" * 2**21 + b'"}')) as url:
        message = mistake(lambda: client.load(url, dialect="openrlhf"))
    assert f"{url} returned more than {2**20} bytes (200)" in message
