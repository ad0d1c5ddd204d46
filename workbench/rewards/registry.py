"""The registry of rewards: by name, by model, or by "package.module:object".

An object named in the configuration becomes a reward as follows:
- an object whose first parameter is `prompts`, `completions` or `completion_ids` is itself the reward, and takes no
  options;
- anything else (a class or a factory function) is called with the options and returns the reward.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.config.names import REWARD
from workbench.config.reward_training import target_name
from workbench.config.schema import RewardConfig
from workbench.config.sources import Scorer
from workbench.errors import UserError, error_context, suggestion
from workbench.rewards.contract import CheckedReward, Judge, RewardFunction
from workbench.rewards.foreign_code import contained_setup
from workbench.run.packages import PACKAGES, check_not_hidden

if TYPE_CHECKING:
    from workbench.run.folder import Run

REWARDS = {
    "toxicity": "reward_models.classifier:load",
    "preference": "reward_models.preference:load",
    "lexicon": "reward_models.lexicon:Lexicon",
    "toy_lexicon": "reward_models.toy_lexicon:load",
    "profanity": "reward_models.profanity:load",
    "length": "reward_models.length:length",
    "repetition": "reward_models.repetition:repetition",
    "rouge": "reward_models.rouge:load",
    "combine": "reward_models.combine:load",
    "ensemble": "reward_models.ensemble:load",
    "http": "reward_models.http:load",
}

OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
FIRST_PARAMETERS = ("prompts", "completions", "completion_ids")  # of our rewards, and of TRL's


def load_reward(model: str, /, **options: Any) -> CheckedReward:
    """Load a registered name, a classifier's hub id or folder, or "package.module:object" as a checked reward."""
    return CheckedReward(_build(model, options), model)


def load_scorer(scorer: Scorer) -> CheckedReward:
    """Load the reward that a Scorer names."""
    return load_reward(scorer.model, **scorer.options)


@dataclass(frozen=True)
class ScorerLoader:
    """Loads each scorer once, however many keys of a stage name it."""

    loaded: list[tuple[Scorer, CheckedReward]] = field(default_factory=list)

    def __call__(self, scorer: Scorer) -> CheckedReward:
        """Return the reward that a Scorer names; scorers with other options are others."""
        for known, reward in self.loaded:
            if known == scorer:
                return reward
        reward = load_scorer(scorer)
        self.loaded.append((scorer, reward))
        return reward


def load_judge(scorer: Scorer, load: Callable[[Scorer], CheckedReward] = load_scorer) -> Judge:
    """Load the checked toxicity judge that a Scorer names; raises UserError for a reward that offers none."""
    return judge_of(load(scorer), scorer)


def judge_of(reward: CheckedReward, scorer: Scorer) -> Judge:
    """Return the toxicity judge that a scorer's reward offers; raises UserError if it offers none."""
    judge = reward.judge()
    if judge is None:
        raise UserError(f"{scorer.model} is not a judge: it has no judge() method that returns one")
    return judge


def load_run_reward(run: Run) -> CheckedReward:
    """Load the reward that the run's configuration names, or the one that its `reward` stage trained."""
    reward = run.config.reward
    if reward is None:
        raise UserError("reward: the configuration has no reward section")
    if reward.model is not None:
        with error_context("reward.model"):
            return load_reward(reward.model, **reward.options)
    run.verified_record(REWARD)
    return load_trained_reward(reward, run.folder / REWARD)


def load_trained_reward(reward: RewardConfig, folder: Path) -> CheckedReward:
    """Load the model that the `reward` stage saved in `folder`, with the options it was trained with."""
    train = reward.train
    assert train is not None
    options: dict[str, Any] = {"max_tokens": train.max_tokens}
    if train.objective == "classifier":
        options = {"target_label": target_name(train), "polarity_pair": tuple(train.polarity_pair)}
    return load_reward(str(folder), **options | reward.options)


def check_options(name: str, options: dict[str, Any], key: str) -> None:
    """Raise UserError for an option that the registered reward `name` does not have."""
    _check_options(inspect.signature(_import(REWARDS[name])), options, key)


def _build(model: str, options: dict[str, Any]) -> RewardFunction:
    """Return the reward that `model` names."""
    if model in REWARDS:
        return _make(_import(REWARDS[model]), model, options)
    if model.startswith(("http://", "https://")):
        raise UserError(f"{model} is a URL; use the http reward with the option {{url: {model}}}")
    if model.startswith("toy:") or "/" in model or Path(model).expanduser().is_dir():
        labels, _ = _import("reward_models.network:load_labels")(model)
        has_named_label = {"target_label", "penalized_label"} & options.keys()
        kind = "preference" if len(labels) == 1 and not has_named_label else "toxicity"
        return _make(_import(REWARDS[kind]), model, {"model": model, **options})
    if OBJECT.fullmatch(model):
        return _make(_import(model), model, options)
    raise UserError(
        f"unknown reward {model!r}{suggestion(model, REWARDS)}; "
        "a reward can also be a classifier's owner/name or folder, or package.module:object"
    )


def _import(target: str) -> Any:
    """Return the object that "package.module:object" names."""
    module_name, _, object_name = target.partition(":")
    # A launcher puts the script's folder on the path, not the working directory, where user modules are.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if module_name.split(".")[0] in PACKAGES:
        check_not_hidden()
    with contained_setup(f"{target}: cannot import {module_name}:", f"{target} has been loading"):
        module = importlib.import_module(module_name)
        if hasattr(module, object_name):
            return getattr(module, object_name)
        public = [name for name in dir(module) if not name.startswith("_")]
    raise UserError(f"{target}: {module_name} has no {object_name!r}{suggestion(object_name, public)}")


def _make(target: Any, name: str, options: dict[str, Any]) -> RewardFunction:
    """Return `target` if it is a reward itself, else the reward it builds from the options."""
    if not callable(target):
        raise UserError(f"{name}: a {type(target).__name__} is neither a reward nor a function that makes one")
    signature = _signature(target, name)
    if _is_reward(signature):
        if options:
            raise UserError(f"{name}: it is a reward itself and takes no options; remove {', '.join(options)}")
        return target
    _check_options(signature, options, name)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise UserError(f"{name}: {error}; available: {', '.join(signature.parameters)}") from error
    with contained_setup(f"{name}: it cannot be built:", f"reward {name} has been loading"):
        reward = target(**options)
    if not callable(reward) or not _is_reward(_signature(reward, name)):
        raise UserError(f"{name}: it returned a {type(reward).__name__}, not a reward(prompts, completions, **columns)")
    return reward


def _signature(target: Any, name: str) -> inspect.Signature:
    """Return the signature of a user's object, which may have one of its own making."""
    with contained_setup(f"{name}: its signature cannot be read:", f"reward {name} has been loading"):
        return inspect.signature(target)


def _check_options(signature: inspect.Signature, options: dict[str, Any], key: str) -> None:
    """Raise UserError for an option that is not a parameter."""
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return
    for option in options:
        if option not in signature.parameters:
            hint = suggestion(str(option), signature.parameters) or "; it takes no options"
            raise UserError(f"{key}: no option {option!r}{hint}")


def _is_reward(signature: inspect.Signature) -> bool:
    """Return whether a callable with this signature is a reward rather than a factory of one."""
    return next(iter(signature.parameters), "") in FIRST_PARAMETERS
