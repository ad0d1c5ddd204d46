"""OpenRLHF trains on any reward that the reward server serves.

The client is written after openrlhf/utils/agent.py#L283-L297 and #L322-L356 of OpenRLHF at commit
3c3be6234e0cb353e76bb8019947db9dfe99fca7.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import pytest
from http_servers import PROMPTS, SECRET, TEXTS, ask, isolated, serving

from reward_models import serve, toy_lexicon
from reward_models.serve import Service, make_service
from workbench.rewards.contract import CheckedReward
from workbench.rewards.registry import load_reward

REFERENCES = [f"reference {row}" for row in range(len(TEXTS))]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have slept; it does not."""
    return isolated(monkeypatch)


def openrlhf_rewards(url: str, queries: list[str], prompts: list[str], labels: list[Any]) -> dict[str, list]:
    """What OpenRLHF's client makes of a server's response to these rows; it sends the user of its url along."""
    parts = urlsplit(url)
    body = json.dumps({"query": queries, "prompts": prompts, "labels": labels}).encode()
    request = urllib.request.Request(
        parts._replace(netloc=f"{parts.hostname}:{parts.port}").geturl(), body, {"Content-Type": "application/json"}
    )
    if parts.username is not None:
        request.add_header(
            "Authorization", "Basic " + base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
        )
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.headers["Content-Type"] == "application/json"
        rewards_info = json.loads(response.read())
    score_value = rewards_info.get("scores")
    if score_value is None:
        score_value = rewards_info.get("rewards")
    extra_logs = rewards_info.get("extra_logs") or {}
    return {"reward": rewards_info.get("rewards"), "scores": score_value, **extra_logs}


