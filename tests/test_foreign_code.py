"""What a reward's module, its streams and its threads do to the process is undone as what its calls do."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench.errors import RewardError
from workbench.rewards import foreign_code
from workbench.rewards.contract import CheckedReward
from workbench.rewards.registry import load_reward
from workbench.run.torch_settings import read_torch_settings

TEXTS = ["first", "second", "third"]
MEDDLING = """
import os, sys, torch
torch.set_grad_enabled(False)
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
torch.use_deterministic_algorithms(True)
torch.backends.cudnn.benchmark = True
torch.backends.fp32_precision = "tf32"
torch.set_float32_matmul_precision("medium")
torch.autocast("cpu", torch.bfloat16).__enter__()
os.chdir("/")
sys.setrecursionlimit(10**6)
sys.stdout.close()
"""
REWARD = "def reward(prompts, completions, **columns):\n    return [0.0 for _ in completions]\n"


def score(reward: Callable[..., Any]) -> list[float]:
    """Score three texts."""
    return CheckedReward(reward, "test")(["p"] * 3, TEXTS)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("where", ["module", "attribute", "factory", "signature"])
def test_what_loading_a_reward_changes_is_restored(where: str, modules: Path) -> None:
    indented = MEDDLING.replace("\n", "\n    ")
    text = {
        "module": f"{MEDDLING}\n{REWARD}",
        "attribute": f"{REWARD}real = reward\ndel reward\ndef __getattr__(name):{indented}\n    return real\n",
        "factory": f"{REWARD}def make():{indented}\n    return reward\n",
        "signature": f"{REWARD}class Named:\n  __call__ = staticmethod(reward)\n  @property\n"
        f"  def __signature__(self):{indented}\n    import inspect\n    return inspect.signature(self.__call__)\n"
        "reward = Named()\n",
    }[where]
    (modules / f"meddles_by_{where}.py").write_text(text, encoding="utf-8")
    before = [read_torch_settings(), foreign_code.read_autocast_settings(), Path.cwd(), sys.getrecursionlimit()]
    reward = load_reward(f"meddles_by_{where}:{'make' if where == 'factory' else 'reward'}")
    after = [read_torch_settings(), foreign_code.read_autocast_settings(), Path.cwd(), sys.getrecursionlimit()]
    assert after == before
    assert not sys.stdout.closed
    assert reward(["p"], ["text"]) == [0.0]


def test_a_module_that_is_the_first_to_import_torch_leaves_its_defaults(modules: Path) -> None:
    (modules / "first_to_import.py").write_text(f"{MEDDLING}\n{REWARD}", encoding="utf-8")
    code = (
        f"import sys\nsys.path.insert(0, {str(modules)!r})\nfrom workbench.rewards.registry import load_reward\n"
        "assert 'torch' not in sys.modules\nload_reward('first_to_import:reward')\nimport torch\n"
        "print(torch.is_grad_enabled(), torch.get_default_dtype(), torch.ones(1).device, "
        "torch.is_autocast_enabled('cpu'), torch.are_deterministic_algorithms_enabled())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout == "True torch.float32 cpu False False\n"


@pytest.mark.parametrize("method", ["check_columns", "max_completion_tokens"])
def test_the_optional_methods_are_contained(method: str) -> None:
    class Reward:
        def __call__(self, prompts: list[str], completions: list[str], **columns: list) -> list[float]:
            return [0.0 for _ in completions]

    def changing(*arguments: Any) -> Any:
        torch.set_grad_enabled(False)
        raise SystemExit(0)

    reward = Reward()
    setattr(reward, method, changing)
    with pytest.raises(RewardError, match=rf"reward test: {method}\(\) failed with SystemExit: it called sys.exit"):
        getattr(CheckedReward(reward, "test"), method)(*[{}] * (method == "check_columns"))
    assert torch.is_grad_enabled()


def test_a_limit_of_tokens_is_an_integer() -> None:
    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        return [0.0 for _ in completions]

    reward.max_completion_tokens = lambda: "512"  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match=r"max_completion_tokens\(\) returned '512'; return an integer or None"):
        CheckedReward(reward, "test").max_completion_tokens()


def wrapping(completions: list[str]) -> None:
    """Wrap the streams as programs do that want UTF-8."""
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
    sys.stderr = io.TextIOWrapper(sys.stderr.detach(), encoding="utf-8")
    print("wrapped")
    sys.stdout.close()


def attributes(completions: list[str]) -> None:
    """Use the streams as files."""
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.label = "mine"  # type: ignore[attr-defined]
    sys.stdout.write = len  # type: ignore[method-assign, assignment]
    with sys.stderr as stream:
        stream.write("")
    sys.stdout.buffer.close()
    sys.stdout.reconfigure(encoding="ascii", errors="ignore")  # type: ignore[union-attr]


@pytest.mark.parametrize("use", [wrapping, attributes])
def test_the_streams_stay_open_and_as_they_are(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="utf-8", errors="strict")
    error = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        use(completions)
        return [0.0 for _ in completions]

    score(reward)
    assert sys.stdout is out
    assert sys.stderr is error
    print("é", flush=True)
    print("é", flush=True, file=error)
    assert raw.getvalue().decode() == ("wrapped\n" if use is wrapping else "") + "é\n"
    assert not hasattr(out, "label")


def test_a_process_without_streams_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(foreign_code, "SLOW_SECONDS", 0.01)

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        print("to nobody")
        time.sleep(0.05)
        return [0.0 for _ in completions]

    assert score(reward) == [0.0] * 3
    assert sys.stdout is None


@pytest.mark.parametrize("change", [lambda: torch.set_default_device("cpu"), lambda: torch.device("meta").__enter__()])
@pytest.mark.parametrize("device", [None, "meta"])
def test_the_default_device_is_restored_exactly(change: Callable[[], Any], device: str | None) -> None:
    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        change()
        return [0.0 for _ in completions]

    torch.set_default_device(device)
    try:
        modes = torch._C._len_torch_function_stack()
        score(reward)
        assert torch._C._len_torch_function_stack() == modes
        assert torch.empty(1).device.type == (device or "cpu")
    finally:
        torch.set_default_device(None)
    assert torch._C._len_torch_function_stack() == 0


def test_calls_from_several_threads_leave_the_process_as_it_was() -> None:
    active, most = 0, 0
    out = sys.stdout

    def reward(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        nonlocal active, most
        active += 1
        most = max(most, active)
        time.sleep(0.002)
        active -= 1
        return [0.0 for _ in completions]

    def nesting(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        return CheckedReward(reward, "inner")(prompts, completions)

    threads = [threading.Thread(target=lambda: [score(nesting) for _ in range(10)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sys.stdout is out
    assert most == 1


def test_a_reward_may_call_others_in_a_pool_of_threads() -> None:
    def pooling(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        inner = CheckedReward(lambda prompts, completions, **columns: [1.0 for _ in completions], "inner")
        with ThreadPoolExecutor(2) as pool:
            return [sum(scores) for scores in pool.map(lambda text: inner(["p"], [text]), completions)]

    assert score(pooling) == [1.0] * 3


def test_who_waits_for_another_thread_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_code, "SLOW_SECONDS", 0.05)
    started, ending = threading.Event(), threading.Event()

    def blocking(prompts: list[str], completions: list[str], **columns: list) -> list[float]:
        started.set()
        while not ending.is_set():
            time.sleep(0.01)
        return [0.0 for _ in completions]

    thread = threading.Thread(target=score, args=[blocking])
    thread.start()
    started.wait(timeout=60)
    threading.Timer(0.3, ending.set).start()
    score(lambda prompts, completions, **columns: [0.0 for _ in completions])
    thread.join(timeout=60)
    assert "reward test has been waiting for a reward's call in another thread to end" in capsys.readouterr().err
