"""The HTML skeleton that all pages share, escaped text, and tables."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from importlib.resources import files

# Characters without a glyph: C1 controls, marks that reverse the text after them, lone surrogates.
INVISIBLE = (range(0x80, 0xA0), range(0x202A, 0x202F), range(0x2066, 0x206A), range(0xD800, 0xE000))


def page(title: str, body: str, script: str = "", *, refresh_seconds: int | None = None) -> str:
    """Return an HTML document; `body` is markup, `title` is text. A browser reloads it every `refresh_seconds`."""
    refresh = f'<meta http-equiv="refresh" content="{refresh_seconds}">' if refresh_seconds is not None else ""
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{content_security_policy(script, style)}">'
        f"{refresh}<title>{text(title)}</title><style>{style}</style></head>\n<body><main>{body}</main>"
        + (f"<script>{script}</script>" if script else "")
        + "</body></html>\n"
    )


def content_security_policy(script: str, style: str) -> str:
    """Return the policy of a page: nothing loads, and no script and no style runs but these, whatever a model wrote."""
    allowed_script = f"'{source_hash(script)}'" if script else "'none'"
    return (
        f"default-src 'none'; script-src {allowed_script}; style-src '{source_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def source_hash(content: str) -> str:
    """Return the hash by which a Content-Security-Policy allows an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def text(value: object) -> str:
    """Return a value as text, never as markup; an invisible character becomes its symbol (U+2400) or its number."""
    return html.escape(visible_text(value), quote=True)


def visible_text(value: object) -> str:
    """Return a value with a symbol or number for every invisible character, such as those that control a terminal."""
    return "".join(_visible(character) for character in str(value))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return a table; cells are markup, the heading and the caption are text, the first cell of a row is its header.

    A row of a single cell is the heading of the rows below it.
    """
    titles = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    lines = "".join(_table_row(row, len(head)) for row in rows)
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}<thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def _table_row(cells: Sequence[str], columns: int) -> str:
    """Return a row of a table, or a heading across all columns."""
    if len(cells) == 1:
        return f'<tr class="group"><th scope="rowgroup" colspan="{columns}">{cells[0]}</th></tr>'
    return f'<tr><th scope="row">{cells[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in cells[1:]) + "</tr>"


def _visible(character: str) -> str:
    """Return a character, or its replacement if it has no glyph."""
    code = ord(character)
    if code < 32 and character not in "\n\t":
        return chr(0x2400 + code)
    if code == 127:
        return "\u2421"
    return f"\u27e8U+{code:04X}\u27e9" if any(code in part for part in INVISIBLE) else character
