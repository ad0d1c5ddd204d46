"""Export a model of a finished run so that it loads without this project, with a model card; optionally push it."""

# Imports that load torch are inside the functions, so that --help is fast.
from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.config.names import EVALUATION, PPO, REWARD, SFT
from workbench.config.schema import Config
from workbench.errors import UserError
from workbench.export.exported import ExportedModel, Form, hub_id, lm_eval_command, public_name
from workbench.run.files import atomic_folder, content_hash, read_json, write_text
from workbench.run.folder import Run, open_finished_run
from workbench.run.options import make_options_parser, name_or_path, parse_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workbench.evaluation.results import Results

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = ("config.json", "model*.safetensors*")
REPORT_FILES = ("report.json", "report.html", "calibration.json")
FORM_NAMES: dict[Form, str] = {
    "adapter": "adapter",
    "merged": "merged model",
    "full": "full model",
    "reward": "reward model",
}


def make_export_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = make_options_parser("workbench.export", __doc__ or "")
    parser.add_argument("--run", type=name_or_path, help="run folder, such as runs/quickstart")
    parser.add_argument("--to", type=name_or_path, help="output folder, new or empty")
    parser.add_argument(
        "--stage", choices=(PPO, SFT, REWARD), help="stage to export; default: the first of these that the run has"
    )
    parser.add_argument("--merge", action="store_true", help="merge the adapter into the base")
    parser.add_argument("--push_to_hub", metavar="OWNER/NAME", help="upload the folder to the model hub")
    parser.add_argument("--private", action="store_true", help="create the repository on the hub as private")
    return parser


def export_options(argv: Sequence[str]) -> Namespace:
    """Return the checked options; raises UserError with one line for any error."""
    options = parse_options(make_export_parser(), argv, required={"run": "a run folder", "to": "a new or empty folder"})
    if options.push_to_hub is not None:
        check_hub_name(options.push_to_hub)
    elif options.private:
        raise UserError("--private: needs --push_to_hub OWNER/NAME")
    return options


