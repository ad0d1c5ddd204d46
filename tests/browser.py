"""The evaluation's page in a headless Chromium; the fixtures in conftest.py provide it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from random_results import MODELS, random_results

from workbench.evaluation.results import Example, Results
from workbench.report.evaluation_page import evaluation_page

Open = Callable[..., Any]


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@contextmanager
def pages(browser: Any, file: Path) -> Iterator[Open]:
    """Yield a function that opens examples as a page; fails if a page logged, requested or alerted anything."""
    requests: list[str] = []
    messages: list[str] = []
    contexts: list[Any] = []

    def open_page(
        examples: list[Example],
        models: tuple[str, ...] = MODELS,
        results: Results | None = None,
        toxic_words: tuple[str, ...] = (),
        **context: Any,
    ) -> Any:
        document = evaluation_page(results or random_results(examples, models), examples, toxic_words=toxic_words)
        file.write_text(document, encoding="utf-8")
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.set_default_timeout(5000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert messages == []
    assert {url.partition("#")[0] for url in requests} == {file.as_uri()}
