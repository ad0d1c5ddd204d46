"""Write a model of a finished run so that it loads without this project, with a model card, and push it if asked to."""

# Imports that load torch stand inside the functions, so that --help answers at once.
from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from workbench.config.parsing import explain, make_parser, parse
from workbench.config.schema import Config
from workbench.errors import UserError, suggestion
from workbench.export.exported import Form, Subject, hub_id, shown
from workbench.run.files import atomic_folder, folder_hash, write_text
from workbench.run.folder import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
MODEL = ("config.json", "model*.safetensors*")
REPORTS = ("report.json", "report.html", "calibration.json")


def make_export_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m workbench.export", description=__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--run", type=str, required=True, help="run folder, such as runs/quickstart")
    parser.add_argument("--to", type=str, required=True, help="folder to write, new or empty")
    parser.add_argument(
        "--stage", choices=("ppo", "sft", "reward"), help="stage to export; default: the first of these the run has"
    )
    parser.add_argument("--merge", action="store_true", help="merge the adapter into the base: a model of its own")
    parser.add_argument("--push_to_hub", type=str, metavar="OWNER/NAME", help="upload the folder to the model hub")
    parser.add_argument("--private", action="store_true", help="for you alone, if the repository on the hub is new")
    return parser


def parse_options(argv: Sequence[str]) -> Namespace:
    """The checked options; raises UserError with one line for any mistake."""
    try:
        options = make_export_parser().parse_args(list(argv))
    except ArgumentError as error:
        raise UserError(explain(str(error), {}, list(argv))) from error
    if options.push_to_hub is not None:
        check_hub_name(options.push_to_hub)
    elif options.private:
        raise UserError("--private: it is for --push_to_hub OWNER/NAME, which is not given")
    return options


def check_hub_name(name: str) -> None:
    """Raises UserError unless `name` can be a repository's."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push_to_hub {name}: {str(error).splitlines()[0]}") from error
    if name.count("/") != 1:
        raise UserError(f"--push_to_hub {name}: the owner is missing; give OWNER/NAME")


def open_finished(folder: Path) -> Run:
    """The run in `folder`; raises UserError for a folder that is none."""
    saved = folder / "config.yaml"
    if not saved.is_file():
        places = (folder.parent, *folder.parent.glob("*")) if folder.parent.is_dir() else ()
        runs = sorted(str(place) for place in places if (place / "config.yaml").is_file())
        what = "it has no config.yaml" if folder.is_dir() else "there is no such folder"
        raise UserError(f"--run {folder}: no run folder: {what}{suggestion(str(folder), runs)}")
    config, _ = parse(make_parser("", ""), ["--config", str(saved)])
    return Run(folder, config)


def chosen_stage(run: Run, asked: str | None) -> str:
    """The stage to export; raises UserError for one that the run does not have or has not finished."""
    config = run.config
    had = [name for name in ("ppo", "sft") if (config.ppo if name == "ppo" else config.sft)]
    if config.reward and config.reward.model is None:
        had.append("reward")
    if asked is not None and asked not in had:
        raise UserError(f"--stage {asked}: {run.folder} trains no such model; it has {', '.join(had)}")
    stage = asked or had[0]
    run.record(stage)
    return stage


def chosen_form(config: Config, stage: str, merge: bool) -> Form:
    """What is written; raises UserError for an adapter whose base nobody could load without this project."""
    if stage == "reward":
        return "reward"
    if config.policy.lora is None:
        return "full"
    if not merge and config.policy.model.startswith("toy:"):
        raise UserError(
            f"--merge: needed here: the adapter's base {config.policy.model} exists in this project alone, so that "
            "nobody else could load the adapter"
        )
    return "merged" if merge else "adapter"


def empty_target(folder: Path) -> Path:
    """The folder to write; raises UserError where something is in the way."""
    if folder.is_file():
        raise UserError(f"--to {folder}: a file of that name is in the way; choose another folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--to {folder}: the folder is not empty; choose another, or empty it first")
    return folder.resolve()


def evaluated(run: Run) -> dict[str, Any] | None:
    """The results of the run's evaluation, None where it has none; raises UserError for those of another version."""
    from workbench.evaluation.results import VERSION

    if not run.finished("evaluation"):
        return None
    file = run.folder / "evaluation" / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: missing or damaged; redo the stage with --force evaluation") from error
    if results.get("version") != VERSION:
        raise UserError(
            f"{file}: version {results.get('version')}, and a model card needs {VERSION}; "
            "redo the stage with --force evaluation"
        )
    return results


