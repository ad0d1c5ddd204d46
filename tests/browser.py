"""The evaluation's page in a Chromium without a window; the fixtures in conftest.py hand it out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from random_results import MODELS, results_of

from workbench.report.evaluation_page import evaluation_page

Open = Callable[..., Any]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    place = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if place is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=place)
        yield started
        started.close()


@contextmanager
def pages(browser: Any, file: Path) -> Iterator[Open]:
    """Opens rows as a page; fails at the end if it said anything, asked for anything, or opened a dialog."""
    asked: list[str] = []
    said: list[str] = []
    contexts: list[Any] = []

    def open_page(
        rows: list[dict],
        models: tuple[str, ...] = MODELS,
        results: dict | None = None,
        offensive: tuple[str, ...] = (),
        **context: Any,
    ) -> Any:
        document = evaluation_page(results or results_of(rows, models), rows, offensive=offensive)
        file.write_text(document, encoding="utf-8")
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.set_default_timeout(5000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert asked == [file.as_uri()] * len(contexts)
