"""A reward that a server computes, such as `python -m reward_models.serve`. The server speaks JSON:

GET  /health                                             {"model": name, "judges": whether there is /toxicity}, or 404
POST /score     {"prompts": [], "completions": [], "columns": {name: []}}      {"scores": [a number per completion]}
POST /toxicity  {"texts": []}                                  {"scores": [a probability of toxicity per text]}
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any

import httpx2

from workbench.errors import RewardError, UserError
from workbench.rewards.contract import RewardModel, checked, checked_judge

FIRST_PAUSE = 0.5  # seconds before the first retry
LONGEST_PAUSE = 60.0  # seconds, whatever the server asks for
SHOWN_CHARACTERS = 200
TOO_MANY = 429
FIXES = {
    404: "correct the url: it is the part before /score",
    413: "lower batch_size",
    TOO_MANY: "lower concurrency, or raise retries",
}


@dataclass(frozen=True)
class Server:
    """How to ask a server; it keeps neither connection nor token, so that it can be pickled and forked."""

    url: str
    timeout: float
    """The longest silence, in seconds."""
    retries: int
    concurrency: int
    """The most requests in flight."""
    token_env: str | None

    def judges(self) -> bool:
        """Whether the server says that it has /toxicity; RewardError if it cannot be asked."""
        with self._client() as client:
            response = self._ask(client, "GET", "/health")
        if response.status_code == 404:
            return False
        answer = self._read(response)
        return isinstance(answer, dict) and answer.get("judges") is True

    def scores(self, path: str, requests: list[tuple[bytes, int]]) -> list[Any]:
        """The answers to requests (JSON, number of texts), in their order, however they came in; unchecked numbers."""
        if not requests:
            return []
        failed = threading.Event()
        with self._client() as client, ThreadPoolExecutor(self.concurrency) as pool:

            def answer(request: tuple[bytes, int]) -> list[Any]:
                if failed.is_set():  # an earlier request's error ends the call, so nobody reads this
                    return []
                body, count = request
                try:
                    return self._scores(self._ask(client, "POST", path, body), count)
                except UserError:
                    failed.set()
                    raise

            return [score for scores in pool.map(answer, requests) for score in scores]

    def _client(self) -> httpx2.Client:
        headers = {"Content-Type": "application/json"}
        if self.token_env is not None:
            headers["Authorization"] = f"Bearer {read_token(self.token_env)}"
        limits = httpx2.Limits(max_connections=self.concurrency)
        return httpx2.Client(headers=headers, timeout=self.timeout, limits=limits)

    def _ask(self, client: httpx2.Client, method: str, path: str, body: bytes | None = None) -> httpx2.Response:
        """The first response that a retry would not change, or the last; RewardError if there is none."""
        url, attempt = f"{self.url}{path}", 0
        while True:
            try:
                response = client.request(method, url, content=body)
            except httpx2.RequestError as error:
                if attempt == self.retries:
                    raise RewardError(self._unanswered(url, error)) from error
                asked = 0.0
            else:
                if attempt == self.retries or not _may_pass(response.status_code):
                    return response
                asked = _retry_after(response.headers.get("Retry-After", ""))
            sleep(_pause(attempt, asked))
            attempt += 1

    def _unanswered(self, url: str, error: httpx2.RequestError) -> str:
        tried = f"in any of {self.retries + 1} requests" if self.retries else "in one request"
        if isinstance(error, httpx2.TimeoutException):
            fix = "raise timeout, or lower batch_size or concurrency"
            return f"{url} is too slow: no answer within {self.timeout:g} s {tried}; {fix}"
        cause = f"{type(error).__name__}: {_one_line(str(error))}"
        return f"{url} cannot be reached: no answer {tried} ({cause}); start the server, or correct the url"

    def _read(self, response: httpx2.Response) -> Any:
        """The JSON of a good response; RewardError for any other."""
        url, status = response.url, response.status_code
        if status in (401, 403):
            fix = "name the environment variable that holds its token in token_env"
            if self.token_env is not None:
                fix = f"set the environment variable {self.token_env} to the server's token"
            raise RewardError(f"{url} refused the request ({status}); {fix}")
        if status != 200:
            tried = f" to the last of {self.retries + 1} requests" if self.retries and _may_pass(status) else ""
            fix = FIXES.get(status, "see the server's own output" if status >= 500 else "correct the url")
            raise RewardError(f"{url} answered {status}{tried}: {self._shown(response)}; {fix}")
        try:
            return json.loads(response.content)
        except (ValueError, RecursionError) as error:
            shown = self._shown(response)
            raise RewardError(f"{url} answered no JSON but {shown}; correct the url, or the server") from error

    def _scores(self, response: httpx2.Response, count: int) -> list[Any]:
        """The list of scores in a response; RewardError unless it has `count` entries."""
        answer, url = self._read(response), response.url
        if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
            shown = self._shown(response)
            raise RewardError(f'{url} answered {shown}; it must answer {{"scores": [one number per text]}}')
        scores = answer["scores"]
        if len(scores) != count:
            raise RewardError(f"{url} answered {len(scores)} scores for {count} texts; it must answer one per text")
        return scores

    def _shown(self, response: httpx2.Response) -> str:
        """The first characters of an answer, which may repeat what was sent, but not the token."""
        text = response.content.decode("utf-8", errors="replace")
        if self.token_env is not None:
            text = text.replace(read_token(self.token_env), "***")
        text = _one_line(text) or "nothing"
        return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


@dataclass(frozen=True)
class HttpReward:
    """The scores of a server."""

    server: Server
    batch_size: int
    """Texts in one request."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """One number per completion; RewardError if the server fails or answers anything else."""
        # TRL hands its own objects over by name too, which are no columns.
        lists = {name: values for name, values in columns.items() if isinstance(values, list)}
        requests = []
        for part in _parts(len(completions), self.batch_size):
            body = {"prompts": prompts[part], "completions": completions[part]}
            selected = {name: values[part] for name, values in lists.items()}
            requests.append((_encoded({**body, "columns": selected}, lists), len(completions[part])))
        answer = self.server.scores("/score", requests)
        return checked(lambda prompts, completions, **columns: answer, self.server.url)(prompts, completions)


@dataclass(frozen=True)
class JudgingHttpReward:
    """The scores of a server that can judge too."""

    reward: HttpReward

    def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        """One number per completion; RewardError if the server fails or answers anything else."""
        return self.reward(prompts, completions, **columns)

    def toxicity(self, texts: list[str]) -> list[float]:
        """One probability per text; RewardError if the server fails or answers anything else."""
        server = self.reward.server
        parts = [texts[part] for part in _parts(len(texts), self.reward.batch_size)]
        answer = server.scores("/toxicity", [(_encoded({"texts": part}, ()), len(part)) for part in parts])
        return checked_judge(lambda texts: answer, server.url)(texts)


def load(
    url: str,
    *,
    timeout: float = 30.0,
    retries: int = 3,
    concurrency: int = 4,
    batch_size: int = 64,
    token_env: str | None = None,
) -> RewardModel:
    """The reward of the server at `url`, a judge if the server says so; UserError for a bad option or no answer.

    `timeout` is the longest silence in seconds; `token_env` names the environment variable with the bearer token.
    """
    for name, value, least in (("retries", retries, 0), ("concurrency", concurrency, 1), ("batch_size", batch_size, 1)):
        if not isinstance(value, int) or value < least:
            raise UserError(f"http: {name} is {value!r}, but it must be a whole number from {least} up")
    if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise UserError(f"http: timeout is {timeout!r}, but it must be a number of seconds above 0")
    server = Server(_base(url), timeout, retries, concurrency, token_env)
    reward = HttpReward(server, batch_size)
    return JudgingHttpReward(reward) if server.judges() else reward


def read_token(name: str) -> str:
    """The token in an environment variable; UserError, which never shows it, unless it is printable ASCII."""
    # Whoever writes the token itself in the place of the variable's name must not find it in a log.
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", str(name)):
        raise UserError("token_env: not the name of a variable (A-Z, 0-9, _); put the token itself into one, name that")
    token = os.environ.get(name)
    if not token:
        raise UserError(f"token_env: the environment variable {name} is not set; export {name}=TOKEN")
    if not re.fullmatch(r"[!-~]+", token):
        raise UserError(f"token_env: {name} must hold ASCII letters, digits and signs only, without spaces")
    return token


def _base(url: str) -> str:
    """The url without its last slash; UserError unless it is http(s)://host with port and path."""
    fix = "give one like http://127.0.0.1:8765"
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise UserError(f"http: url cannot be read: {_one_line(str(error))}; {fix}") from error
    if parsed.userinfo:
        raise UserError("http: url holds a user name or password; name a variable with a token in token_env instead")
    known = parsed.scheme in ("http", "https") and parsed.host and (parsed.port or 1) < 2**16
    if not known or parsed.query or parsed.fragment:
        raise UserError(f"http: url is {url!r}, no http:// or https:// address without ? and #; {fix}")
    return url.rstrip("/")


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _encoded(body: dict[str, Any], columns: Sequence[str] | dict[str, list]) -> bytes:
    """The body as JSON; UserError if a column's values cannot be."""
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        names = ", ".join(columns) or "none"
        raise UserError(f"http: cannot be sent as JSON: {error}; leave the column out (columns: {names})") from error


def _may_pass(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status == TOO_MANY or status >= 500


def _pause(attempt: int, asked: float) -> float:
    """Seconds before the next request: twice as long each time, within 50 %, and what the server asked for."""
    # Not the seeded generator: a run must not depend on how often its network failed.
    backoff = FIRST_PAUSE * 2 ** min(attempt, 10) * random.SystemRandom().uniform(0.5, 1.5)
    return min(max(backoff, asked), LONGEST_PAUSE)


def _retry_after(value: str) -> float:
    """The seconds that a header Retry-After names, as a number or a date; 0.0 if it cannot be read."""
    if value.isdecimal():
        return float(value)
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return 0.0


def _one_line(text: str) -> str:
    """The text without line ends, and without what could steer a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
