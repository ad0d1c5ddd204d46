"""The HTTP reward and its server agree with the local reward, and each names what the other does wrong."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import conftest
import httpcore2
import pytest

import reward_models.http as client
from reward_models import load_judge, load_reward
from reward_models.lexicon import Lexicon
from reward_models.serve import MOST_BYTES, Service, bind, listen, make_service, parse, serve
from workbench.errors import RewardError, UserError
from workbench.rewards import JudgingReward, checked

WORDS = ["idiot", "", "Thank you.\n", "stupid idiot", "\U0001f642 \ud800 \u4f60", "You are a moron, an idiot!", "fine"]
TEXTS = [f"{text} {'word ' * (row % 5)}" for row, text in enumerate(WORDS * 3)]
PROMPTS = [f"prompt {row}" for row in range(len(TEXTS))]
SECRET = "s3cret-token"


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 127.0.0.1 through, and no other address."""

    def connect(self: socket.socket, address: tuple[str, int]) -> None:
        if self.family == socket.AF_INET and address[0] == "127.0.0.1":
            socket.SocketType.connect(self, address)
        else:
            conftest.refuse(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust nobody: to load the certificates for every client would take most of the time of these tests."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    monkeypatch.setattr(httpcore2, "default_ssl_context", lambda **options: context)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have slept; it does not."""
    slept: list[float] = []
    monkeypatch.setattr(client, "sleep", slept.append)
    return slept


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """The address of a server that answers in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The address of a service."""
    server = bind("127.0.0.1", 0, service.token)
    listen(server, service)
    with running(server) as url:
        yield url


Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def answering(answer: Callable[[str, Any], Answer], health: Answer | None = None) -> Iterator[str]:
    """The address of a server of our own making: `answer(path, request)` gives status, headers and body."""

    class Scripted(BaseHTTPRequestHandler):
        def reply(self, found: Answer) -> None:
            status, headers, body = found
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.reply(health or (200, {}, b'{"model": "scripted", "judges": true}'))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            # A client whose patience ended is gone; that is what some tests are about.
            try:
                self.reply(answer(self.path, request))
            except ConnectionError:
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Scripted)) as url:
        yield url


def says(body: str | bytes, status: int = 200, **headers: str) -> Callable[[str, Any], Answer]:
    """A server's answer to whatever it is asked."""
    content = body.encode() if isinstance(body, str) else body
    return lambda path, request: (status, {name.replace("_", "-"): value for name, value in headers.items()}, content)


