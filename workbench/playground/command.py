"""Compare the models of a run on a prompt of your own, in the browser or on the command line."""

# Imports that load torch or gradio are inside the functions, so that --help is fast.
from __future__ import annotations

import dataclasses
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from socket import socket

from workbench.config.schema import Config
from workbench.errors import UserError
from workbench.playground.settings import Settings, check_prompt, check_settings, default_settings
from workbench.playground.sockets import address, bind
from workbench.run.cli import announce, garbage_collection_paused
from workbench.run.folder import Run, open_finished_run
from workbench.run.options import make_options_parser, name_or_path, parse_options

PORT = 7860


def make_playground_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = make_options_parser("workbench.playground", __doc__ or "")
    parser.add_argument("--run", type=name_or_path, help="run folder, such as runs/quickstart")
    parser.add_argument("--prompt", metavar="TEXT", help="print the completions of this prompt; default: open a page")
    parser.add_argument("--raw", action="store_true", help="TEXT is the whole prompt, without the run's template")
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: the evaluation's)")
    parser.add_argument("--max_new_tokens", type=int, help="tokens per completion (default: the evaluation's)")
    parser.add_argument("--seed", type=int, help="the same for all models (default: the evaluation's first)")
    parser.add_argument("--samples", type=int, help="completions per model (default: 1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port of the page; 0: any free one (default: {PORT})")
    return parser


def playground_options(argv: Sequence[str]) -> Namespace:
    """Return the options; raises UserError with one line for an invalid one."""
    options = parse_options(make_playground_parser(), argv, required={"run": "a run folder, such as runs/quickstart"})
    if options.prompt is None and options.raw:
        raise UserError("--raw: needs --prompt TEXT; the page has a checkbox for it")
    if options.prompt is None and find_spec("gradio") is None:
        raise UserError("the page needs gradio: python -m pip install gradio; --prompt TEXT works without it")
    return options


def chosen_settings(config: Config, options: Namespace) -> Settings:
    """Return the evaluation's settings with those that the options set; raises UserError for one out of range."""
    defaults = default_settings(config)
    names = [field.name for field in dataclasses.fields(defaults)]
    settings = dataclasses.replace(
        defaults, **{name: vars(options)[name] for name in names if vars(options)[name] is not None}
    )
    check_settings(settings)
    return settings


def main(argv: list[str]) -> None:
    """Print the completions of --prompt, or serve the page; raises UserError for an invalid option or run."""
    options = playground_options(argv)
    run = open_finished_run(Path(options.run).expanduser())
    settings = chosen_settings(run.config, options)
    # gradio would ask for its newest version and report that it is used.
    os.environ.update({"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"})
    if options.prompt is None:
        with bind(options.port) as bound:
            serve_page(run, settings, bound)
    else:
        check_prompt(options.prompt)
        print_completions(run, settings, options.prompt, raw=options.raw)


def print_completions(run: Run, settings: Settings, prompt: str, *, raw: bool) -> None:
    """Print one prompt's completions by every model, and their scores."""
    announce("loading libraries and models ...")
    with garbage_collection_paused():
        from workbench.playground.comparison import compare
        from workbench.playground.loading import load_run
        from workbench.playground.text import notes_text, plain_text

        loaded = load_run(run)
    result = compare(loaded, prompt, settings, raw=raw)
    print(notes_text(loaded.notes) + plain_text(result), end="", flush=True)


def serve_page(run: Run, settings: Settings, bound: socket) -> None:
    """Serve the page until interrupted."""
    announce("loading libraries and models ...")
    with garbage_collection_paused():
        from workbench.playground.loading import load_run
        from workbench.playground.page import make_page
        from workbench.playground.prompts import read_examples
        from workbench.playground.server import serve

        loaded = load_run(run)
        page = make_page(loaded, read_examples(run, loaded.prompt_format), settings)
    print(f"ready: {address(bound)} (Ctrl-C stops it)", flush=True)
    serve(page, bound)
