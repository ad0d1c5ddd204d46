"""The server of a reward: what it refuses, survives and always, and its command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from child_processes import started
from http_servers import PROMPTS, SECRET, TEXTS, SlowReward, ask, isolated, mistake, serving

import reward_models.http as client
from reward_models import toy_lexicon
from reward_models.http_requests import MAX_COLUMN_DEPTH
from reward_models.serve import MAX_BODY_BYTES, Service, bind, make_service, parse, serve
from workbench.errors import UserError
from workbench.rewards.contract import CheckedReward

NESTED = b'{"prompts": ["p"], "completions": ["c"], "columns": {"a": [%s%s]}}'


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have slept; it does not."""
    return isolated(monkeypatch)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/score", b"{", 400, "the body is not JSON"),
        ("/score", b"\xff", 400, "the body is not JSON"),
        ("/score", b"", 400, "the body is not JSON"),
        ("/score", b"[" * 100_000, 400, "the body is not JSON"),
        ("/score", b"[]", 400, "a JSON list, not an object"),
        ("/score", b'{"prompts": ["p"], "completions": ["c"], "columns": {"a": [NaN]}}', 400, "NaN is not JSON"),
        (
            "/score",
            b'{"prompts": ["p"], "completions": ["c"], "columns": {"a": [-1e999]}}',
            400,
            "the body is not JSON: '-1e999' is too large for a float",
        ),
        ("/score", NESTED % (b"[" * 900, b"]" * 900), 400, "column 'a' is nested more than 64 levels deep"),
        ("/score", NESTED % (b'[{"b":' * 32 + b"1", b"}]" * 32), 400, "column 'a' is nested more than 64 levels deep"),
        ("/score", b'{"completions": ["c"]}', 400, "prompts is missing or not a list of texts"),
        ("/score", b'{"prompts": ["p"], "completions": [1]}', 400, "completions is missing or not a list of texts"),
        ("/score", b'{"prompts": ["p"], "completions": "c"}', 400, "completions is missing"),
        ("/score", b'{"prompts": [], "completions": ["c"]}', 400, "0 prompts for 1 completions"),
        ("/score", b'{"prompts": ["p"], "completions": ["c"], "columns": []}', 400, "columns is not an object"),
        (
            "/score",
            b'{"prompts": ["p"], "completions": ["c"], "columns": {"a": [1, 2]}}',
            400,
            "not a list of 1 values",
        ),
        ("/score", b'{"prompts": ["p"], "completions": ["c"], "columns": {"a": "x"}}', 400, "column 'a'"),
        ("/score", b'{"prompts": ["p"], "completions": ["c"], "columns": {"prompts": ["x"]}}', 400, "is not a column"),
        ("/score", b'{"prompt": ["p"], "completions": ["c"]}', 400, "unknown key 'prompt'"),
        ("/toxicity", b'{"texts": [null]}', 400, "texts is missing or not a list of texts"),
        ("/scores", b"{}", 404, "/health, /score, /toxicity, /get_reward"),
        ("/health", b"{}", 405, "/health takes GET"),
    ],
)
def test_bad_requests_get_an_error_in_one_line_of_json(path: str, body: bytes, status: int, message: str) -> None:
    with serving(make_service("toy_lexicon", {}, None)) as url:
        code, reply = ask(url, "POST", path, body)
        assert (code, list(reply)) == (status, ["error"])
        assert message in reply["error"]
        assert "\n" not in reply["error"]
        assert ask(url, "GET", "/score")[0] == 405
        assert ask(url, "DELETE", "/score")[0] == 501
        assert ask(url, "GET", "/health")[0] == 200


def test_a_body_needs_a_size_within_the_limit() -> None:
    with serving(make_service("toy_lexicon", {}, None)) as url:
        status, reply = ask(url, "POST", "/score", b" " * (MAX_BODY_BYTES + 1))
        assert (status, f"limit of {MAX_BODY_BYTES}" in reply["error"]) == (413, True)
        assert ask(url, "POST", "/score", iter([b"{}", b" " * 10**6]))[0] == 411  # in chunks, so without a size
        assert ask(url, "POST", "/score", b"{}", **{"Content-Length": "two"})[0] == 411


