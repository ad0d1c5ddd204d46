"""A reward served over HTTP, for example by `python -m reward_models.serve`.

The server speaks JSON:

GET  /health                                             {"model": name, "judges": whether there is /toxicity}, or 404
POST /score     {"prompts": [], "completions": [], "columns": {name: []}}      {"scores": [a number per completion]}
POST /toxicity  {"texts": []}                                  {"scores": [a probability of toxicity per text]}

With `dialect: openrlhf`, it is a remote reward model of OpenRLHF instead (see reward_models.http_dialects).
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any

import httpx2

from reward_models.http_dialects import Dialect, OpenRLHF, make_dialect
from workbench.errors import RewardError, UserError
from workbench.rewards.contract import Judge
from workbench.rewards.values import check_probabilities, check_scores

FIRST_PAUSE = 0.5  # seconds before the first retry
MAX_PAUSE = 60.0  # seconds, whatever the server asks for
MAX_QUOTED_CHARACTERS = 200
# A score takes less than 32 bytes as JSON; an error page is larger.
MAX_BYTES, MAX_BYTES_PER_TEXT = 2**20, 256
TOO_MANY_REQUESTS = 429
FIXES = {
    413: "lower batch_size",
    TOO_MANY_REQUESTS: "lower concurrency, or raise retries",
}


@dataclass(frozen=True)
class HttpReward:
    """The scores of a server; it keeps neither connection nor token, so that it can be pickled and forked."""

    url: str
    timeout: float
    """The longest time for one request, until the last byte of its response, in seconds."""
    retries: int
    concurrency: int
    """The maximum number of requests in flight."""
    batch_size: int
    """Texts per request."""
    token_env: str | None
    dialect: Dialect
    offers_judge: bool = False
    """Whether the server has /toxicity."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Return one number per completion; raises RewardError if the server fails or returns anything else."""
        # TRL also passes objects of its own by keyword, which are not columns.
        lists = self.dialect.select({name: values for name, values in columns.items() if isinstance(values, list)})
        requests = []
        for part in _slices(len(completions), self.batch_size):
            selected = {name: values[part] for name, values in lists.items()}
            body = self.dialect.body(prompts[part], completions[part], selected)
            requests.append((_to_json(body, list(lists)), len(completions[part])))
        scores = self._post(self.dialect.path, self.dialect.scores_key, requests)
        return check_scores(scores, completions, self.url)

    def check_columns(self, columns: Mapping[str, list]) -> None:
        """Raise UserError if the data lack the column of the labels."""
        self.dialect.select(columns)

    def judge(self) -> Judge | None:
        """Return the server's toxicity judge, or None if it has none."""
        return self.toxicity if self.offers_judge else None

    def toxicity(self, texts: list[str]) -> list[float]:
        """Return one probability per text; raises RewardError if the server fails or returns anything else."""
        parts = [texts[part] for part in _slices(len(texts), self.batch_size)]
        requests = [(_to_json({"texts": part}, []), len(part)) for part in parts]
        return check_probabilities(self._post("/toxicity", "scores", requests), texts, self.url)

    def has_toxicity(self) -> bool:
        """Return whether the server reports that it has /toxicity; raises RewardError if it cannot be reached."""
        with self._client() as client:
            response = self._request(client, "GET", "/health", None, MAX_BYTES)
        if response.status_code == 404:
            return False
        health = self._read(response)
        return isinstance(health, dict) and health.get("judges") is True

    def check_server(self) -> None:
        """Raise RewardError unless the server scores a row, or fails at it, as it may if it needs a label."""
        prompts, completions = ["Hello."], [" Hi."]
        body = _to_json(self.dialect.body(prompts, completions, {}), [])
        with self._client() as client:
            response = self._request(client, "POST", self.dialect.path, body, MAX_BYTES)
        if not _is_transient(response.status_code):
            check_scores(self._read_scores(response, self.dialect.scores_key, 1), completions, self.url)

    def _post(self, path: str, key: str, requests: list[tuple[bytes, int]]) -> list[Any]:
        """Return the unchecked scores, under `key`, of requests (JSON, number of texts) in the requests' order."""
        if not requests:
            return []
        failed = threading.Event()
        with self._client() as client, ThreadPoolExecutor(self.concurrency) as pool:

            def post(request: tuple[bytes, int]) -> list[Any]:
                if failed.is_set():  # an earlier request's error ends the call, so this result is never read
                    return []
                body, count = request
                try:
                    limit = MAX_BYTES + MAX_BYTES_PER_TEXT * count
                    return self._read_scores(self._request(client, "POST", path, body, limit), key, count)
                except UserError:
                    failed.set()
                    raise

            return [score for scores in pool.map(post, requests) for score in scores]

    def _client(self) -> httpx2.Client:
        """Return a client that sends the token, and refuses compression, whose size shows only once it is unpacked."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self.token_env is not None:
            headers["Authorization"] = f"Bearer {read_token(self.token_env)}"
        limits = httpx2.Limits(max_connections=None)  # the threads are limited; one may be left behind (see _within)
        return httpx2.Client(headers=headers, timeout=self.timeout, limits=limits)

    def _request(
        self, client: httpx2.Client, method: str, path: str, body: bytes | None, max_bytes: int
    ) -> httpx2.Response:
        """Return the first response that a retry would not change, or the last.

        Raises RewardError if there is none, or one of more than `max_bytes`.
        """
        url, attempt = f"{self.url}{path}", 0
        while True:
            try:
                response = _within(self.timeout, lambda: _receive(client, method, url, body, max_bytes))
            except httpx2.RequestError as error:
                if attempt == self.retries:
                    raise RewardError(self._no_response(url, error)) from error
                retry_after = 0.0
            else:
                if attempt == self.retries or not _is_transient(response.status_code):
                    return response
                retry_after = _retry_after(response.headers.get("Retry-After", ""))
            sleep(_pause(attempt, retry_after))
            attempt += 1

    def _no_response(self, url: str, error: httpx2.RequestError) -> str:
        """Return the message for a server that never responded."""
        tried = f"to any of {self.retries + 1} requests" if self.retries else "(retries is 0)"
        if isinstance(error, httpx2.TimeoutException):
            fix = "raise timeout, or lower batch_size or concurrency"
            return f"{url} is too slow: no complete response within {self.timeout:g} s {tried}; {fix}"
        cause = f"{type(error).__name__}: {_printable(str(error))}"
        return f"{url} cannot be reached: no response {tried} ({cause}); start the server, or correct the url"

    def _read(self, response: httpx2.Response) -> Any:
        """Return the JSON of a good response; raises RewardError for any other."""
        url, status = response.url, response.status_code
        if status in (401, 403):
            fix = "set token_env to the name of the environment variable that contains its token"
            if self.token_env is not None:
                fix = f"set the environment variable {self.token_env} to the server's token"
            raise RewardError(f"{url} refused the request ({status}); {fix}")
        if status != 200:
            tried = f" to the last of {self.retries + 1} requests" if self.retries and _is_transient(status) else ""
            fixes = {404: self.dialect.url_fix, **FIXES}
            fix = fixes.get(status, "see the server's log" if status >= 500 else "correct the url")
            raise RewardError(f"{url} returned {status}{tried}: {self._quote(response)}; {fix}")
        try:
            return json.loads(response.content)
        except (ValueError, RecursionError) as error:
            quoted = self._quote(response)
            raise RewardError(f"{url} returned {quoted} instead of JSON; fix the url or the server") from error

    def _read_scores(self, response: httpx2.Response, key: str, count: int) -> list[Any]:
        """Return the list under `key` in a response; raises RewardError unless it has `count` entries."""
        content, url = self._read(response), response.url
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            quoted = self._quote(response)
            raise RewardError(f'{url} returned {quoted}; it must return {{"{key}": [one number per text]}}')
        scores = content[key]
        if len(scores) != count:
            raise RewardError(f"{url} returned {len(scores)} {key} for {count} texts; it must return one per text")
        return scores

    def _quote(self, response: httpx2.Response) -> str:
        """Return the first characters of a response, with the token masked in case it echoes the request."""
        text = response.content.decode("utf-8", errors="replace")
        if self.token_env is not None:
            text = text.replace(read_token(self.token_env), "***")
        text = _printable(text) or "nothing"
        return text if len(text) <= MAX_QUOTED_CHARACTERS else f"{text[:MAX_QUOTED_CHARACTERS]}..."


def load(
    url: str,
    *,
    timeout: float = 30.0,
    retries: int = 3,
    concurrency: int = 4,
    batch_size: int = 64,
    token_env: str | None = None,
    dialect: str = "workbench",
    label_column: str | None = None,
    eos_token: str = "",
) -> HttpReward:
    """Return the reward of the server at `url`; raises UserError for a bad option or a server that does not respond.

    `timeout` is the longest time for one request in seconds; `token_env` names the environment variable with the
    bearer token. With `dialect: openrlhf`, `label_column` is the column of the labels (default: `label`, if the data
    have it), and `eos_token` ends each query.
    """
    protocol = make_dialect(dialect, label_column, eos_token)
    for name, value, minimum in (
        ("retries", retries, 0),
        ("concurrency", concurrency, 1),
        ("batch_size", batch_size, 1),
    ):
        if not isinstance(value, int) or value < minimum:
            raise UserError(f"http: {name} is {value!r}, but it must be an integer of at least {minimum}")
    if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise UserError(f"http: timeout is {timeout!r}, but it must be a number of seconds above 0")
    reward = HttpReward(_base_url(url, protocol), timeout, retries, concurrency, batch_size, token_env, protocol)
    if isinstance(protocol, OpenRLHF):
        reward.check_server()
        return reward
    return replace(reward, offers_judge=reward.has_toxicity())


def read_token(name: str) -> str:
    """Return the token in an environment variable; raises UserError, which never shows it, unless it is plain ASCII."""
    # A token given in place of the variable's name must not end up in a log.
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", str(name)):
        raise UserError(
            "token_env: not the name of an environment variable (A-Z, 0-9, _); export the token in one and "
            "set token_env to its name"
        )
    token = os.environ.get(name)
    if not token:
        raise UserError(f"token_env: the environment variable {name} is not set; export {name}=TOKEN")
    if not re.fullmatch(r"[!-~]+", token):
        raise UserError(f"token_env: {name} must contain only ASCII letters, digits and punctuation, without spaces")
    return token


def _receive(client: httpx2.Client, method: str, url: str, body: bytes | None, max_bytes: int) -> httpx2.Response:
    """Return the response as it was sent; raises RewardError once it has more than `max_bytes`."""
    content = bytearray()
    with client.stream(method, url, content=body) as response:
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > max_bytes:
                raise RewardError(
                    f"{url} returned more than {max_bytes} bytes ({response.status_code}), which no list of scores "
                    "takes; fix the url or the server"
                )
    headers = [(key, value) for key, value in response.headers.items() if key == "retry-after"]
    return httpx2.Response(response.status_code, headers=headers, content=bytes(content), request=response.request)


def _within(seconds: float, receive: Callable[[], httpx2.Response]) -> httpx2.Response:
    """Return what `receive` returns; raises ReadTimeout if that takes longer.

    The client's own timeout starts again with every byte that arrives. A thread that is left behind ends with the
    client, whose connections are closed, or with the process.
    """
    outcome: Future[httpx2.Response] = Future()

    def run() -> None:
        try:
            outcome.set_result(receive())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError as error:
        raise httpx2.ReadTimeout(f"no complete response within {seconds:g} s") from error


def _base_url(url: str, dialect: Dialect) -> str:
    """Return the url, ready for a path; raises UserError unless it is http(s)://host with port and path."""
    fix = "use one like http://127.0.0.1:8765"
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise UserError(f"http: url cannot be read: {_printable(str(error))}; {fix}") from error
    if parsed.userinfo:
        raise UserError(
            "http: url contains a user name or password; put a token in an environment variable and set token_env to "
            "its name instead"
        )
    valid = parsed.scheme in ("http", "https") and parsed.host and (parsed.port or 1) < 2**16
    if not valid or parsed.query or parsed.fragment:
        raise UserError(f"http: url is {url!r}, but it must start with http:// or https:// and have no ? or #; {fix}")
    return url.rstrip("/") if dialect.path else url


def _slices(count: int, size: int) -> Iterator[slice]:
    """Return slices of `size` that cover `count` rows."""
    return (slice(start, start + size) for start in range(0, count, size))


def _to_json(body: dict[str, Any], columns: list[str]) -> bytes:
    """Return the body as JSON; raises UserError for a column whose values cannot be written."""
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        names = ", ".join(columns) or "none"
        raise UserError(f"http: cannot be sent as JSON: {error}; leave the column out (columns: {names})") from error


def _is_transient(status: int) -> bool:
    """Return whether the same request may succeed later."""
    return status == TOO_MANY_REQUESTS or status >= 500


def _pause(attempt: int, retry_after: float) -> float:
    """Return the seconds before the next request: doubled each time, with jitter, at least what the server asks."""
    # Not the seeded generator: a run must not depend on how often its network failed.
    backoff = FIRST_PAUSE * 2 ** min(attempt, 10) * random.SystemRandom().uniform(0.5, 1.5)
    return min(max(backoff, retry_after), MAX_PAUSE)


def _retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header names, as a number or a date; 0.0 if it cannot be read."""
    if value.isdecimal():
        return float(value)
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return 0.0


def _printable(text: str) -> str:
    """Return the text on one line, without characters that could control a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
