"""Every test is offline, seeded and leaves no Accelerate state behind."""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models gain nothing from more, and processes that share cores lose much

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job, whose children would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from workbench.models import precision

ROOT = Path(__file__).resolve().parent.parent


# Slowest first (make test): with one file per worker at a time, a slow one at the end keeps one worker busy alone.
SLOW_FILES = (
    *("test_processes", "test_evaluation_recipe", "test_quantization", "test_resume", "test_report_browser"),
    *("test_evaluation_cache", "test_recipes", "test_ppo", "test_recipe_commands", "test_ppo_options"),
    *("test_checkpoints", "test_reward_recipe", "test_export_code", "test_report_blurred", "test_readme"),
    *("test_export_mistakes", "test_export", "test_loaded_once", "test_playground", "test_playground_page"),
)

# The same examples every time; `make faults` tries many others.
HYPOTHESIS: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
hypothesis_settings.register_profile("default", derandomize=True, max_examples=100, **HYPOTHESIS)
hypothesis_settings.register_profile("thorough", max_examples=1000, **HYPOTHESIS)
hypothesis_settings.load_profile("default")

gc.disable()  # for the collection: what it imports stays


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow files first."""
    order = {name: number for number, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """Hide what collection imported from the garbage collector, which otherwise walks it after every stage."""
    gc.collect()
    gc.freeze()
    gc.enable()


def refuse(self: socket.socket, address: object) -> None:
    """Stands in for socket.connect."""
    if self.family != socket.AF_UNIX:
        raise OSError(f"a test tried to reach {address}; tests are offline")


@pytest.fixture(autouse=True, scope="session")
def same_precision() -> Iterator[None]:
    """Let `auto` be fp32, also for the runs of a module's fixtures; it would be bf16 on some machines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "cpu_has_bf16", lambda: False)
        yield


@pytest.fixture(autouse=True)
def offline_and_seeded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse the network, seed torch and forget Accelerate's global state."""
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # trainers set it
    torch.manual_seed(0)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()


@pytest.fixture
def in_project(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's root as working directory, from which paths in README and YAML are meant."""
    monkeypatch.chdir(ROOT)
    return ROOT


@pytest.fixture(scope="session")
def exportable_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trained runs that all tests of the export share."""
    from exports import make_runs  # what it imports takes seconds that other tests need not wait

    folder = tmp_path_factory.mktemp("export")
    make_runs(folder)
    return folder


@pytest.fixture
def workspace(exportable_runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the exportable runs as working directory."""
    monkeypatch.chdir(exportable_runs)
    return exportable_runs


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    from browser import chromium

    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens rows as the evaluation's page, which may ask for nothing and say nothing."""
    from browser import pages

    with pages(browser, tmp_path / "report.html") as open_page:
        yield open_page