def check_hub_name(name: str) -> None:
    """Raise UserError unless `name` is a valid repository name with an owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push_to_hub {name}: {str(error).splitlines()[0]}") from error
    if name.count("/") != 1:
        raise UserError(f"--push_to_hub {name}: the owner is missing; use OWNER/NAME")


def choose_stage(run: Run, requested: str | None) -> str:
    """Return the stage to export; raises UserError where the run does not have it or has not finished it."""
    config = run.config
    is_trained = {PPO: config.ppo, SFT: config.sft, REWARD: config.reward and config.reward.model is None}
    stages = [stage for stage, trained in is_trained.items() if trained]
    if requested is not None and requested not in stages:
        raise UserError(f"--stage {requested}: {run.folder} has no such stage; available: {', '.join(stages)}")
    stage = requested or stages[0]
    run.verified_record(stage)
    return stage


def with_trained_precision(run: Run, stage: str) -> Run:
    """Return the run with the precision that the stage was trained in, which `auto` chose there."""
    if run.config.policy.precision != "auto":
        return run
    policy = dataclasses.replace(run.config.policy, precision=run.record(stage)["inputs"]["precision"])
    return Run(run.folder, dataclasses.replace(run.config, policy=policy))


def choose_form(config: Config, stage: str, merge: bool) -> Form:
    """Return what to write; raises UserError for an adapter on a toy base, which only this project can load."""
    if stage == REWARD:
        return "reward"
    if config.policy.lora is None:
        return "full"
    if not merge and config.policy.model.startswith("toy:"):
        raise UserError(
            f"--merge: required for {config.policy.model}: the base exists only in this project, so the adapter alone "
            "would not load"
        )
    return "merged" if merge else "adapter"


def require_empty(folder: Path) -> Path:
    """Return the absolute path of the folder to write; raises UserError unless it is new or empty."""
    if folder.is_file():
        raise UserError(f"--to {folder}: a file with this name exists; choose another folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--to {folder}: the folder is not empty; choose another folder, or empty it first")
    return folder.resolve()


def finished_results(run: Run) -> Results | None:
    """Return the results of the evaluation, None where it is not finished; raises UserError for another version."""
    from workbench.evaluation.results_files import read_results

    if not run.finished(EVALUATION):
        return None
    return read_results(run.folder / EVALUATION / "results.json")


def load_stage_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer that a stage saved; raises UserError where it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source}: the tokenizer cannot be loaded; redo the stage with --force {source.name}"
        ) from error


def copy_files(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    """Copy files of a stage unchanged; raises UserError where one is missing or corrupt."""
    from safetensors import SafetensorError, safe_open

    for pattern in patterns:
        files = sorted(source.glob(pattern))
        if not files:
            raise UserError(f"{source}: no file {pattern}; redo the stage with --force {source.name}")
        for file in files:
            if file.suffix == ".safetensors":
                try:
                    with safe_open(file, "pt"):
                        pass
                except SafetensorError as error:
                    raise UserError(f"{file}: corrupt; redo the stage with --force {source.name}") from error
            shutil.copyfile(file, folder / file.name)


def export(run: Run, stage: str, form: Form, target: Path, address: str) -> ExportedModel:
    """Write model, tokenizer and card into `target`, all or nothing; return what was written."""
    from workbench.evaluation.records import read_reward_report
    from workbench.export.card import card
    from workbench.export.merge import merge_adapter, set_generation_config
    from workbench.models.loading import meta_model

    source, policy, results = run.folder / stage, run.config.policy, finished_results(run)
    tokenizer, report, model = load_stage_tokenizer(source), None, None
    if form == "merged":
        model = merge_adapter(policy, source)
    elif form != "reward":
        model = meta_model(policy.model if form == "adapter" else str(source))
    if model is not None:
        set_generation_config(model, tokenizer)
    with atomic_folder(target) as folder:
        if form == "merged":
            assert model is not None
            model.save_pretrained(folder)
        else:
            copy_files(source, folder, ADAPTER_FILES if form == "adapter" else MODEL_FILES)
            if model is not None:
                model.generation_config.save_pretrained(folder)
        if form == "adapter":
            config = read_json(folder / "adapter_config.json", remedy=f"redo the stage with --force {stage}")
            config["base_model_name_or_path"] = public_name(policy.model)
            write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
        if form == "reward":
            copy_files(source, folder, [name for name in REPORT_FILES if (source / name).is_file()])
            report = read_reward_report(run)
        tokenizer.save_pretrained(folder)
        is_encoder_decoder = model is not None and model.config.is_encoder_decoder
        exported = ExportedModel(run, stage, form, address, content_hash(folder) or "", is_encoder_decoder)
        write_text(folder / "README.md", card(exported, results, report))
    return exported


def push(folder: Path, name: str, private: bool) -> str:
    """Upload the folder to the model hub and return its address; raises UserError where that fails."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    flag = " --private" if private else ""
    retry = f"then: hf upload {name} {shlex.quote(str(folder))} .{flag}"
    not_logged_in = UserError(f"{folder}: written, not pushed: not logged in to the hub; run hf auth login, {retry}")
    if get_token() is None:
        raise not_logged_in
    api = HfApi()
    try:
        url = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(name).private:
            raise UserError(f"{folder}: written, not pushed: {name} exists and is public; choose another name")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export from the alignment workbench")
    except (HTTPError, OSError) as error:  # an error response from the hub is both, a network failure is one
        if isinstance(error, HfHubHTTPError) and error.response.status_code == 401:
            raise not_logged_in from error
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: written, not pushed: {cause}; fix that, {retry}") from error
    return str(url)


def main(argv: list[str]) -> None:
    """Export a model, and push it where --push_to_hub is given; raises UserError for an invalid option or run."""
    options = export_options(argv)
    target = require_empty(Path(options.to).expanduser())
    run = open_finished_run(Path(options.run).expanduser())
    stage = choose_stage(run, options.stage)
    run = with_trained_precision(run, stage)
    form = choose_form(run.config, stage, options.merge)
    model = export(run, stage, form, target, options.push_to_hub or f"./{target.name}")
    print(f"{stage}: exported the {FORM_NAMES[form]} and its model card to {options.to}", flush=True)
    if (run.folder / EVALUATION / "results.json").is_file() and not run.finished(EVALUATION):
        print("note: the evaluation was restarted and is not finished, so the card has no results", flush=True)
    if form == "adapter" and hub_id(run.config.policy.model) is None:
        print(
            f"note: the base {run.config.policy.model} is a local folder, and the adapter does not load without it; "
            "--merge writes a model that does not need it",
            flush=True,
        )
    if form != "reward":
        print(f"to measure it on benchmarks: {lm_eval_command(model, options.to)}", flush=True)
    if options.push_to_hub:
        print(f"pushed to {push(target, options.push_to_hub, options.private)}", flush=True)
