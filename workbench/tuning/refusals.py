"""Settings of the other recipes that a comparison of ways to tune would ignore, or that would favour one method."""

from __future__ import annotations

from workbench.config.derived import STRATEGIES
from workbench.config.names import TUNING
from workbench.config.schema import Config, SFTConfig
from workbench.config.sources import DataSource
from workbench.config.tuning import LoraSettings
from workbench.errors import UserError, shorten
from workbench.evaluation.records import refuse_fail_on

EVALUATED = "is not read: nothing is evaluated while a method trains; leave it out"
# By argument of the trainer: the setting that decides instead, for every method.
OWNED = {
    "learning_rate": "would override the rate of every method; set tuning.methods.NAME.learning_rate",
    "max_steps": "is the budget that all methods share; set sft.max_steps",
    "num_train_epochs": "is the budget that all methods share; set sft.epochs",
    "per_device_train_batch_size": "would change the rows of a step; set sft.batch_size and sft.micro_batch_size",
    "gradient_accumulation_steps": "would change the rows of a step; set sft.batch_size and sft.micro_batch_size",
    "auto_find_batch_size": "would give a method that runs out of memory another batch; set sft.micro_batch_size",
    "data_seed": "would differ from the one that methods and data start from; set seed",
    "seed": "would differ from the one that methods and data start from; set seed",
    "load_best_model_at_end": EVALUATED,
    "metric_for_best_model": EVALUATED,
    "greater_is_better": EVALUATED,
    "per_device_eval_batch_size": EVALUATED,
    **dict.fromkeys(("eval_strategy", "eval_steps", "eval_on_start", "eval_delay"), EVALUATED),
    **dict.fromkeys(("eval_accumulation_steps", "eval_use_gather_object"), EVALUATED),
}
# By setting of a source of texts: why none of them can have it.
OF_PROMPTS = {
    "template": "a text is read as it is",
    "chat": "a text is read as it is",
    "max_prompt_tokens": "texts that do not fit into the context are left out, and no others",
    "max_response_tokens": "texts that do not fit into the context are left out, and no others",
}


def check_settings(config: Config) -> None:
    """Raise UserError for a setting that the comparison would not read, with the one that it reads."""
    assert config.tuning is not None
    assert config.sft is not None
    refuse_fail_on(config, TUNING)
    policy = config.policy
    if policy.quantization is not None:
        raise UserError(
            f"policy.quantization: {policy.quantization} is not read here, where each method has its own; set "
            "tuning.methods.NAME.quantization"
        )
    if policy.lora not in (None, LoraSettings()):
        raise UserError(
            "policy.lora: not read here, where each method has its own; set r, alpha and target_modules of "
            "tuning.methods.NAME"
        )
    check_sft(config.sft)
    for key in ("models", *STRATEGIES):
        titles = vars(config.evaluation)[key]
        if titles:
            raise UserError(
                f"evaluation.{key}: {', '.join(titles)}: not compared here, where the rows are tuning.methods; "
                f"remove {key}"
            )
    for name, source in config.tuning.texts.items():
        check_texts(source, f"tuning.texts.{name}")


def check_sft(sft: SFTConfig) -> None:
    """Raise UserError for a setting of supervised fine-tuning that no method reads, or that would favour one."""
    for name, value in sft.trainer_args.items():
        if name in OWNED:
            raise UserError(f"sft.trainer_args.{name}: {shorten(value)} {OWNED[name]}")
    if sft.learning_rate != SFTConfig.learning_rate:
        raise UserError(
            f"sft.learning_rate: {sft.learning_rate:g} is not read here, where each method has its own; set "
            "tuning.methods.NAME.learning_rate"
        )
    if sft.validation is not None:
        raise UserError(
            "sft.validation: not read here, where methods are compared on evaluation.data and tuning.texts; remove it"
        )


def check_texts(source: DataSource, key: str) -> None:
    """Raise UserError for a setting of prompts, which texts do not have."""
    defaults = vars(DataSource(source.path))
    for name, reason in OF_PROMPTS.items():
        value = vars(source)[name]
        if value != defaults[name]:
            raise UserError(f"{key}.{name}: {shorten(value)}: {reason}; remove {name}")
