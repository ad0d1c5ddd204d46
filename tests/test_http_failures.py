"""The HTTP reward's client names what its server does wrong, and asks again where that may help."""

from __future__ import annotations

import random
import threading
import time
from email.utils import formatdate
from typing import Any

import pytest
from http_servers import Reply, always, isolated, mistake, scripted

import reward_models.http as client


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have slept; it does not."""
    return isolated(monkeypatch)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_retried_with_growing_pauses(status: int, pauses: list[float]) -> None:
    requests = 0

    def respond(path: str, request: Any) -> Reply:
        nonlocal requests
        requests += 1
        return (status, {}, b"busy") if requests <= 4 else (200, {}, b'{"scores": [7]}')

    with scripted(respond) as url:
        assert client.load(url, retries=4)(["p"], ["c"]) == [7.0]
        assert requests == 5
        for attempt, pause in enumerate(pauses):
            assert 0.5 * 0.5 * 2**attempt <= pause <= 1.5 * 0.5 * 2**attempt
        assert len(pauses) == 4
        requests = 0
        message = mistake(lambda: client.load(url, retries=3)(["p"], ["c"]))
    assert requests == 4
    assert f"{url}/score returned {status} to the last of 4 requests: busy; " in message


def test_pauses_differ_and_leave_the_seeded_generator_alone() -> None:
    random.seed(0)
    state = random.getstate()
    assert len({client._pause(3, 0.0) for _ in range(20)}) > 1
    assert random.getstate() == state
    assert client._pause(5000, 0.0) == client.MAX_PAUSE


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
    with scripted(always("", 503, Retry_After=header)) as url:
        mistake(lambda: client.load(url, retries=1)(["p"], ["c"]))
    (pause,) = pauses
    assert low <= pause <= high


@pytest.mark.parametrize(("status", "fix"), [(400, "correct the url"), (404, "before /score"), (413, "batch_size")])
def test_what_cannot_pass_is_asked_once(status: int, fix: str, pauses: list[float]) -> None:
    with scripted(always('{"error": "no"}', status)) as url:
        message = mistake(lambda: client.load(url)(["p"], ["c"]))
    assert f"{url}/score returned {status}: " in message
    assert '{"error": "no"}' in message
    assert fix in message
    assert pauses == []


def test_redirects_are_not_followed() -> None:
    with scripted(always("", 307, Location="http://127.0.0.1:1/score")) as url:
        assert "returned 307" in mistake(lambda: client.load(url)(["p"], ["c"]))


@pytest.mark.parametrize("order", [["fails", "is late"], ["is late", "fails"]])
def test_the_first_failure_ends_the_call(order: list[str]) -> None:
    asked: list[str] = []
    both = threading.Barrier(2)

    def respond(path: str, request: Any) -> Reply:
        (text,) = request["completions"]
        asked.append(text)
        both.wait(10)
        if text == "fails":
            return 500, {}, b""
        time.sleep(0.2)  # the worker whose request failed has time to ask for more
        return 200, {}, b'{"scores": [1]}'

    with scripted(respond) as url:
        reward = client.load(url, batch_size=1, concurrency=2, retries=0)
        assert "returned 500" in mistake(lambda: reward(["p"] * 12, [*order, *"abcdefghij"]))
    assert sorted(asked) == ["fails", "is late"]


def test_nobody_listens(pauses: list[float]) -> None:
    with scripted(always("")) as url:
        reward = client.load(url)
    message = mistake(lambda: reward(["p"], ["c"]))
    assert f"{url}/score cannot be reached: no response to any of 4 requests (ConnectError: " in message
    assert "start the server" in message
    assert len(pauses) == 3
    assert "no response (retries is 0)" in mistake(lambda: client.load(url, retries=0))


def test_a_server_that_hangs_up_is_retried(pauses: list[float]) -> None:
    def respond(path: str, request: Any) -> Reply:
        raise ConnectionResetError

    with scripted(respond) as url:
        assert "no response to any of 3 requests" in mistake(lambda: client.load(url, retries=2)(["p"], ["c"]))
    assert len(pauses) == 2


def test_a_slow_server_is_named_with_the_limit(pauses: list[float]) -> None:
    done = threading.Event()

    def respond(path: str, request: Any) -> Reply:
        done.wait(10)
        return 200, {}, b'{"scores": [1]}'

    with scripted(respond) as url:
        start = time.monotonic()
        message = mistake(lambda: client.load(url, timeout=0.1, retries=1)(["p"], ["c"]))
        done.set()
        assert client.load(url, timeout=5)(["p"], ["c"]) == [1.0]
    assert time.monotonic() - start < 3
    assert f"{url}/score is too slow: no complete response within 0.1 s to any of 2 requests; raise timeout" in message
    assert len(pauses) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"scores": [1.0]}', "returned 1 scores for 2 texts"),
        ('{"scores": [1.0, 2.0, 3.0]}', "returned 3 scores for 2 texts"),
        ('{"scores": []}', "returned 0 scores for 2 texts"),
        ('{"scores": [1.0, NaN]}', "row 1, text 'two': it returned nan; it must be finite"),
        ('{"scores": [-Infinity, 1.0]}', "row 0, text 'one': it returned -inf; it must be finite"),
        ('{"scores": [1.0, 1e999]}', "row 1, text 'two': it returned inf; it must be finite"),
        ('{"scores": ["1.0", "2.0"]}', "row 0, text 'one': it returned '1.0', a str, not a number"),
        ('{"scores": [1.0, null]}', "row 1, text 'two': it returned None"),
        ('{"scores": [1.0, [2.0]]}', "row 1, text 'two': it returned [2.0], a list, not a number"),
        (
            "<!doctype html>\n<html><title>Welcome</title>",
            "returned <!doctype html> <html><title>Welcome",
        ),
        ("<" * 500, f"returned {'<' * 200}... instead of JSON; "),
        ("", "returned nothing instead of JSON"),
        (b"\xff\xfe\xfa", "instead of JSON"),
        ("no\x1b[2J\r\nscreen", "returned no [2J screen instead of JSON;"),
        ("[" * 100_000, "returned [[["),
        ("[1.0, 2.0]", 'returned [1.0, 2.0]; it must return {"scores": [one number per text]}'),
        ('{"rewards": [1.0, 2.0]}', '{"rewards": [1.0, 2.0]}'),
        ('{"scores": 3.0}', "it must return"),
        ('{"scores": {"one": 1.0, "two": 2.0}}', "it must return"),
        ("null", "it must return"),
    ],
)
@pytest.mark.parametrize("method", ["score", "toxicity"])
def test_a_lying_server_is_named(method: str, body: str | bytes, message: str, pauses: list[float]) -> None:
    with scripted(always(body)) as url:
        reward = client.load(url)
        judge, texts = reward.judge(), ["one", "two"]
        assert judge is not None
        error = mistake(lambda: judge(texts) if method == "toxicity" else reward(["p", "p"], texts))
    assert url in error
    assert message in error
    assert pauses == []


def test_rows_are_counted_over_all_batches_and_judges_stay_probabilities() -> None:
    with scripted(
        lambda path, request: (200, {}, b'{"scores": [NaN]}' if "bad" in str(request) else b'{"scores": [2]}')
    ) as url:
        reward = client.load(url, batch_size=1)
        assert "row 2, text 'bad'" in mistake(lambda: reward(["p"] * 4, ["a", "b", "bad", "c"]))
        judge = reward.judge()
        assert judge is not None
        assert "row 0, text 'a': it returned 2.0; toxicity must be a probability" in mistake(lambda: judge(["a"]))


def test_a_page_where_health_should_be_is_found_when_the_reward_is_loaded() -> None:
    with scripted(always(""), health=(200, {}, b"<html>")) as url:
        assert f"{url}/health returned <html> instead of JSON;" in mistake(lambda: client.load(url))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_retried(status: int, pauses: list[float]) -> None:
    with scripted(always("", status)) as url:
        assert f"({status})" in mistake(lambda: client.load(url)(["p"], ["c"]))
    assert pauses == []
