"""The playground's page in a real browser: nothing leaves the machine, and no text becomes markup."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import re
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from http_servers import let_loopback_through
from playgrounds import HOSTILE, make_result, make_sample, served

from workbench.config.sources import DataSource
from workbench.playground import page as playground_page
from workbench.playground.comparison import ModelResult, SideBySide
from workbench.playground.markup import side_by_side_markup
from workbench.playground.prompts import ExamplePrompt, PromptFormat
from workbench.playground.server import serve
from workbench.playground.settings import Settings, check_prompt, check_settings

RATIOS = [("Thank ", 2.5), ("<b>you", -1.0), ("", 0.0)]
EXAMPLES = [ExamplePrompt("test <i>", 0, "First.", False), ExamplePrompt("neutral", 0, "Summarize: second.", True)]
FORMAT = PromptFormat("ppo.data", DataSource("x.jsonl", template="Summarize: {text}"), has_messages=False)


def fake_compare(run: Any, text: str, settings: Settings, *, raw: bool) -> SideBySide:
    """Return completions that repeat the settings, after the real checks."""
    check_settings(settings)
    check_prompt(text)
    models = [
        ModelResult("base", [make_sample(f"{settings} raw={raw}", 0.9)] * settings.samples),
        ModelResult("sft", [make_sample(HOSTILE, 0.25)] * settings.samples),
        ModelResult("aligned", [make_sample("Thank <b>you", 0.0, RATIOS)] * settings.samples),
    ]
    return make_result(*models, prompt=text, notes=(HOSTILE,))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page whose models are fakes."""
    models = [SimpleNamespace(title=title) for title in ("base", "sft", "aligned")]
    run = SimpleNamespace(name=f"run {HOSTILE}", models=models, prompt_format=FORMAT, notes=["A note."])
    log = tmp_path_factory.mktemp("server") / "log"
    log.touch()  # the child may be ended before it opens it

    def serve_page(bound: socket.socket) -> None:
        page = playground_page.make_page(run, EXAMPLES, Settings(1.0, 40, 0))  # type: ignore[arg-type]
        serve(page, bound)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(playground_page, "compare", fake_compare)
        with served(serve_page, log) as address:  # gradio leaves an event loop open, which ends with the child
            yield address
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    """What the pages share: gradio's scripts are read once."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def page(context: Any, url: str) -> Iterator[Any]:
    """The open page; fails if it asked another machine, logged an error, or ran a script of a completion."""
    requests: list[str] = []
    messages: list[str] = []
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.goto(url)
    page.wait_for_selector("#complete")
    yield page
    page.close()
    assert [request for request in requests if not request.startswith((f"{url}/", "data:", "blob:"))] == []
    assert messages == []


def complete(page: Any) -> None:
    """Press the button and wait for the columns."""
    page.click("#complete")
    page.wait_for_selector("#output .model")


def test_models_stand_side_by_side_with_bars_and_shades(page):
    complete(page)
    boxes = [model.bounding_box() for model in page.query_selector_all(".model")]
    assert len({box["y"] for box in boxes}) == 1
    assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
    widths = page.evaluate(
        "[...document.querySelectorAll('.track')].map(t => t.firstChild.clientWidth / t.clientWidth)"
    )
    assert widths == pytest.approx([0.9, 0.9, 0.25, 0.25, 0, 0], abs=0.02)
    assert [len(model.query_selector_all(".toxic")) for model in page.query_selector_all(".model")] == [2, 0, 0]
    tokens = page.query_selector_all(".model .token")
    assert [token.get_attribute("title") for token in tokens] == ["+2.500 nats", "-1.000 nats", "0.000 nats"]
    colors, scale = (
        [token.evaluate("token => getComputedStyle(token).backgroundColor") for token in shaded]
        for shaded in (tokens, page.query_selector_all(".scale .token"))
    )
    assert len(set(scale)) == 5
    assert colors[1:] == scale[1:3], "a nat less, and none, as the legend has them"
    assert "minus that under sft" in page.inner_text(".legend")


def test_no_text_becomes_markup(page):
    page.fill("#prompt textarea", HOSTILE.replace("\x1b", ""))
    complete(page)
    time.sleep(0.2)  # a script or an image would have run by now
    assert page.locator(".play script, .play img, .play b, .play i").count() == 0
    assert "<script>alert(1)</script><img src=x onerror=alert(2)> ${alert(3)} {{alert(4)}}" in page.inner_text(
        "#output"
    )
    assert page.inner_text("h1").startswith("run <script>")
    assert page.inner_text(".note") == "A note."


def test_a_phone_shows_one_column_without_scrolling_sideways(page):
    page.set_viewport_size({"width": 390, "height": 844})
    complete(page)
    boxes = [model.bounding_box() for model in page.query_selector_all(".model")]
    assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_settings_and_examples_reach_the_models(page):
    assert page.input_value("#prompt textarea") == "First."
    page.click("#examples input")
    page.get_by_role("option").nth(1).click()
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'Summarize: second.'")
    assert page.is_checked("#raw input")
    for label, value in {"Temperature": "0.7", "Max new tokens": "12", "Seed": "5", "Samples": "2"}.items():
        page.get_by_label(label).fill(value)
    complete(page)
    expected = "Settings(temperature=0.7, max_new_tokens=12, seed=5, samples=2) raw=True"
    assert [node.inner_text() for node in page.query_selector_all(".model:first-child .text")] == [expected] * 2


MISTAKES = [
    ("Prompt", " ", "prompt: empty; type a text"),
    ("Temperature", "-1", "temperature: -1"),
    ("Seed", "", "seed: empty; type a number"),
    ("Samples", "99", "samples: 99"),
]


def test_a_mistake_is_one_line_of_the_page(page):
    for label, value, message in MISTAKES:
        field = page.get_by_label(label, exact=True)
        before = field.input_value()
        field.fill(value)
        page.click("#complete")
        page.locator("#output .error", has_text=message).wait_for()
        assert "\n" not in page.inner_text("#output .error")
        assert page.locator("#output .model").count() == 0
        field.fill(before)


def test_only_this_machine_is_served(url, monkeypatch):
    let_loopback_through(monkeypatch)

    def status(host: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", int(url.rsplit(":", 1)[1]), timeout=10)
        connection.request("GET", "/", headers={"Host": host})
        response = connection.getresponse()
        if response.status == 200:
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'self'" in policy
            assert "base-uri 'none'; form-action 'none'; frame-ancestors 'none'" in policy
            assert not re.search(r"script-src[^;]*unsafe-inline", policy)
            scripts = re.findall(r"<script(?![^>]*src=)[^>]*>(.*?)</script>", response.read().decode(), re.DOTALL)
            hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
            assert hashes
            assert re.findall("'sha256-(.*?)'", policy) == hashes
        connection.close()
        return response.status

    assert [status("127.0.0.1"), status("localhost"), status("attacker.example")] == [200, 200, 400]


def test_markup_names_what_is_empty_or_truncated():
    empty = make_sample("", 0.0)
    cut = dataclasses.replace(empty, completion=dataclasses.replace(empty.completion, text="cut", truncated=True))
    markup = side_by_side_markup(make_result(ModelResult("a", [empty, cut])))
    assert (markup.count("(empty)"), markup.count("(truncated)")) == (1, 1)
    assert "legend" not in markup, "nothing is shaded"
