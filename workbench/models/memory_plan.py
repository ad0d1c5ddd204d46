"""Say in a plan how much memory a stage will take, of all models that it has in memory, and what to lower."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from workbench.config.derived import configured_stages, micro_batch_size, sampled_responses
from workbench.config.names import BASE, EVALUATION, PPO, SFT
from workbench.config.reward_training import RewardTraining
from workbench.config.schema import Config
from workbench.config.scorers import as_scorer
from workbench.config.sources import Scorer
from workbench.errors import UserError, one_line
from workbench.models.adapters import add_lora, check_rank
from workbench.models.loading import fuse_kernels, load_config, meta_model, policy_precision
from workbench.models.memory import (
    BYTES_OF_GRADIENT,
    BYTES_OF_MOMENTS,
    GIB,
    STEP_COPIES,
    UNCOUNTABLE,
    Peak,
    cache_bytes,
    checkpoint_activations,
    classifier_loss,
    forward_bytes,
    machine_memory,
    ppo_loss,
    sft_loss,
    step_bytes,
    tile_bytes,
    weight_bytes,
)
from workbench.models.precision import autocast_dtype, machine_device, precision_lines, resolve_precision
from workbench.run.distributed import is_sharded_launch

COUNTED: dict[tuple[Any, ...], int] = {}


def policy_lines(config: Config, stage: str, prompt_tokens: int, response_tokens: int) -> list[str]:
    """Return lines on the policy's parameters, its precision, and the memory at the longest texts.

    Raises UserError for an adapter of a higher rank than every layer.
    """
    model = planned_model(config)
    base = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    device = machine_device()
    precision = policy_precision(config.policy, device, model.config)
    return [
        f"{config.policy.model}: {base / 1e6:.1f} M parameters, {trained / 1e6:.2f} M trained "
        f"({100 * trained / base:.2f} %), {config.policy.quantization or precision}",
        *stage_memory_lines(config, stage, prompt_tokens, response_tokens),
        *precision_lines("policy.precision", config.policy.precision, device, model.config),
    ]


def stage_memory_lines(config: Config, stage: str, prompt_tokens: int, response_tokens: int) -> list[str]:
    """Return lines on the memory of a stage of the policy, and for each peak that does not fit what to lower."""

    def count(changed: Config) -> list[Peak]:
        model = planned_model(changed)
        precision = policy_precision(changed.policy, machine_device(), model.config)
        return policy_peaks(changed, stage, model, precision, prompt_tokens, response_tokens)

    return memory_lines(count, config, config.policy.model, prompt_tokens + response_tokens)


def reward_memory_lines(config: Config, train: RewardTraining, tokens: int) -> list[str]:
    """Return lines on the memory of training a reward model, and if it does not fit what to lower."""

    def count(changed: Config) -> list[Peak]:
        assert changed.reward is not None
        assert changed.reward.train is not None
        return [reward_peak(changed.reward.train, tokens)]

    return memory_lines(count, config, train.model, tokens)


def memory_lines(count: Callable[[Config], list[Peak]], config: Config, model: str, tokens: int) -> list[str]:
    """Return a line on the highest of the peaks that `count` returns, and a warning for each that does not fit."""
    try:
        peaks = count(config)
    except UNCOUNTABLE as error:
        model_type = load_config(model).model_type
        return [f"memory not predicted: {model_type} cannot be run without values ({one_line(error)[:100]})"]
    highest = max(peaks, key=lambda peak: peak.total)
    lines = [
        f"memory about {highest.total / GIB:.1f} GiB (weights {highest.weights / GIB:.1f}) at {highest.rows} rows of "
        f"{tokens} tokens"
    ]
    available = machine_memory()
    for peak in peaks:
        if peak.total > available:
            rows = fitting_rows(count, config, peak, available)
            remedy = f"set {peak.key} to {rows}" if rows else "shorten the texts, or take a smaller model"
            lines.append(f"warning: this machine has {available / GIB:.1f} GiB of memory; {remedy}")
    return lines


def fitting_rows(count: Callable[[Config], list[Peak]], config: Config, peak: Peak, available: float) -> int:
    """Return the largest part of the peak's rows with which it fits, or 0; fewer rows may take more memory each."""
    for rows in range(peak.rows // 2, 0, -1):
        if peak.rows % rows == 0:
            fewer = with_value(config, peak.key, rows)
            if next(other for other in count(fewer) if other.key == peak.key).total <= available:
                return rows
    return 0


def with_value(settings: Any, key: str, value: int) -> Any:
    """Return settings with another value at a dotted key."""
    name, _, rest = key.partition(".")
    return replace(settings, **{name: with_value(getattr(settings, name), rest, value) if rest else value})


def planned_model(config: Config) -> PreTrainedModel | PeftModel:
    """Return the policy without values, with its adapter; raises UserError for an adapter of too high a rank."""
    model = meta_model(config.policy.model)
    fuse_kernels(model)
    lora = config.policy.lora
    if lora is None:
        return model
    check_rank(model, lora, "policy.lora.r", config.policy.model)
    model.requires_grad_(False)
    with torch.device("meta"):
        return add_lora(model, lora, "policy")


def policy_peaks(
    config: Config,
    stage: str,
    model: PreTrainedModel | PeftModel,
    precision: str,
    prompt_tokens: int,
    response_tokens: int,
) -> list[Peak]:
    """Return the peaks of SFT, PPO or the evaluation: of an optimizer step, and of sampling."""
    autocast, processes = autocast_dtype(precision), number_of_processes()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights, has_values = policy_weights(config, stage, model, precision), has_value_model(config, stage)
    sharing = processes if is_sharded_launch() else 1
    if config.policy.gradient_checkpointing:
        checkpoint_activations(model)

    def counted(what: str, count: Callable[[], int], rows: int) -> int:
        """Return a count, which takes seconds, once for all plans of this process."""
        key = (what, repr(config.policy), precision, rows, prompt_tokens, response_tokens)
        if key not in COUNTED:
            COUNTED[key] = count()
        return COUNTED[key]

    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if stage == SFT:
        assert config.sft is not None
        step_rows = -(-config.sft.batch_size // processes)
        rows = micro_batch_size(config, SFT, step_rows)
        loss = partial(sft_loss, model, rows, prompt_tokens, response_tokens)
        training = training_bytes(trained, is_accumulated=rows < step_rows) / sharing
        if not model.config.is_encoder_decoder:
            training += tile_bytes(rows * (prompt_tokens + response_tokens), vocabulary, machine_device())
        per_row = counted(SFT, lambda: step_bytes(model, loss, autocast), rows) / rows
        return [Peak(weights / sharing, training, per_row, rows, "sft.micro_batch_size")]
    sampled = config.evaluation.batch_size
    if stage == PPO:
        assert config.ppo is not None
        sampled = min(
            config.ppo.rollout_batch_size or -(-config.ppo.batch_size // processes),
            -(-sampled_responses(config.ppo) // processes),
        )
    cache = counted("cache", lambda: cache_bytes(model, prompt_tokens, response_tokens, autocast), 1)
    cache += STEP_COPIES * 4 * vocabulary
    if stage == EVALUATION:
        cache *= 1 + max((1 + (entry.model != BASE) for entry in config.evaluation.anti_expert.values()), default=0)
        score = partial(ppo_loss, model, sampled, prompt_tokens, response_tokens)
        per_row = max(cache, counted("forward", lambda: forward_bytes(model, score, autocast), sampled) / sampled)
        return [Peak(weights, 0, per_row, sampled, "evaluation.batch_size")]
    assert config.ppo is not None
    trained *= 1 + has_values
    step_rows = -(-config.ppo.minibatch_size // processes)
    rows = micro_batch_size(config, PPO, step_rows)
    loss = partial(ppo_loss, model, rows, prompt_tokens, response_tokens)
    per_row = counted(PPO, lambda: step_bytes(model, loss, autocast), rows) / rows * (1 + has_values)
    training = training_bytes(trained, is_accumulated=rows < step_rows) / sharing
    return [
        Peak(weights, training, per_row, rows, "ppo.micro_batch_size"),
        Peak(weights, BYTES_OF_MOMENTS * trained / sharing, cache, sampled, "ppo.rollout_batch_size"),
    ]


def training_bytes(trained: int, *, is_accumulated: bool) -> int:
    """Return the bytes of the moments, and where a step has several micro batches those of the gradients before it."""
    return (BYTES_OF_MOMENTS + BYTES_OF_GRADIENT * is_accumulated) * trained


def policy_weights(config: Config, stage: str, model: PreTrainedModel | PeftModel, precision: str) -> float:
    """Return the bytes of the weights that the stage has in memory: the policy's, their copies, and the scorers'."""
    weights = weight_bytes(model, precision, config.policy.quantization)
    total = weights * number_of_copies(config, stage)
    if config.policy.lora is not None and has_value_model(config, stage):
        total += 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    networks = {name for scorer in stage_scorers(config, stage) for name in network_names(scorer)}
    has_trained_reward = stage != SFT and config.reward is not None and config.reward.model is None
    if has_trained_reward and config.reward is not None and config.reward.train is not None:
        networks.add(config.reward.train.model)
    return total + sum(4 * classifier_parameters(name) for name in networks)


def number_of_copies(config: Config, stage: str) -> int:
    """Return how many full models are in memory; adapters share one base."""
    if config.policy.lora is not None or stage == SFT:
        return 1
    if EVALUATION not in configured_stages(config) and stage == EVALUATION:  # a comparison of prompts
        return 1
    if stage == PPO:
        return 2 + has_value_model(config, stage)  # with the reference
    # The base, the reference, and if it is another one, the one that samples.
    return 3 if {SFT, PPO} & set(configured_stages(config)) else 2


def has_value_model(config: Config, stage: str) -> bool:
    """Return whether the stage computes values with a model or adapter of their own."""
    return stage == PPO and config.ppo is not None and config.ppo.value_model == "separate"


def number_of_processes() -> int:
    """Return the number of processes of the launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def stage_scorers(config: Config, stage: str) -> list[Scorer]:
    """Return the rewards and judges that a stage loads."""
    scorers = []
    if stage != SFT and config.reward is not None and config.reward.model is not None:
        scorers.append(Scorer(config.reward.model, config.reward.options))
    if stage == PPO and config.reward is not None and config.reward.held_out is not None:
        scorers.append(config.reward.held_out)
    if stage == EVALUATION:
        entries = [*config.evaluation.judges, *config.evaluation.rewards]
        scorers += [as_scorer(entry, "evaluation") for entry in entries]
    return scorers


def network_names(scorer: Scorer) -> list[str]:
    """Return the hub ids, folders and toy names of the networks that a scorer loads, those of its parts included."""
    options = scorer.options
    parts = [*(options.get("terms") or ()), *(options.get("members") or ())]
    if parts:
        names = []
        for part in parts:
            known = (
                {key: part[key] for key in ("model", "options") if key in part} if isinstance(part, Mapping) else part
            )
            names += network_names(as_scorer(known, "options"))
        return names
    name = str(options.get("model", scorer.model))
    is_network = name.startswith("toy:") or ("/" in name and "://" not in name)
    return [name] if is_network else []


def classifier_parameters(name: str) -> int:
    """Return the number of a classifier's weights, or 0 for one that cannot be loaded; whoever loads it says why."""
    try:
        return sum(p.numel() for p in meta_classifier(name).parameters())
    except (UserError, ValueError):
        return 0


def meta_classifier(name: str) -> PreTrainedModel:
    """Return the classifier at a hub id, folder or toy:NAME without its weights."""
    with torch.device("meta"):
        classifier: PreTrainedModel = AutoModelForSequenceClassification.from_config(load_config(name))
    classifier.config.get_text_config().pad_token_id = 0  # decoders refuse several rows without one
    return classifier


def planned_classifier(train: RewardTraining) -> PreTrainedModel | PeftModel:
    """Return the reward model that is trained, without values, with its adapter."""
    model = meta_classifier(train.model)
    if train.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if train.lora is None:
        return model
    with torch.device("meta"):
        return add_lora(model, train.lora, "default", key="reward.train.lora", classifier=True)


def reward_peak(train: RewardTraining, tokens: int) -> Peak:
    """Return the peak of training a reward model on rows of so many tokens."""
    model = planned_classifier(train)
    precision = resolve_precision(train.precision, machine_device(), model.config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = -(-train.batch_size // number_of_processes())
    texts = 2 * rows if train.objective == "preference" else rows
    step = step_bytes(model, partial(classifier_loss, model, texts, tokens), autocast_dtype(precision))
    averaged = 4 * trained if train.average_from is not None else 0
    return Peak(
        weight_bytes(model, "fp32", None) + averaged,
        training_bytes(trained, is_accumulated=False),
        step / rows,
        rows,
        "reward.train.batch_size",
    )