def mistake(act: Callable[[], Any], kind: type[UserError] = RewardError) -> str:
    """The one line of the error that `act` ends with."""
    with pytest.raises(kind) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def ask(url: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of one plain request, made without the client under test."""
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rsplit(":", 1)[1]), timeout=10)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "application/json"
        return response.status, json.loads(response.read())
    finally:
        connection.close()


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
    with serving(Service("weighted", checked(weighted, "weighted"), None, None)) as url:
        reward = load_reward("http", url=url, batch_size=batch_size, concurrency=concurrency)
        expected = weighted(PROMPTS, TEXTS, weight=weights)
        assert len(set(expected)) == len(expected)
        assert reward(PROMPTS, TEXTS, weight=weights) == expected
        shuffled = [[values[row] for row in order] for values in (PROMPTS, TEXTS, weights)]
        assert reward(shuffled[0], shuffled[1], weight=shuffled[2]) == [expected[row] for row in order]
        assert reward(PROMPTS, TEXTS) == weighted(PROMPTS, TEXTS)


def test_a_served_judge_judges_and_a_served_reward_that_cannot_is_no_judge() -> None:
    with serving(make_service("lexicon", {"words": ["idiot"]}, None)) as url:
        assert load_judge("http", url=f"{url}/", batch_size=2)(TEXTS) == Lexicon(["idiot"]).toxicity(TEXTS)
        assert load_reward("http", url=url)(PROMPTS, TEXTS) == Lexicon(["idiot"])(PROMPTS, TEXTS)
        assert ask(url, "GET", "/health") == (200, {"model": "lexicon", "judges": True})
    with serving(make_service("length", {"target": 3}, None)) as url:
        assert not isinstance(client.load(url), JudgingReward)
        assert "http cannot judge" in mistake(lambda: load_judge("http", url=url), UserError)
        assert ask(url, "GET", "/health") == (200, {"model": "length", "judges": False})
        status, answer = ask(url, "POST", "/toxicity", b'{"texts": []}')
        assert status == 404
        assert answer["error"].startswith("length cannot judge")
    with answering(says('{"scores": [1.5]}'), health=(404, {}, b"nothing here")) as url:
        assert not isinstance(client.load(url), JudgingReward)
        assert client.load(url)(["p"], ["c"]) == [1.5]


def test_no_texts_need_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(make_service("lexicon", {}, None)) as url:
        reward = client.load(url)
    assert isinstance(reward, JudgingReward)
    monkeypatch.setattr(client.httpx2, "Client", None)
    assert reward([], []) == []
    assert reward.toxicity([]) == []


def test_only_lists_are_columns_and_they_must_be_json() -> None:
    seen = []

    def answer(path: str, request: Any) -> Answer:
        assert path == "/base/score"
        seen.append(request)
        return 200, {}, json.dumps({"scores": [0] * len(request["completions"])}).encode()

    with answering(answer) as url:
        reward = client.load(f"{url}/base/", batch_size=2, concurrency=1)
        reward(["a", "b", "c"], ["d", "e", "f"], reference=["x", None, ["z"]], trainer_state=object())
        assert seen == [
            {"prompts": ["a", "b"], "completions": ["d", "e"], "columns": {"reference": ["x", None]}},
            {"prompts": ["c"], "completions": ["f"], "columns": {"reference": [["z"]]}},
        ]
        for value in (object(), float("nan")):
            said = mistake(lambda value=value: reward(["a"], ["b"], picture=[value]), UserError)
            assert "JSON" in said
            assert "columns: picture" in said
        assert len(seen) == 2


def test_the_reward_survives_pickling_and_does_not_hold_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", SECRET)
    with serving(make_service("lexicon", {}, SECRET)) as url:
        reward = client.load(url, token_env="REWARD_TOKEN")
        stored = pickle.dumps(reward)
        assert SECRET.encode() not in stored
        assert SECRET not in repr(reward)
        assert pickle.loads(stored)(PROMPTS, TEXTS) == reward(PROMPTS, TEXTS) == Lexicon()(PROMPTS, TEXTS)


def test_requests_in_flight_are_bounded_and_answers_keep_the_order() -> None:
    counting, flying, most = threading.Lock(), 0, 0
    meeting = threading.Barrier(3)

    def answer(path: str, request: Any) -> Answer:
        nonlocal flying, most
        with counting:
            flying += 1
            most = max(most, flying)
        meeting.wait(10)  # breaks unless three are in flight at a time
        number = int(request["completions"][0])
        time.sleep(0.02 * (3 - number % 3))  # the first of three answers last
        with counting:
            flying -= 1
        return 200, {}, json.dumps({"scores": [number]}).encode()

    with answering(answer) as url:
        reward = client.load(url, batch_size=1, concurrency=3)
        assert reward(["p"] * 12, [str(row) for row in range(12)]) == [float(row) for row in range(12)]
    assert most == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_retried_with_growing_pauses(status: int, pauses: list[float]) -> None:
    requests = 0

    def answer(path: str, request: Any) -> Answer:
        nonlocal requests
        requests += 1
        return (status, {}, b"busy") if requests <= 4 else (200, {}, b'{"scores": [7]}')

    with answering(answer) as url:
        assert client.load(url, retries=4)(["p"], ["c"]) == [7.0]
        assert requests == 5
        for attempt, pause in enumerate(pauses):
            assert 0.5 * 0.5 * 2**attempt <= pause <= 1.5 * 0.5 * 2**attempt
        assert len(pauses) == 4
        requests = 0
        said = mistake(lambda: client.load(url, retries=3)(["p"], ["c"]))
    assert requests == 4
    assert f"{url}/score answered {status} to the last of 4 requests: busy; " in said


def test_pauses_differ_and_leave_the_seeded_generator_alone() -> None:
    random.seed(0)
    state = random.getstate()
    assert len({client._pause(3, 0.0) for _ in range(20)}) > 1
    assert random.getstate() == state
    assert client._pause(5000, 0.0) == client.LONGEST_PAUSE


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("17", 17.0, 17.0),
        ("100000", 60.0, 60.0),
        (40, 20.0, 40.0),
        (-40, 0.25, 0.75),
        ("soon", 0.25, 0.75),
        ("0", 0.25, 0.75),
    ],
)
def test_retry_after_is_honoured_within_a_bound(value: str | int, low: float, high: float, pauses: list[float]) -> None:
    # A number stands for a date so many seconds from now, made when the test runs.
    header = value if isinstance(value, str) else formatdate(time.time() + value, usegmt=True)
    with answering(says("", 503, Retry_After=header)) as url:
        mistake(lambda: client.load(url, retries=1)(["p"], ["c"]))
    (pause,) = pauses
    assert low <= pause <= high


@pytest.mark.parametrize(("status", "fix"), [(400, "correct the url"), (404, "before /score"), (413, "batch_size")])
def test_what_cannot_pass_is_asked_once(status: int, fix: str, pauses: list[float]) -> None:
    with answering(says('{"error": "no"}', status)) as url:
        said = mistake(lambda: client.load(url)(["p"], ["c"]))
    assert f"{url}/score answered {status}: " in said
    assert '{"error": "no"}' in said
    assert fix in said
    assert pauses == []


def test_redirects_are_not_followed() -> None:
    with answering(says("", 307, Location="http://127.0.0.1:1/score")) as url:
        assert "answered 307" in mistake(lambda: client.load(url)(["p"], ["c"]))


@pytest.mark.parametrize("order", [["fails", "is late"], ["is late", "fails"]])
def test_the_first_failure_ends_the_call(order: list[str]) -> None:
    asked: list[str] = []
    both = threading.Barrier(2)

    def answer(path: str, request: Any) -> Answer:
        (text,) = request["completions"]
        asked.append(text)
        both.wait(10)
        if text == "fails":
            return 500, {}, b""
        time.sleep(0.2)  # the worker whose request failed has time to ask for more
        return 200, {}, b'{"scores": [1]}'

    with answering(answer) as url:
        reward = client.load(url, batch_size=1, concurrency=2, retries=0)
        assert "answered 500" in mistake(lambda: reward(["p"] * 12, [*order, *"abcdefghij"]))
    assert sorted(asked) == ["fails", "is late"]


def test_nobody_listens(pauses: list[float]) -> None:
    with answering(says("")) as url:
        reward = client.load(url)
    said = mistake(lambda: reward(["p"], ["c"]))
    assert f"{url}/score cannot be reached: no answer in any of 4 requests (ConnectError: " in said
    assert "start the server" in said
    assert len(pauses) == 3
    assert "in one request" in mistake(lambda: client.load(url, retries=0))


def test_a_server_that_hangs_up_is_retried(pauses: list[float]) -> None:
    def answer(path: str, request: Any) -> Answer:
        raise ConnectionResetError

    with answering(answer) as url:
        assert "no answer in any of 3 requests" in mistake(lambda: client.load(url, retries=2)(["p"], ["c"]))
    assert len(pauses) == 2


def test_a_slow_server_is_named_with_the_limit(pauses: list[float]) -> None:
    done = threading.Event()

    def answer(path: str, request: Any) -> Answer:
        done.wait(10)
        return 200, {}, b'{"scores": [1]}'

    with answering(answer) as url:
        start = time.monotonic()
        said = mistake(lambda: client.load(url, timeout=0.1, retries=1)(["p"], ["c"]))
        done.set()
        assert client.load(url, timeout=5)(["p"], ["c"]) == [1.0]
    assert time.monotonic() - start < 3
    assert f"{url}/score is too slow: no answer within 0.1 s in any of 2 requests; raise timeout" in said
    assert len(pauses) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"scores": [1.0]}', "answered 1 scores for 2 texts"),
        ('{"scores": [1.0, 2.0, 3.0]}', "answered 3 scores for 2 texts"),
        ('{"scores": []}', "answered 0 scores for 2 texts"),
        ('{"scores": [1.0, NaN]}', "row 1, text 'two': it returned nan; it must be finite"),
        ('{"scores": [-Infinity, 1.0]}', "row 0, text 'one': it returned -inf; it must be finite"),
        ('{"scores": [1.0, 1e999]}', "row 1, text 'two': it returned inf; it must be finite"),
        ('{"scores": ["1.0", "2.0"]}', "row 0, text 'one': it returned '1.0', a str, not a number"),
        ('{"scores": [1.0, null]}', "row 1, text 'two': it returned None"),
        ('{"scores": [1.0, true]}', "row 1, text 'two': it returned True, a bool, not a number"),
        ('{"scores": [1.0, [2.0]]}', "row 1, text 'two': it returned [2.0], a list, not a number"),
        ("<!doctype html>\n<html><title>Welcome</title>", "no JSON but <!doctype html> <html><title>Welcome"),
        ("<" * 500, f"no JSON but {'<' * 200}...; "),
        ("", "answered no JSON but nothing"),
        (b"\xff\xfe\xfa", "answered no JSON but"),
        ("no\x1b[2J\r\nscreen", "answered no JSON but no [2J screen;"),
        ("[" * 100_000, "answered no JSON but [[["),
        ("[1.0, 2.0]", 'answered [1.0, 2.0]; it must answer {"scores": [one number per text]}'),
        ('{"rewards": [1.0, 2.0]}', '{"rewards": [1.0, 2.0]}'),
        ('{"scores": 3.0}', "it must answer"),
        ('{"scores": {"one": 1.0, "two": 2.0}}', "it must answer"),
        ("null", "it must answer"),
    ],
)
@pytest.mark.parametrize("method", ["score", "toxicity"])
def test_a_lying_server_is_named(method: str, body: str | bytes, said: str, pauses: list[float]) -> None:
    with answering(says(body)) as url:
        reward = client.load(url)
        assert isinstance(reward, JudgingReward)
        texts = ["one", "two"]
        heard = mistake(lambda: reward.toxicity(texts) if method == "toxicity" else reward(["p", "p"], texts))
    assert url in heard
    assert said in heard
    assert pauses == []


def test_rows_are_counted_over_all_batches_and_judges_stay_probabilities() -> None:
    with answering(
        lambda path, request: (200, {}, b'{"scores": [NaN]}' if "bad" in str(request) else b'{"scores": [2]}')
    ) as url:
        reward = client.load(url, batch_size=1)
        assert "row 2, text 'bad'" in mistake(lambda: reward(["p"] * 4, ["a", "b", "bad", "c"]))
        assert isinstance(reward, JudgingReward)
        assert "row 0, text 'a': it returned 2.0; a toxicity is a probability" in mistake(
            lambda: reward.toxicity(["a"])
        )


def test_a_page_where_health_should_be_is_found_when_the_reward_is_loaded() -> None:
    with answering(says(""), health=(200, {}, b"<html>")) as url:
        assert f"{url}/health answered no JSON but <html>;" in mistake(lambda: client.load(url))


def test_the_token_is_needed_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(make_service("lexicon", {}, SECRET)) as url:
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
        said = mistake(lambda: client.load(url))
        assert f"{url}/health refused the request (401)" in said
        assert "token_env" in said
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
    with answering(says(f"Authorization: Bearer {SECRET}", 400)) as url:
        assert "Bearer ***" in mistake(lambda: client.load(url, token_env="REWARD_TOKEN")(["p"], ["c"]))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_retried(status: int, pauses: list[float]) -> None:
    with answering(says("", status)) as url:
        assert f"({status})" in mistake(lambda: client.load(url)(["p"], ["c"]))
    assert pauses == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "ftp://127.0.0.1:1"}, "'ftp://127.0.0.1:1'"),
        ({"url": "127.0.0.1:1"}, "give one like http://127.0.0.1:8765"),
        ({"url": "http://"}, "'http://'"),
        ({"url": "http://127.0.0.1:99999"}, "99999"),
        ({"url": "http://127.0.0.1:port"}, "'port'"),
        ({"url": "http://127.0.0.1:1/?a=b"}, "a=b"),
        ({"url": f"http://user:{SECRET}@127.0.0.1:1"}, "url holds a user name or password"),
        ({"url": 8765}, "url cannot be read"),
        ({"retries": -1}, "retries is -1, but it must be a whole number from 0 up"),
        ({"retries": 1.5}, "retries is 1.5"),
        ({"concurrency": 0}, "concurrency is 0, but it must be a whole number from 1 up"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": "8"}, "batch_size is '8'"),
        ({"timeout": 0}, "timeout is 0, but it must be a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": "30"}, "timeout is '30'"),
        ({"token_env": "UNSET_REWARD_TOKEN"}, "UNSET_REWARD_TOKEN is not set; export UNSET_REWARD_TOKEN=TOKEN"),
        ({"token_env": SECRET}, "not the name of a variable"),
        ({"token_env": "BAD_REWARD_TOKEN"}, "BAD_REWARD_TOKEN must hold ASCII"),
        ({"token": SECRET}, "its options are: url, timeout, retries, concurrency, batch_size, token_env"),
    ],
)
def test_bad_options_are_refused_before_any_request(
    options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setenv("BAD_REWARD_TOKEN", f"{SECRET}\n")
    assert said in mistake(lambda: load_reward("http", **{"url": "http://127.0.0.1:1", **options}), UserError)
    assert pauses == []


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/score", b"{", 400, "the body is no JSON"),
        ("/score", b"\xff", 400, "the body is no JSON"),
        ("/score", b"", 400, "the body is no JSON"),
        ("/score", b"[" * 100_000, 400, "the body is no JSON"),
        ("/score", b"[]", 400, "a JSON list, not an object"),
        ("/score", b'{"prompts": ["p"], "completions": ["c"], "columns": {"a": [NaN]}}', 400, "NaN is no JSON"),
        ("/score", b'{"completions": ["c"]}', 400, "prompts is missing or no list of texts"),
        ("/score", b'{"prompts": ["p"], "completions": [1]}', 400, "completions is missing or no list of texts"),
        ("/score", b'{"prompts": ["p"], "completions": "c"}', 400, "completions is missing"),
        ("/score", b'{"prompts": [], "completions": ["c"]}', 400, "0 prompts for 1 completions"),
        ("/score", b'{"prompts": ["p"], "completions": ["c"], "columns": []}', 400, "columns is no object"),
        ("/score", b'{"prompts": ["p"], "completions": ["c"], "columns": {"a": [1, 2]}}', 400, "no list of 1 values"),
        ("/score", b'{"prompts": ["p"], "completions": ["c"], "columns": {"a": "x"}}', 400, "column 'a'"),
        ("/score", b'{"prompts": ["p"], "completions": ["c"], "columns": {"prompts": ["x"]}}', 400, "is no column"),
        ("/score", b'{"prompt": ["p"], "completions": ["c"]}', 400, "unknown key 'prompt'"),
        ("/toxicity", b'{"texts": [null]}', 400, "texts is missing or no list of texts"),
        ("/scores", b"{}", 404, "/health, /score, /toxicity"),
        ("/health", b"{}", 405, "/health takes GET"),
    ],
)
def test_bad_requests_get_an_error_in_one_line_of_json(path: str, body: bytes, status: int, said: str) -> None:
    with serving(make_service("lexicon", {}, None)) as url:
        found, answer = ask(url, "POST", path, body)
        assert (found, list(answer)) == (status, ["error"])
        assert said in answer["error"]
        assert "\n" not in answer["error"]
        assert ask(url, "GET", "/score")[0] == 405
        assert ask(url, "DELETE", "/score")[0] == 501
        assert ask(url, "GET", "/health")[0] == 200


def test_a_body_needs_a_size_within_the_limit() -> None:
    with serving(make_service("lexicon", {}, None)) as url:
        status, answer = ask(url, "POST", "/score", b" " * (MOST_BYTES + 1))
        assert (status, f"above {MOST_BYTES}" in answer["error"]) == (413, True)
        assert ask(url, "POST", "/score", iter([b"{}", b" " * 10**6]))[0] == 411  # in chunks, so without a size
        assert ask(url, "POST", "/score", b"{}", **{"Content-Length": "two"})[0] == 411


def test_a_failing_reward_is_an_error_in_one_line_and_the_server_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    def moody(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        if completions == ["fail"]:
            raise ValueError("two\nlines")
        return [float("nan") if text == "nan" else 1.0 for text in completions]

    class MoodyJudge:
        def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
            return moody(prompts, completions, **columns)

        def toxicity(self, texts: list[str]) -> list[float]:
            raise ZeroDivisionError("judge")

    judge = MoodyJudge()
    with serving(Service("moody", checked(judge, "moody"), judge.toxicity, None)) as url:
        assert ask(url, "POST", "/score", b'{"prompts": ["p"], "completions": ["fail"]}') == (
            500,
            {"error": "reward moody: it failed with ValueError: two lines"},
        )
        assert ask(url, "POST", "/toxicity", b'{"texts": ["a"]}') == (500, {"error": "ZeroDivisionError: judge"})
        reward = client.load(url, retries=0)
        assert "row 0, text 'nan': it returned nan" in mistake(lambda: reward(["p"], ["nan"]))
        assert reward(["p"], ["fine"]) == [1.0]
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error"] * 3


def test_the_model_is_never_called_by_two_threads() -> None:
    working = threading.Lock()

    def exclusive(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        assert working.acquire(blocking=False), "two at a time"
        time.sleep(0.01)
        working.release()
        return [1.0] * len(completions)

    with serving(Service("exclusive", checked(exclusive, "exclusive"), None, None)) as url:
        assert client.load(url, batch_size=1, concurrency=8, retries=0)(["p"] * 16, ["c"] * 16) == [1.0] * 16


def test_a_client_that_leaves_early_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        started.set()
        go_on.wait(10)
        return [1.0] * len(completions)

    with serving(Service("slow", checked(slow, "slow"), None, None)) as url:
        mistake(lambda: client.load(url, timeout=0.1, retries=0)(["p"], ["c"]))
        assert started.is_set()
        go_on.set()
        assert client.load(url)(["p"], ["c"]) == [1.0]
    assert capfd.readouterr().err == ""


def test_other_machines_are_served_only_with_a_token() -> None:
    for host in ("0.0.0.0", "10.1.2.3"):
        said = mistake(lambda host=host: bind(host, 0, None), UserError)
        assert f"--host {host} can be reached from other machines" in said
        assert "--token_env NAME" in said
    bind("0.0.0.0", 0, SECRET).server_close()
    bind("localhost", 0, None).server_close()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--model: missing; give toxicity, "),
        (["--model", "lexcion"], "did you mean lexicon"),
        (["--model", "lexicon", "--prot", "1"], "--prot: unknown option; did you mean --port?"),
        (["--model", "lexicon", "--port", "http"], "invalid int value: 'http'"),
        (["--model", "lexicon", "--port", "65536"], "--port is 65536"),
        (["--model", "lexicon", "--port"], "--port: expected one argument"),
        (["--model", "lexicon", "--options", "{words}"], "--options {words}: not JSON"),
        (["--model", "lexicon", "--options", "[1]"], "--options [1]: not a JSON object"),
        (["--model", "lexicon", "--port", "0", "--options", '{"wrods": []}'], "its options are: words"),
        (["--model", "lexicon", "--token_env", "UNSET_REWARD_TOKEN"], "UNSET_REWARD_TOKEN is not set"),
        (["--model", "lexicon", "--host", "no.such.host.invalid"], "no IPv4 address"),
    ],
)
def test_mistakes_on_the_command_line_are_named(argv: list[str], said: str) -> None:
    assert said in mistake(lambda: serve(argv), UserError)


def test_options_have_defaults() -> None:
    options = parse(["--model", "length", "--options", '{"target": 3}'])
    assert (options.host, options.port, options.options, options.token_env) == ("127.0.0.1", 8765, {"target": 3}, None)


def test_the_command_serves_until_it_is_interrupted() -> None:
    command = [sys.executable, "-m", "reward_models.serve", "--model", "lexicon", "--port", "0"]
    environment = {**os.environ, "REWARD_TOKEN": SECRET}
    place = {"cwd": Path(__file__).resolve().parent.parent, "env": environment, "text": True}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--token_env", "REWARD_TOKEN"], **place, **pipes) as process:
        try:
            ready = process.stdout.readline()
            assert ready.startswith("ready: lexicon at http://127.0.0.1:")
            url = ready.split()[-1]
            headers = {"Authorization": f"Bearer {SECRET}"}
            body = json.dumps({"prompts": PROMPTS, "completions": TEXTS}).encode()
            assert ask(url, "POST", "/score", body, **headers) == (200, {"scores": Lexicon()(PROMPTS, TEXTS)})
            port = url.rsplit(":", 1)[1]
            again = subprocess.run([*command[:-1], port], **place, capture_output=True, timeout=30, check=False)
            assert again.returncode == 2
            (line,) = again.stderr.splitlines()
            assert line.startswith(f"error: --port {port} at 127.0.0.1: Address already in use; choose another --port")
        finally:
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (130, "", "")
