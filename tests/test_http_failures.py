"""The HTTP reward's client names what its server does wrong, and asks again where that may help."""

from __future__ import annotations

import random
import threading
import time
from email.utils import formatdate
from typing import Any

import pytest
from http_servers import Answer, answering, isolated, mistake, says

import reward_models.http as client
from workbench.rewards.contract import JudgingReward


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have slept; it does not."""
    return isolated(monkeypatch)


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


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_retried(status: int, pauses: list[float]) -> None:
    with answering(says("", status)) as url:
        assert f"({status})" in mistake(lambda: client.load(url)(["p"], ["c"]))
    assert pauses == []
