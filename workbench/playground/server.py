"""Serve the page on this machine only, from a bound loopback socket; the page may load nothing from elsewhere."""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable, Sequence

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from workbench.playground.markup import stylesheet
from workbench.playground.sockets import HOST
from workbench.report.page import source_hash

# gradio's page has inline scripts, which are allowed by their hashes; it evaluates its own templates and adds styles.
INLINE_SCRIPT = re.compile(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL)
MAX_BODY_BYTES, MAX_CONNECTIONS = 4 * 2**20, 256
BASE = '<base href="./" />'
"""What gradio's page says of its address, which is the root: relative addresses mean the same without it."""
# The default theme's fonts are not installed everywhere.
THEME = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
THEME.set(block_info_text_color="*neutral_500")


def make_app(page: gr.Blocks, port: int) -> FastAPI:
    """Return the application that serves the page at /."""
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        server_name=HOST,
        server_port=port,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=THEME,
        css=stylesheet(),
    )

    @app.middleware("http")
    async def restrict(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        size = request.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in request.headers or not size.isdecimal() or int(size) > MAX_BODY_BYTES:
            return Response(f"a body needs a Content-Length of at most {MAX_BODY_BYTES} bytes", 413)
        response = await call_next(request)
        scripts: list[str] = []
        if response.headers.get("Content-Type", "").startswith("text/html"):
            content = b"".join([chunk async for chunk in response.body_iterator]).decode()  # type: ignore[attr-defined]
            scripts = INLINE_SCRIPT.findall(content)
            headers = {name: value for name, value in response.headers.items() if name != "content-length"}
            response = Response(content.replace(BASE, ""), response.status_code, headers)
        response.headers["Content-Security-Policy"] = content_security_policy(scripts)
        return response

    # A page of another site whose name resolves to this machine must not reach the models.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return app


def content_security_policy(scripts: Sequence[str]) -> str:
    """Return the policy of a page: nothing from other servers, and of inline scripts only these."""
    hashes = "".join(f" '{source_hash(script)}'" for script in scripts)
    return (
        f"default-src 'self' data: blob:; script-src 'self' 'unsafe-eval'{hashes}; style-src 'self' 'unsafe-inline'; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def serve(page: gr.Blocks, bound: socket.socket) -> None:
    """Serve the page until interrupted."""
    app = make_app(page, bound.getsockname()[1])
    uvicorn.Server(uvicorn.Config(app, log_level="warning", limit_concurrency=MAX_CONNECTIONS)).run(sockets=[bound])
