"""A page in the run's folder that renews itself while a stage trains: progress, curves, the last responses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from workbench.config.derived import configured_stages
from workbench.config.names import EVALUATION, PPO, PROMPTING, SFT, TUNING
from workbench.evaluation.records import read_logs
from workbench.report.curves import overlaid_plots, training_plots
from workbench.report.page import page, table, text
from workbench.run.distributed import is_main_process
from workbench.run.files import read_json_lines, write_text
from workbench.run.folder import Run
from workbench.tuning.rows import read_method_curves, tuned_rows

SECONDS_BETWEEN_PAGES = 5.0
MAX_SHARE_OF_TIME = 0.05  # a long log takes long to draw
SHOWN_SAMPLES = 8


@contextmanager
def live_page(run: Run, stage: str) -> Iterator[None]:
    """Write the run's live.html every few seconds while the block runs `stage`, and once more at its end."""
    if not is_main_process():
        yield
        return
    ended = threading.Event()

    def renew() -> None:
        seconds = 0.0
        while not ended.wait(max(SECONDS_BETWEEN_PAGES, seconds / MAX_SHARE_OF_TIME)):
            start = time.perf_counter()
            write_live_page(run, running=stage)
            seconds = time.perf_counter() - start

    write_live_page(run, running=stage)
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write_live_page(run, running=None)


def write_live_page(run: Run, running: str | None) -> None:
    """Write live.html from what the stages have logged so far; a browser reloads it while a stage is running.

    A page that cannot be made or written is left out: nothing may stop the training that it is about.
    """
    with suppress(Exception):
        write_text(run.folder / "live.html", live_document(run, running))


def live_document(run: Run, running: str | None) -> str:
    """Return the page of what the stages have logged so far."""
    stages = configured_stages(run.config)
    logs = read_logs(run)
    rows = [[text(stage), stage_state(run, stage, logs.get(stage, []), running)] for stage in stages]
    samples = read_json_lines(run.folder / PPO / "samples.jsonl")[-SHOWN_SAMPLES:]
    columns = list(samples[-1]) if samples else []
    lines = [[f'<div class="text">{text(sample.get(column, ""))}</div>' for column in columns] for sample in samples]
    report = f"{EVALUATION}/report.html"
    body = (
        f"<header><h1>{text(run.config.name)}</h1>"
        f'<p class="soft">Updated {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}</p></header>'
        + (f'<p><a href="{report}">Report of the evaluation</a></p>' if (run.folder / report).is_file() else "")
        + f'<div class="left">{table(["stage", "state"], rows)}</div>'
        + training_plots(logs)
        + (method_plots(run) if TUNING in stages else "")
        + (f'<h2>Last responses</h2><div class="left">{table(columns, lines)}</div>' if samples else "")
    )
    # Between two stages, too, the browser goes on; only what is finished stays as it is.
    later = (EVALUATION, PROMPTING, TUNING)
    is_over = running is None and all(stage in later or run.finished(stage) for stage in stages)
    return page(f"{run.config.name} live", body, refresh_seconds=None if is_over else round(SECONDS_BETWEEN_PAGES))


def method_plots(run: Run) -> str:
    """Return the plots of a comparison of ways to tune: one curve for each method that trains or has trained."""
    return overlaid_plots({title: {SFT: log} for title, log in read_method_curves(run, tuned_rows(run.config)).items()})


def stage_state(run: Run, stage: str, log: Sequence[Mapping[str, Any]], running: str | None) -> str:
    """Return what a stage does, as markup: finished, running, stopped or waiting, and the step it is at."""
    if run.finished(stage):
        return '<span class="good">finished</span>'
    steps = [line["step"] for line in log if "step" in line]
    at_step = f", step {steps[-1]}" if steps else ""
    if stage == running:
        return f"<strong>running{at_step}</strong>"
    return f"stopped{at_step}" if steps else '<span class="soft">waiting</span>'
