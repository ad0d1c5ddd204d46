"""Check the settings of PPO that its loss and its kind of advantage read, and those that they would ignore."""

from __future__ import annotations

import dataclasses

from workbench.config.derived import has_values, is_kl_in_loss, scores_prefixes
from workbench.config.schema import PPOConfig
from workbench.errors import UserError

DEFAULTS = {field.name: field.default for field in dataclasses.fields(PPOConfig)}
# What only values that are learned need, and what only values need.
LEARNED_VALUE_SETTINGS = ("value_learning_rate", "value_warmup_steps", "value_clip_range", "vf_coef")
VALUE_SETTINGS = ("value_model", *LEARNED_VALUE_SETTINGS, "gamma", "lam")
# What only the clipped surrogate needs.
CLIP_SETTINGS = ("advantage", "clip_range", "entropy_coef")
# What only sampled responses, or their scores, need.
SCORE_SETTINGS = ("score_samples", "score_clip", "score_scale", "missing_eos_penalty")
SAMPLING_SETTINGS = ("oversampling", "kl_target", "rollout_batch_size", "min_token_limit", *SCORE_SETTINGS)


def check_algorithm(ppo: PPOConfig) -> None:
    """Raise UserError for settings that the loss or the kind of advantage would not read, or cannot do without."""
    if ppo.offline and ppo.loss != "dpo":
        raise UserError(
            f"ppo.offline: only ppo.loss dpo learns from chosen and rejected responses, and it is {ppo.loss}; set it "
            "to dpo, or offline to false"
        )
    if ppo.ptx_data is None:
        refuse_set(ppo, ("ptx_coef", "ptx_target"), "has no effect without ppo.ptx_data", "ppo.ptx_data")
    if not ppo.norm_by_std and ppo.advantage != "grpo":
        raise UserError(f"ppo.norm_by_std: only for ppo.advantage grpo, and it is {ppo.advantage}; remove it")
    if ppo.loss == "dpo" and ppo.kl_in == "reward":
        raise UserError("ppo.kl_in: the loss of DPO contains the KL penalty, whose weight is ppo.kl_coef; remove it")
    if ppo.loss == "dpo" and ppo.kl_coef == 0:
        raise UserError("ppo.kl_coef: it is the beta of DPO, and 0 leaves the loss constant; set it to, say, 0.1")
    if ppo.oversampling > 1 and ppo.kl_target is not None:
        raise UserError(
            f"ppo.kl_target: {ppo.kl_target} is for the KL of all sampled responses, and ppo.oversampling leaves out "
            "those that differ least; remove one of the two"
        )
    if ppo.advantage == "gdpo":
        reads_sum = "reads the sum of a reward's terms, which ppo.advantage gdpo does not take"
        refuse_set(ppo, ("oversampling", *SCORE_SETTINGS), reads_sum)
        if ppo.kl_in == "reward":
            raise UserError(
                "ppo.kl_in: reward adds the KL penalty to the sum of a reward's terms, which ppo.advantage gdpo does "
                "not take; remove it"
            )
    if ppo.loss == "dpo" and ppo.micro_batch_size == 1:
        raise UserError("ppo.micro_batch_size: 1 is less than a pair, which DPO computes together; set it to 2 or more")
    if ppo.loss != "clip":
        refuse_set(ppo, CLIP_SETTINGS, f"is for ppo.loss clip, and it is {ppo.loss}")
    if ppo.offline:
        refuse_set(ppo, SAMPLING_SETTINGS, "is about sampled responses, and ppo.offline takes those of the data")
        if ppo.samples_per_prompt != 2:
            raise UserError(
                f"ppo.samples_per_prompt: {ppo.samples_per_prompt}, but with ppo.offline a prompt has two responses, "
                "chosen and rejected, which ppo.batch_size counts; set it to 2"
            )
    if is_kl_in_loss(ppo):
        refuse_set(
            ppo,
            ("kl_estimator",),
            "is for a penalty in the reward, and in the loss it is always k3",
            "ppo.kl_in reward",
        )
    if has_values(ppo):
        refuse_set(
            ppo,
            ("oversampling",),
            "leaves responses out, and the value head would be trained on the others alone",
            "ppo.value_model reward",
        )
    if scores_prefixes(ppo):
        refuse_set(ppo, LEARNED_VALUE_SETTINGS, "is about learned values, and ppo.value_model reward learns none")
    if has_values(ppo) or scores_prefixes(ppo):
        return
    name = f"ppo.advantage {ppo.advantage}" if ppo.loss == "clip" else f"ppo.loss {ppo.loss}"
    if ppo.samples_per_prompt < 2:
        raise UserError(
            f"ppo.samples_per_prompt: 1 leaves {name} no other response to compare one with; set it to at least 2"
        )
    refuse_set(ppo, VALUE_SETTINGS, f"is about values, which {name} does not have", "ppo.advantage gae")


def refuse_set(ppo: PPOConfig, names: tuple[str, ...], reason: str, instead: str = "") -> None:
    """Raise UserError for the first of the settings that is not at its default."""
    for name in names:
        if vars(ppo)[name] != DEFAULTS[name]:
            remedy = f", or set {instead}" if instead else ""
            raise UserError(f"ppo.{name}: {vars(ppo)[name]} {reason}; remove it{remedy}")
