"""What a comparison of ways to tune needs, loaded and checked before anything trains."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from workbench.config.derived import completion_limit
from workbench.config.schema import Config, SFTConfig
from workbench.config.tuning import ZERO_SHOT
from workbench.data.context import Context
from workbench.data.mixing import load_training_rows, shuffled_together
from workbench.data.texts import TextSet, load_texts
from workbench.errors import UserError, error_context
from workbench.evaluation.loaded_scorers import LoadedScorers, load_scorers
from workbench.evaluation.plan import check_stop_strings
from workbench.evaluation.prompt_sets import LoadedSet, load_prompt_sets
from workbench.models.loading import load_config, load_policy_tokenizer
from workbench.models.model_checks import policy_notes
from workbench.models.positions import model_context
from workbench.models.tuning import check_method, tuned_context
from workbench.run.trainer_args import check_trainer_args
from workbench.run.trainer_plan import planned_steps
from workbench.sft.plan import SFTPlan, trainer_plan
from workbench.tuning.memory import method_memory_lines
from workbench.tuning.refusals import check_settings
from workbench.tuning.rows import TunedRow, tuned_rows


@dataclass(frozen=True)
class TuningPlan:
    """What the stage loaded to check the configuration; `run` continues with the same objects."""

    lines: list[str]
    config: Config
    """The configuration without reward training and PPO."""
    tokenizer: PreTrainedTokenizerBase
    rows: list[TunedRow]
    sft: SFTPlan
    sft_with_replay: SFTPlan | None
    """With the rows of sft.more_data; None where no method asks for them."""
    sets: list[LoadedSet]
    texts: list[TextSet]
    scorers: LoadedScorers

    @property
    def trained_rows(self) -> list[TunedRow]:
        """Return the rows that train something."""
        return [row for row in self.rows if row.method.method != ZERO_SHOT]


def plan_tuning(config: Config) -> TuningPlan:
    """Load data, tokenizer and scorers, and check every method; raises UserError if they do not fit together."""
    assert config.tuning is not None
    tuning, rows = config.tuning, tuned_rows(config)
    check_settings(config)
    model = config.policy.model
    with error_context("policy.model"):
        tokenizer = load_policy_tokenizer(model)
        notes = policy_notes(model, tokenizer)
    for row in rows:
        check_method(config.policy, row.method, f"tuning.methods.{row.title}")
    check_stop_strings(config.evaluation.stop_strings, [tokenizer])
    context = smallest_context(model_context(load_config(model), tokenizer), rows)
    config = without_later_stages(config, context)
    assert config.sft is not None
    scorers = load_scorers(config)
    note = virtual_tokens_note(rows)
    with error_context(note) if note else nullcontext():
        plain, lines = sft_plan(dataclasses.replace(config.sft, more_data=[]), config, tokenizer, context)
    with_replay = None
    if any(row.method.replay for row in rows):
        if not config.sft.more_data:
            raise UserError("tuning.methods: replay needs sft.more_data, which is missing; name the data to replay")
        with_replay, lines = sft_plan(config.sft, config, tokenizer, context)
    check_trainer_args(trainer_plan(config, load_config(model), len(plain.train_rows), 0))
    trained = config.sft if with_replay is not None else dataclasses.replace(config.sft, more_data=[])
    sets, reports = load_prompt_sets(dataclasses.replace(config, sft=trained), {model: tokenizer}, {})
    scorers.check_sets({each.name: each.rows for each in sets}, any(any(each.references) for each in sets))
    reports += [
        f"evaluation.data.{each.name}: the training data contains {each.seen_in_training} of these prompts"
        for each in sets
        if each.seen_in_training
    ]
    texts = []
    for name, source in tuning.texts.items():
        if name in config.evaluation.data:
            raise UserError(f"tuning.texts.{name}: evaluation.data has this name, too; choose another one")
        text_set, line = load_texts(f"tuning.texts.{name}", name, source, tokenizer, context)
        texts.append(text_set)
        reports.append(line)
    steps_per_epoch = -(-len(plain.train_rows) // config.sft.batch_size)
    steps = max(1, math.ceil(planned_steps({}, config.sft.max_steps, steps_per_epoch, config.sft.epochs)))
    # With replay there are more rows, so that an epoch would have more steps.
    budget = f"{len(rows)} rows: {', '.join(row.title for row in rows)}; {steps} steps of {config.sft.batch_size} each"
    config = dataclasses.replace(config, sft=dataclasses.replace(config.sft, max_steps=steps))
    memory = method_memory_lines(config, rows, *longest_row(plain))
    truncation = scorers.truncation_lines(completion_limit(config))
    lines = [*lines, *reports, *notes, *scorers.notes, budget, *truncation, *memory]
    return TuningPlan(lines, config, tokenizer, rows, plain, with_replay, sets, texts, scorers)


def smallest_context(context: Context, rows: list[TunedRow]) -> Context:
    """Return what the model reads in every row, so that all see the same data: virtual tokens take some of it."""
    contexts = [tuned_context(context, row.method, f"tuning.methods.{row.title}") for row in rows]
    lengths = [each.length for each in contexts if each.length is not None]
    responses = [each.response_length for each in contexts if each.response_length is not None]
    return dataclasses.replace(context, length=min(lengths, default=None), response_length=min(responses, default=None))


def virtual_tokens_note(rows: list[TunedRow]) -> str:
    """Return where an error about too little room comes from: the method with the most virtual tokens; "" without."""
    most = max(rows, key=lambda row: row.method.virtual_token_count())
    count = most.method.virtual_token_count()
    return f"beside the {count} virtual tokens of tuning.methods.{most.title}" if count else ""


def without_later_stages(config: Config, context: Context) -> Config:
    """Return the configuration without reward training and PPO, with prompts that leave room for virtual tokens."""
    reward = config.reward if config.reward is not None and config.reward.model is not None else None
    limit = completion_limit(config)
    if context.response_length is not None and limit > context.response_length:
        raise UserError(
            f"evaluation.max_new_tokens: {limit} is above {context.response_length}, the most tokens that every method "
            "leaves for a completion; lower it"
        )
    data = config.evaluation.data
    if context.length is not None:
        room = context.length - (limit if context.is_decoder_only else 0)
        if room < 1:
            raise UserError(
                f"evaluation.max_new_tokens: {limit} leaves no room for a prompt in the {context.length} tokens that "
                "every method leaves; lower it"
            )
        data = {
            name: dataclasses.replace(source, max_prompt_tokens=min(source.max_prompt_tokens or room, room))
            for name, source in data.items()
        }
    evaluation = dataclasses.replace(config.evaluation, max_new_tokens=limit, data=data)
    return dataclasses.replace(config, reward=reward, ppo=None, evaluation=evaluation)


def sft_plan(
    sft: SFTConfig, config: Config, tokenizer: PreTrainedTokenizerBase, context: Context
) -> tuple[SFTPlan, list[str]]:
    """Return the rows of one way to mix the training data, and the lines about them."""
    sources, lines = load_training_rows(sft, config.seed, tokenizer, context)
    return SFTPlan(lines, tokenizer, shuffled_together([rows for _, rows in sources], config.seed), []), lines


def longest_row(plan: SFTPlan) -> tuple[int, int]:
    """Return the tokens of prompt and response of the longest row."""
    longest = max(plan.train_rows, key=lambda row: len(row["prompt_ids"]) + len(row["response_ids"]))
    return len(longest["prompt_ids"]), len(longest["response_ids"])
