"""The project outside its checkout: shipped configurations by name, the wheel's files, the console script."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from setuptools import Distribution

from workbench import __main__ as command_line
from workbench.config.shipped import find_config, shipped_configs
from workbench.errors import UserError
from workbench.export.command import make_export_parser
from workbench.rewards.registry import load_reward
from workbench.run import folder as run_folder
from workbench.run.packages import PACKAGES, check_not_hidden

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(name: str) -> str:
    """Return the line that a --config ends with."""
    with pytest.raises(UserError) as error:
        find_config(name)
    return str(error.value)


def test_a_shipped_configuration_is_found_by_name_and_an_existing_path_wins(empty: Path) -> None:
    for name, file in shipped_configs().items():
        assert find_config(name) == file == ROOT / "recipes" / "configs" / f"{name}.yaml"
    (empty / "gpt2_rtp").mkdir()
    assert find_config("gpt2_rtp") == shipped_configs()["gpt2_rtp"], "a folder is not a configuration"
    (empty / "quickstart").write_text("name: mine", encoding="utf-8")
    assert find_config("quickstart") == Path("quickstart")


def test_an_unknown_name_lists_the_shipped_ones_or_the_closest(empty: Path) -> None:
    assert refusal("quikstart").endswith("; did you mean quickstart?")
    assert refusal("recipes/configs/quickstart.yaml").endswith("; did you mean quickstart, which is shipped?")
    assert refusal("zzz").endswith(f"; available: {', '.join(shipped_configs())}")
    for number in range(20):
        (empty / f"{number}.yaml").touch()
    assert refusal("zzz").endswith(f"; available: {', '.join(shipped_configs())}"), "however many files there are"
    (empty / "my_run.yaml").touch()
    assert refusal("my_rum").endswith("; did you mean my_run.yaml?")


def test_the_wheel_has_every_file_of_the_packages(in_project: Path, tmp_path: Path) -> None:
    wheel = Distribution({"script_name": "setup.py"})
    wheel.parse_config_files(["pyproject.toml"])
    wheel.include_package_data = False  # a file that git knows would do too, but a wheel may be built without git
    build = wheel.get_command_obj("build_py")
    build.build_lib = str(tmp_path)
    build.ensure_finalized()
    packed = {Path(name).relative_to(tmp_path) for name in build.get_outputs(include_bytecode=False)}
    files = {
        path.relative_to(ROOT)
        for package in ("workbench", *PACKAGES)
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == packed
    names = {str(path) for path in packed}
    assert {"recipes/configs/quickstart.yaml", "workbench/toy/models/t5/model.safetensors"} < names
    assert {"workbench/report/style.css", "workbench/report/report.js", "recipes/accelerate_config.yaml"} < names


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("hides_as", ["package", "module"])
def test_what_hides_a_package_is_named(
    package: str, hides_as: str, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_not_hidden()
    file = empty / package / "__init__.py" if hides_as == "package" else empty / f"{package}.py"
    file.parent.mkdir(exist_ok=True)
    file.touch()
    monkeypatch.syspath_prepend(empty)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "argv", ["workbench", "detox", "--config", "quickstart", "--print_config"])
    with pytest.raises(SystemExit) as leaving:
        command_line.main()
    assert leaving.value.code == 2
    location = file.parent if hides_as == "package" else file
    assert capsys.readouterr().err == (
        f"error: {location}: it hides this project's own package {package}; rename it, or run from another folder\n"
    )


def test_a_registered_reward_names_the_module_that_hides_its_package(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty / "reward_models.py").touch()
    monkeypatch.syspath_prepend(empty)
    for name in [name for name in sys.modules if name.split(".")[0] == "reward_models"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"reward_models\.py: it hides this project's own package reward_models"):
        load_reward("length")


def test_every_command_exists_and_is_in_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    command_line.dispatch([])
    usage = capsys.readouterr().out
    assert len(usage.splitlines()) == len(command_line.COMMANDS) + 5
    for name, (module, summary) in command_line.COMMANDS.items():
        assert f"  {name:<16}{summary}\n" in usage
        assert find_spec(module) is not None
    with pytest.raises(UserError, match=r"^detx: no such command; did you mean detox\?$"):
        command_line.dispatch(["detx"])


def test_a_command_names_itself_as_it_was_started(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_export_parser().prog == "python -m workbench.export"
    monkeypatch.setattr(sys, "argv", ["/bin/workbench"])
    for words in (["detox", "--help"], ["export", "--help"]):
        with pytest.raises(SystemExit) as leaving:
            command_line.dispatch(words)
        assert leaving.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: workbench {words[0]} ")


def test_launch_passes_its_options_to_accelerate_and_the_rest_to_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[SimpleNamespace] = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", started.append)
    command_line.dispatch(["launch", "--multi_gpu", "--num_processes", "2", "detox", "--config", "quickstart"])
    (arguments,) = started
    assert (arguments.module, arguments.training_script) == (True, "workbench")
    assert arguments.training_script_args == ["detox", "--config", "quickstart"]
    assert (arguments.multi_gpu, arguments.num_processes) == (True, 2)
    packaged = Path(arguments.config_file)
    assert packaged.is_relative_to(ROOT / "recipes")
    assert packaged.read_bytes() == (ROOT / "accelerate_config.yaml").read_bytes(), (
        "copy the project's into the package"
    )
    with pytest.raises(UserError, match=r"^launch: no recipe; expected "):
        command_line.dispatch(["launch", "--num_processes", "2"])


def test_an_installed_copy_inside_another_repository_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_folder.git_commit() is not None
    installed = tmp_path / "site-packages" / "folder.py"
    installed.parent.mkdir()
    installed.touch()
    identity = "-c user.name=a -c user.email=a@example.org"
    assert os.system(f"cd {tmp_path} && git init -q && git {identity} commit -q --allow-empty -m x") == 0
    monkeypatch.setattr(run_folder, "__file__", str(installed))
    assert run_folder.git_commit() is None


def test_launch_explains_itself_and_a_misspelled_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    command_line.dispatch(["launch", "--help"])
    assert capsys.readouterr().out.startswith("usage: workbench launch [ACCELERATE OPTIONS] {detox,")
    with pytest.raises(UserError, match=r"no recipe; .*did you mean detox\?"):
        command_line.dispatch(["launch", "detx"])


@pytest.mark.parametrize("module", sorted({module for module, _ in command_line.COMMANDS.values()}))
def test_a_usage_line_names_python_once(module: str) -> None:
    source = (ROOT / f"{module.replace('.', '/')}.py", ROOT / module.replace(".", "/") / "command.py")
    texts = [file.read_text(encoding="utf-8") for file in source if file.is_file()]
    assert not [text for text in texts if 'make_options_parser("python' in text]