def test_a_column_may_be_nested_up_to_the_limit() -> None:
    with serving(make_service("toy_lexicon", {}, None)) as url:
        body = NESTED % (b"[" * (MAX_COLUMN_DEPTH - 1), b"]" * (MAX_COLUMN_DEPTH - 1))
        assert ask(url, "POST", "/score", body) == (200, {"scores": [0.0]})


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
    with serving(Service("moody", CheckedReward(judge, "moody"), judge.toxicity, None)) as url:
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

    with serving(Service("exclusive", CheckedReward(exclusive, "exclusive"), None, None)) as url:
        assert client.load(url, batch_size=1, concurrency=8, retries=0)(["p"] * 16, ["c"] * 16) == [1.0] * 16


def test_a_client_that_leaves_early_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    slow = SlowReward()
    with serving(Service("slow", CheckedReward(slow, "slow"), None, None)) as url:
        mistake(lambda: client.load(url, timeout=0.1, retries=0)(["p"], ["c"]))
        assert slow.started.is_set()
        slow.go_on.set()
        assert client.load(url)(["p"], ["c"]) == [1.0]
    assert capfd.readouterr().err == ""


def test_other_machines_are_served_only_with_a_token() -> None:
    for host in ("0.0.0.0", "10.1.2.3"):
        message = mistake(lambda host=host: bind(host, 0, None), UserError)
        assert f"--host {host} can be reached from other machines" in message
        assert "--token_env NAME" in message
    bind("0.0.0.0", 0, SECRET).server_close()
    bind("localhost", 0, None).server_close()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--model: missing; expected toxicity, "),
        (["--model", "lexcion"], "did you mean lexicon"),
        (["--model", "lexicon", "--prot", "1"], "--prot: unknown option; did you mean --port?"),
        (["--model", "lexicon", "--port", "http"], "invalid int value: 'http'"),
        (["--model", "lexicon", "--port", "65536"], "--port is 65536"),
        (["--model", "lexicon", "--port"], "--port: expected one argument"),
        (["--model", "lexicon", "--options", "{words}"], "--options {words}: not JSON"),
        (["--model", "lexicon", "--options", "[1]"], "--options [1]: not a JSON object"),
        (["--model", "lexicon", "--port", "0", "--options", '{"wrods": []}'], "no option 'wrods'; did you mean words?"),
        (["--model", "lexicon", "--token_env", "UNSET_REWARD_TOKEN"], "UNSET_REWARD_TOKEN is not set"),
        (["--model", "lexicon", "--host", "no.such.host.invalid"], "no IPv4 address"),
    ],
)
def test_mistakes_on_the_command_line_are_named(argv: list[str], message: str) -> None:
    assert message in mistake(lambda: serve(argv), UserError)


def test_options_have_defaults() -> None:
    options = parse(["--model", "length", "--options", '{"target": 3}'])
    assert (options.host, options.port, options.options, options.token_env) == ("127.0.0.1", 8765, {"target": 3}, None)


def test_the_command_serves_until_it_is_interrupted() -> None:
    command = [sys.executable, "-m", "reward_models.serve", "--model", "toy_lexicon", "--port", "0"]
    environment = {**os.environ, "REWARD_TOKEN": SECRET}
    options = {"cwd": Path(__file__).resolve().parent.parent, "env": environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([*command, "--token_env", "REWARD_TOKEN"], **options, **pipes) as process:
        ready = process.stdout.readline()
        assert ready.startswith("ready: toy_lexicon at http://127.0.0.1:")
        url = ready.split()[-1]
        headers = {"Authorization": f"Bearer {SECRET}"}
        body = json.dumps({"prompts": PROMPTS, "completions": TEXTS}).encode()
        assert ask(url, "POST", "/score", body, **headers) == (200, {"scores": toy_lexicon.load()(PROMPTS, TEXTS)})
        port = url.rsplit(":", 1)[1]
        again = subprocess.run(
            [*command[:-1], port], **options, capture_output=True, text=True, timeout=30, check=False
        )
        assert again.returncode == 2
        (line,) = again.stderr.splitlines()
        assert line.startswith(f"error: --port {port} on 127.0.0.1: Address already in use; choose another --port")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (130, "", "")