def test_openrlhf_uses_a_reward_of_ours() -> None:
    def by_label(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        labels = columns.get("label", [""] * len(prompts))
        rows = zip(prompts, completions, labels, strict=True)
        return [len(prompt) + len(text) / 3 + 1000 * len(label) for prompt, text, label in rows]

    expected = by_label(PROMPTS, TEXTS, label=REFERENCES)
    queries = [prompt + text for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    with serving(Service("by_label", CheckedReward(by_label, "by_label"), None, None, eos_token="</s>")) as url:
        rows = list(zip(queries, PROMPTS, REFERENCES, strict=True))
        for rewards_info in (
            openrlhf_rewards(f"{url}/get_reward", queries, PROMPTS, REFERENCES),
            openrlhf_rewards(f"{url}/get_reward", [f"{query}</s>" for query in queries], PROMPTS, REFERENCES),
        ):
            assert rewards_info == {"reward": expected, "scores": expected}
        for (query, prompt, label), score in zip(rows, expected, strict=True):  # one by one, as a rollout does
            assert openrlhf_rewards(f"{url}/get_reward", [query], [prompt], [label])["reward"] == [score]
        # With more servers than rows, some get none.
        assert openrlhf_rewards(f"{url}/get_reward", [], [], []) == {"reward": [], "scores": []}
        body = json.dumps({"query": queries, "prompts": PROMPTS}).encode()
        assert ask(url, "POST", "/get_reward", body)[1]["rewards"] == by_label(PROMPTS, TEXTS)


def test_both_ends_of_ours_agree_in_openrlhfs_dialect() -> None:
    with serving(make_service("toy_lexicon", {}, None, "</s>")) as url:
        reward = load_reward("http", url=f"{url}/get_reward", dialect="openrlhf", eos_token="</s>", batch_size=3)
        assert reward(PROMPTS, TEXTS) == toy_lexicon.load()(PROMPTS, TEXTS)
    with serving(make_service("rouge", {"column": "label"}, None)) as url:
        reward = load_reward("http", url=f"{url}/get_reward", dialect="openrlhf", label_column="summary")
        assert reward(["p", "p"], ["a b", "c"], summary=["a b", "d"]) == [1.0, 0.0]


def test_no_model_is_called_for_no_rows() -> None:
    def fails(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        raise AssertionError

    with serving(Service("fails", CheckedReward(fails, "fails"), None, None)) as url:
        body = b'{"query": [], "prompts": [], "labels": []}'
        assert ask(url, "POST", "/get_reward", body) == (200, {"rewards": [], "scores": [], "extra_logs": {}})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": ["p c"], "prompts": ["q"], "labels": [""]}, "query 0, 'p c', does not start with its prompt, 'q'; "),
        (
            {"query": ["p c", "\nc"], "prompts": ["p", "p\n"]},
            "query 1, '\\nc', does not start with its prompt",
        ),
        ({"query": ["p c"]}, "prompts is missing or not a list of texts"),
        ({"prompts": ["p"]}, "query is missing or not a list of texts"),
        ({"query": "p c", "prompts": ["p"]}, "query is missing or not a list of texts"),
        ({"query": ["p c"], "prompts": ["p", "p"]}, "2 prompts for 1 queries; send one for each"),
        ({"query": ["p c"], "prompts": ["p"], "labels": []}, "labels is not a list of 1 values"),
        ({"query": ["p c"], "prompts": ["p"], "labels": "x"}, "labels is not a list of 1 values"),
        ({"query": ["p c"], "prompts": ["p"], "label": [""]}, "unknown key 'label'; send query, prompts, labels"),
        ({"prompts": ["p"], "completions": ["c"]}, "unknown key 'completions'; send query, prompts, labels"),
    ],
)
def test_a_bad_request_of_openrlhfs_is_one_line_also_in_the_log(
    body: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(make_service("toy_lexicon", {}, None)) as url:
        status, reply = ask(url, "POST", "/get_reward", json.dumps(body).encode())
        assert ask(url, "GET", "/get_reward")[0] == 405
    assert (status, list(reply)) == (400, ["error"])
    assert message in reply["error"]
    assert capfd.readouterr().err == f"error: {reply['error']}\n"


def test_labels_are_nested_only_so_deep() -> None:
    body = b'{"query": ["pc"], "prompts": ["p"], "labels": [%s%s]}' % (b"[" * 64, b"]" * 64)
    with serving(make_service("toy_lexicon", {}, None)) as url:
        status, reply = ask(url, "POST", "/get_reward", body)
    assert (status, reply["error"]) == (400, "labels is nested more than 64 levels deep")


def test_a_failing_reward_is_an_error_that_openrlhfs_client_raises(capfd: pytest.CaptureFixture[str]) -> None:
    def fails(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        raise ValueError("two\nlines")

    with (
        serving(Service("fails", CheckedReward(fails, "fails"), None, None)) as url,
        pytest.raises(urllib.error.HTTPError, match="500"),
    ):
        openrlhf_rewards(f"{url}/get_reward", ["pc"], ["p"], [""])
    assert capfd.readouterr().err == "error: reward fails: it failed with ValueError: two lines\n"


def encoded(text: str) -> str:
    """Credentials as a client sends them."""
    return base64.b64encode(text.encode()).decode()


def test_openrlhf_sends_the_token_as_the_password_of_its_url() -> None:
    def send(url: str) -> dict[str, list]:
        return openrlhf_rewards(url, ["p idiot"], ["p"], [""])

    with serving(make_service("toy_lexicon", {}, SECRET)) as url:
        address = url.removeprefix("http://")
        assert send(f"http://openrlhf:{SECRET}@{address}/get_reward")["reward"] == [-1.0]
        for wrong in (f"{url}/get_reward", f"http://{SECRET}:wrong@{address}/get_reward"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                send(wrong)
        password = encoded(f"a:{SECRET}")
        for header in ("Basic", "Basic !", f"Basic {SECRET}", f"Basic {encoded(SECRET)}", f"Digest {password}"):
            assert ask(url, "GET", "/health", Authorization=header)[0] == 401
        assert ask(url, "GET", "/health", Authorization=f"Basic {password}")[0] == 200


def test_the_command_serves_with_the_end_of_openrlhfs_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: list[Any] = []

    def make(*passed: Any) -> Service:
        arguments.extend(passed)
        raise KeyboardInterrupt  # instead of serving until one

    monkeypatch.setattr(serve, "make_service", make)
    with pytest.raises(KeyboardInterrupt):
        serve.serve(["--model", "length", "--port", "0", "--eos_token", "<|im_end|>"])
    assert arguments == ["length", {}, None, "<|im_end|>"]
    assert serve.parse(["--model", "length"]).eos_token == ""
