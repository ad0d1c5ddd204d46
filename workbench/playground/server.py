"""Serve the page on this machine only, from a bound loopback socket; the page may load nothing from elsewhere."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from workbench.playground.markup import stylesheet
from workbench.playground.sockets import HOST

# gradio's page has inline scripts and styles; what is not on this server is refused by the browser.
CONTENT_SECURITY_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
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
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return response

    # A page of another site whose name resolves to this machine must not reach the models.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return app


def serve(page: gr.Blocks, bound: socket.socket) -> None:
    """Serve the page until interrupted."""
    app = make_app(page, bound.getsockname()[1])
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[bound])