def load_stage_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a stage saved."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: no whole tokenizer in it; redo the stage with --force {source.name}") from error


def copy_files(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    """Copy a stage's files as they are; raises UserError for one that is missing or torn."""
    from safetensors import SafetensorError, safe_open

    for pattern in patterns:
        files = sorted(source.glob(pattern))
        if not files:
            raise UserError(f"{source}: no {pattern} in it; redo the stage with --force {source.name}")
        for file in files:
            if file.suffix == ".safetensors":
                try:
                    with safe_open(file, "pt"):
                        pass
                except SafetensorError as error:
                    raise UserError(f"{file}: damaged; redo the stage with --force {source.name}") from error
            shutil.copyfile(file, folder / file.name)


def export(run: Run, stage: str, form: Form, target: Path, address: str) -> None:
    """Write model, tokenizer and card into `target`, as a whole or not at all."""
    from workbench.export.card import card
    from workbench.export.merge import merged, state_stops
    from workbench.models.loading import meta_model

    source, policy, results = run.folder / stage, run.config.policy, evaluated(run)
    tokenizer, report, model = load_stage_tokenizer(source), None, None
    if form == "merged":
        model = merged(policy, source)
    elif form != "reward":
        model = meta_model(policy.model if form == "adapter" else str(source))
    if model is not None:
        state_stops(model, tokenizer)
    with atomic_folder(target) as folder:
        if form == "merged":
            assert model is not None
            model.save_pretrained(folder)
        else:
            copy_files(source, folder, ADAPTER if form == "adapter" else MODEL)
            if model is not None:
                model.generation_config.save_pretrained(folder)
        if form == "adapter":
            config = json.loads((folder / "adapter_config.json").read_text())
            config["base_model_name_or_path"] = shown(policy.model)
            write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
        if form == "reward":
            copy_files(source, folder, [name for name in REPORTS if (source / name).is_file()])
            report = json.loads((source / "report.json").read_text()) if (source / "report.json").is_file() else None
        tokenizer.save_pretrained(folder)
        encoder_decoder = model is not None and model.config.is_encoder_decoder
        subject = Subject(run, stage, form, address, folder_hash(folder), encoder_decoder)
        write_text(folder / "README.md", card(subject, results, report))


def push(folder: Path, name: str, private: bool) -> str:
    """Upload the folder to the model hub and return the address; raises UserError where that cannot be."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    flag = " --private" if private else ""
    again = f"then: hf upload {name} {shlex.quote(str(folder))} .{flag}"
    login = UserError(f"{folder}: written, but not pushed: not logged in to the hub; run hf auth login, {again}")
    if get_token() is None:
        raise login
    api = HfApi()
    try:
        url = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(name).private:
            raise UserError(f"{folder}: written, but not pushed: {name} is there already and public; choose another")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export by the alignment workbench")
    except (HTTPError, OSError) as error:  # what the hub answers is both, no network is one of them
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
            raise login from error
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: written, but not pushed: {cause}; mend that, {again}") from error
    return str(url)


def main(argv: list[str]) -> None:
    """Export, and push if asked to; raises UserError for a mistake."""
    options = parse_options(argv)
    target = empty_target(Path(options.to).expanduser())
    run = open_finished(Path(options.run).expanduser())
    stage = chosen_stage(run, options.stage)
    form = chosen_form(run.config, stage, options.merge)
    export(run, stage, form, target, options.push_to_hub or f"./{target.name}")
    print(f"{stage}: {form} model with its card -> {options.to}", flush=True)
    if (run.folder / "evaluation" / "results.json").is_file() and not run.finished("evaluation"):
        print("note: the evaluation was begun anew and is not finished, so the card holds no results", flush=True)
    if form == "adapter" and hub_id(run.config.policy.model) is None:
        print(
            f"note: the base {run.config.policy.model} is a folder of this machine, without which the adapter does "
            "not load; --merge writes a model that loads by itself",
            flush=True,
        )
    if options.push_to_hub:
        print(f"pushed to {push(target, options.push_to_hub, options.private)}", flush=True)
