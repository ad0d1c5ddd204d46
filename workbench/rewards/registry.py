"""The swap zone: rewards by name, by model, or by "package.module:object".

An object named in configuration is found like this:
- without options, an object whose first parameter is `prompts`, `completions` or `completion_ids` is the reward itself;
- anything else (a class, a function that makes a reward) is called with the options and returns the reward.
A reward with a method `toxicity(texts) -> probabilities` can also judge.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

from workbench.errors import UserError, one_line
from workbench.rewards.contract import CheckedReward, Judge, JudgingReward, RewardModel, checked, checked_judge

TABLE = {
    "toxicity": "reward_models.classifier:load",
    "preference": "reward_models.preference:load",
    "lexicon": "reward_models.lexicon:Lexicon",
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
    """The checked reward: a TABLE name, a classifier's hub id or folder, or "package.module:object"."""
    return checked(_build(model, options), model)


def load_judge(model: str, /, **options: Any) -> Judge:
    """The checked toxicity judge of a reward named as for load_reward; UserError if it cannot judge."""
    judge = judge_of(load_reward(model, **options))
    if judge is None:
        raise UserError(f"{model} cannot judge: it has no method toxicity(texts) that returns probabilities")
    return judge


def judge_of(reward: CheckedReward) -> Judge | None:
    """The reward as a checked toxicity judge, or None if it cannot judge."""
    inner = reward.reward
    return checked_judge(inner.toxicity, reward.name) if isinstance(inner, JudgingReward) else None


def _build(model: str, options: dict[str, Any]) -> RewardModel:
    if model in TABLE:
        return _make(_find(TABLE[model]), model, options)
    if model.startswith(("http://", "https://")):
        raise UserError(f"{model} is an address; name reward http and give it as its option: {{url: {model}}}")
    if model.startswith("toy:") or "/" in model or Path(model).expanduser().is_dir():
        labels, _ = _find("reward_models.network:load_labels")(model)
        kind = "preference" if len(labels) == 1 else "toxicity"
        return _make(_find(TABLE[kind]), model, {"model": model, **options})
    if OBJECT.fullmatch(model):
        return _make(_find(model), model, options)
    near = difflib.get_close_matches(model, TABLE, n=1)
    raise UserError(
        f"unknown reward {model!r}{f', did you mean {near[0]}?' if near else '.'} Known: {', '.join(TABLE)}; "
        "or give a classifier's owner/name or folder, or package.module:object"
    )


def _find(target: str) -> Any:
    """The object that "package.module:object" names."""
    module_name, _, object_name = target.partition(":")
    # A launcher puts the script's folder on the path, not the one it was started in, where user modules are.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module can fail in any way while it is imported
        raise UserError(f"{target}: cannot import {module_name}: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, object_name)
    except AttributeError as error:
        near = difflib.get_close_matches(object_name, dir(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{target}: {module_name} has no {object_name!r}{hint}") from error


def _make(found: Any, name: str, options: dict[str, Any]) -> RewardModel:
    """The reward itself, or what its factory makes of the options."""
    if not callable(found):
        raise UserError(f"{name}: a {type(found).__name__} is neither a reward nor a function that makes one")
    signature = inspect.signature(found)
    if not options and _is_reward(signature):
        return found
    try:
        signature.bind(**options)
    except TypeError as error:
        raise UserError(f"{name}: {error}; its options are: {_options(signature)}") from error
    try:
        reward = found(**options)
    except UserError:
        raise
    except Exception as error:  # a factory can fail in any way, a user's above all
        raise UserError(f"{name}: it cannot be made: {one_line(error)}") from error
    if not callable(reward) or not _is_reward(inspect.signature(reward)):
        made = type(reward).__name__
        raise UserError(f"{name}: it made a {made}, not a reward(prompts, completions, **columns)")
    return reward


def _is_reward(signature: inspect.Signature) -> bool:
    return next(iter(signature.parameters), "") in FIRST_PARAMETERS


def _options(signature: inspect.Signature) -> str:
    """The options of a factory, or why there are none."""
    if _is_reward(signature):
        return "none, since it is a reward itself"
    return ", ".join(signature.parameters) or "none"
