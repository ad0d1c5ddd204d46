"""The command line: `workbench COMMAND`, which is the same as `python -m` with the command's module."""

from __future__ import annotations

import runpy
import sys

from workbench.config.names import STAGES
from workbench.config.shipped import PROJECT
from workbench.errors import UserError, suggestion
from workbench.run.options import CONSOLE_SCRIPT
from workbench.run.packages import check_not_hidden
from workbench.run.process import exit_on_error

COMMANDS = {
    "detox": ("recipes.detox", "run all stages: SFT, reward model, PPO, evaluation"),
    "sft": ("recipes.sft", "fine-tune the policy on responses"),
    "reward": ("recipes.reward", "train a reward model"),
    "ppo": ("recipes.ppo", "align the policy with the reward"),
    "evaluation": ("recipes.evaluation", "compare the models and write the report"),
    "prompting": ("recipes.prompting", "compare prompts and ways to generate, without training"),
    "tuning": ("recipes.tuning", "compare ways to tune a model: full, LoRA, soft prompts"),
    "sweep": ("recipes.sweep", "run one policy with several rewards, or a grid of settings, and compare the runs"),
    "algorithms": ("recipes.compare", "run several algorithms and seeds from one SFT policy, in one table"),
    "report": ("workbench.report", "list runs with their verdicts"),
    "compare": ("workbench.compare", "compare runs in one table and on one page"),
    "playground": ("workbench.playground", "complete a prompt of your own with every model of a run"),
    "export": ("workbench.export", "write a model of a run, with a model card"),
    "compare_rewards": ("reward_models.compare", "compare rewards on labeled texts"),
    "serve": ("reward_models.serve", "serve a reward over HTTP"),
}
"""Module and summary of each command."""
LAUNCH = "launch"
RECIPES = ("detox", "sweep", "algorithms", *STAGES)
ACCELERATE_CONFIG = PROJECT / "recipes" / "accelerate_config.yaml"


def main() -> None:
    """Run the command that the arguments name and exit: 0, 2 for a user error, else as that command does."""
    exit_on_error(dispatch)


def dispatch(argv: list[str]) -> None:
    """Run the command in `argv`; raises UserError for an unknown one, or if a folder hides its package."""
    if not argv or argv[0] in ("--help", "-h"):
        print(usage())
        return
    name, *arguments = argv
    if name not in COMMANDS and name != LAUNCH:
        raise UserError(f"{name}: no such command{suggestion(name, [*COMMANDS, LAUNCH])}")
    check_not_hidden()
    if name == LAUNCH:
        launch(arguments)
        return
    sys.argv = [f"{CONSOLE_SCRIPT} {name}", *arguments]
    runpy.run_module(COMMANDS[name][0], run_name="__main__")


def launch(arguments: list[str]) -> None:
    """Start a recipe in several processes, as `accelerate launch` does, with the project's settings of Accelerate.

    What precedes the recipe's name goes to Accelerate. Raises UserError without a recipe.
    """
    if {"--help", "-h"} & set(arguments) and not set(RECIPES) & set(arguments):
        print(f"usage: {CONSOLE_SCRIPT} {LAUNCH} [ACCELERATE OPTIONS] {{{','.join(RECIPES)}}} [OPTIONS]")
        print("accelerate launch --help describes the first options, and each recipe's --help the last")
        return
    position = next((index for index, word in enumerate(arguments) if word in RECIPES), None)
    if position is None:
        near = next((near for word in arguments if (near := suggestion(word, RECIPES)).startswith("; did")), "")
        raise UserError(f"{LAUNCH}: no recipe; expected [ACCELERATE OPTIONS] {'|'.join(RECIPES)} [OPTIONS]{near}")
    from accelerate.commands.launch import launch_command, launch_command_parser  # seconds

    settings = ["--quiet", "--config_file", str(ACCELERATE_CONFIG), *arguments[:position]]
    launch_command(launch_command_parser().parse_args([*settings, "--module", "workbench", *arguments[position:]]))


def usage() -> str:
    """Return the commands with their summaries."""
    summaries = {name: summary for name, (_, summary) in COMMANDS.items()}
    summaries[LAUNCH] = "start a recipe in several processes: launch --multi_gpu --num_processes 2 detox ..."
    return "\n".join(
        [
            f"usage: {CONSOLE_SCRIPT} COMMAND [OPTIONS]; COMMAND --help describes the options",
            "",
            *(f"  {name:<16}{summary}" for name, summary in summaries.items()),
            "",
            f"a first run, which needs no network: {CONSOLE_SCRIPT} detox --config quickstart",
        ]
    )


if __name__ == "__main__":
    main()
