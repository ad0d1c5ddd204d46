"""The prompt sets of an evaluation, loaded once: prompts, references, and how many prompts training has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from workbench.config.derived import completion_limit
from workbench.config.schema import Config
from workbench.config.sources import DataSource, PromptSet
from workbench.data.mixing import load_training_rows
from workbench.data.prefixes import check_prefixed_lengths, prefix_warnings, prefixed_rows
from workbench.data.prompts import check_vocabulary, encode_responses, load_configured_prompts, row_identities
from workbench.data.templates import require_text
from workbench.errors import UserError, error_context
from workbench.evaluation.clusters import clusters_line, load_clusters
from workbench.models.loading import load_config
from workbench.models.positions import model_context
from workbench.run.reuse import sft_seed

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class LoadedSet:
    """A prompt set as the models read it."""

    name: str
    source: PromptSet
    rows: Rows
    """Prompts as the policy's model reads them."""
    identities: list[str]
    """What identifies the prompt of each row, whatever the template; rows that share it are not independent."""
    clusters: list[str] | None
    """The cluster of each row by the set's column `cluster`, at least as coarse as prompts; None without a column."""
    further_rows: dict[str, Rows]
    """Prompts as each further model with its own tokenizer reads them, by that model."""
    references: list[list[str]]
    """The references of each row: none, one or several."""
    reference_ids: list[tuple[list[int], list[int]]]
    """For every reference of every prompt, the ids of the prompt and of the reference, truncated like a completion."""
    seen_in_training: int
    """Distinct prompts that a stage of the run trains on, whatever the template."""
    prefixed: dict[str, Rows] = field(default_factory=dict)
    """Prompts as each model of evaluation.prompted reads them, by its title."""

    @property
    def units(self) -> list[str]:
        """What identifies the independent unit of each row: its cluster where a column names it, else its prompt."""
        return self.identities if self.clusters is None else self.clusters

    def rows_for(self, model: str) -> Rows:
        """Return the prompts as `model` reads them."""
        return self.further_rows.get(model, self.rows)


def load_prompt_sets(
    config: Config, tokenizers: Mapping[str, PreTrainedTokenizerBase], titles: Mapping[str, str]
) -> tuple[list[LoadedSet], list[str]]:
    """Return the prompt sets, and a line about the rows of each.

    `tokenizers` are those of the policy's model and of each further model with its own; `titles` names the latter.
    Raises UserError where a further model cannot read the same prompts.
    """
    policy_model, trained = config.policy.model, _training_identities(config, tokenizers[config.policy.model])
    sets, lines = [], []
    for name, source in config.evaluation.data.items():
        key = f"evaluation.data.{name}"
        rows, line = _load(config, source, key, policy_model, tokenizers[policy_model])
        lines.append(line)
        identities = row_identities(rows, source)
        clusters = load_clusters(rows, source.cluster, identities, key)
        lines += clusters_line(rows, source.cluster, clusters, key)
        further_rows = {}
        for title, model in titles.items():
            further_rows[model], _ = _load(config, source, key, model, tokenizers[model])
            if row_identities(further_rows[model], source) != identities:
                raised = f", or raise {key}.max_prompt_tokens" if source.max_prompt_tokens else ""
                raise UserError(
                    f"evaluation.models.{title}: its tokenizer drops different prompts from {name} than the policy's "
                    f"does; remove the longest prompts{raised}"
                )
        with error_context(source.path):
            references = [row_references(row) for row in rows]
        loaded = LoadedSet(
            name=name,
            source=source,
            rows=rows,
            identities=identities,
            clusters=clusters,
            further_rows=further_rows,
            references=references,
            reference_ids=_reference_ids(config, rows, references, source, tokenizers[policy_model]),
            seen_in_training=len(trained & set(identities)),
        )
        sets.append(replace(loaded, prefixed=_prefixed(config, loaded, tokenizers, titles)))
    return sets, lines + _prefix_warnings(config, tokenizers, titles)


def row_references(row: Mapping[str, Any]) -> list[str]:
    """Return the references of a row; raises UserError for anything but encodable strings."""
    value = row.get("reference")
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"reference must be a string or a list of strings, found {value!r}")
    return [require_text(text, "reference") for text in texts if text.strip()]


def _load(
    config: Config, source: DataSource, key: str, model: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[Rows, str]:
    """Return a set's rows as `model` reads them, and what was dropped."""
    context = model_context(load_config(model), tokenizer)
    return load_configured_prompts(key, source, tokenizer, max_new_tokens=completion_limit(config), context=context)


def _prefixed(
    config: Config,
    loaded: LoadedSet,
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    titles: Mapping[str, str],
) -> dict[str, Rows]:
    """Return a set's rows as each model of evaluation.prompted reads them; raises UserError where one is too long."""
    prefixed = {}
    for title, prompted in config.evaluation.prompted.items():
        model = titles.get(prompted.model, config.policy.model)
        rows, tokenizer = loaded.rows_for(model), tokenizers[model]
        context = model_context(load_config(model), tokenizer)
        with error_context(f"evaluation.prompted.{title}.prefix"):
            prefixed[title] = prefixed_rows(rows, prompted.prefix, loaded.source, tokenizer, context)
            check_prefixed_lengths(rows, prefixed[title], loaded.name, completion_limit(config), context)
    return prefixed


def _prefix_warnings(
    config: Config, tokenizers: Mapping[str, PreTrainedTokenizerBase], titles: Mapping[str, str]
) -> list[str]:
    """Return a line about each prefix that a model does not read as it is written."""
    lines = []
    for title, prompted in config.evaluation.prompted.items():
        model = titles.get(prompted.model, config.policy.model)
        context = model_context(load_config(model), tokenizers[model])
        warnings = prefix_warnings(prompted.prefix, tokenizers[model], context)
        lines += [f"evaluation.prompted.{title}.prefix: warning: {warning}" for warning in warnings]
    return lines


def _reference_ids(
    config: Config, rows: Rows, references: Sequence[list[str]], source: DataSource, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], list[int]]]:
    """Return the ids of each prompt and reference, the reference truncated to the length limit of completions.

    Raises UserError for a reference with a token that the model has no embedding for.
    """
    context = model_context(load_config(config.policy.model), tokenizer)
    prompts = [row for row, texts in zip(rows, references, strict=True) for _ in texts]
    ids = encode_responses(prompts, [text for texts in references for text in texts], source, tokenizer, context)
    with_references = [row | {"response_ids": reference} for row, reference in zip(prompts, ids, strict=True)]
    check_vocabulary(source, with_references, context.vocabulary)
    length = completion_limit(config)
    return [(row["prompt_ids"], reference[:length]) for row, reference in zip(prompts, ids, strict=True)]


def _training_identities(config: Config, tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the identities of the rows that SFT and PPO train on."""
    context = model_context(load_config(config.policy.model), tokenizer)
    identities: set[str] = set()
    if config.sft:
        sources, _ = load_training_rows(config.sft, sft_seed(config), tokenizer, context)
        for source, rows in sources:
            identities |= set(row_identities(rows, source))
    if config.ppo:
        rows, _ = load_configured_prompts(
            "ppo.data", config.ppo.data, tokenizer, max_new_tokens=config.ppo.max_new_tokens, context=context
        )
        identities |= set(row_identities(rows, config.ppo.data))
    return identities
