"""Every page allows its own scripts and styles by their hashes, and no other."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from typing import Any

import pytest
from random_results import random_examples, random_results

from workbench.report.evaluation_page import evaluation_page
from workbench.report.page import page, table


def hashes(document: str, element: str) -> list[str]:
    """The hashes that a policy needs to allow the inline elements that a browser runs."""
    contents = re.findall(rf"<{element}>(.*?)</{element}>", document, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" for content in contents]


def policy(document: str) -> dict[str, str]:
    """The directives of a page's policy."""
    content = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', document)
    assert content
    return dict(part.strip().split(" ", 1) for part in html.unescape(content[1]).split(";"))


@pytest.mark.parametrize("kind", ["evaluation", "table", "live"])
def test_a_page_allows_only_its_own_script_and_style(kind: str) -> None:
    examples = random_examples(3)
    document = {
        "evaluation": lambda: evaluation_page(random_results(examples), examples, toxic_words=()),
        "table": lambda: page("t", table(["a"], [["b"]])),
        "live": lambda: page("t", "", refresh_seconds=5),
    }[kind]()
    directives = policy(document)
    assert directives == {
        "default-src": "'none'",
        "script-src": " ".join(hashes(document, "script")) or "'none'",
        "style-src": " ".join(hashes(document, "style")),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert (directives["script-src"] != "'none'") == (kind == "evaluation")
    assert not re.search(r"<[^>]+\s(style|on\w+)=", document.partition('id="data"')[0])


def test_a_browser_refuses_what_a_page_did_not_bring(browser: Any, tmp_path: Any) -> None:
    examples = random_examples(3)
    document = evaluation_page(random_results(examples), examples, toxic_words=())
    attack = "<script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'><base href='http://evil/'>"
    file = tmp_path / "report.html"
    file.write_text(document.replace("</main>", f"{attack}</main>"), encoding="utf-8")
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(file.as_uri())
    opened.wait_for_selector("#examples-list > *")  # the page's own script ran
    assert opened.evaluate("window.attacked === undefined")
    assert opened.evaluate("document.baseURI") == file.as_uri()
    context.close()
