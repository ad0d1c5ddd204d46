"""Where rows come from, and what scores texts: the parts that several sections of the configuration share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from workbench.config.ranges import Name, PositiveInt, Range, Share


@dataclass
class Scorer:
    """Something that scores texts: a reward, a judge, a term of a combination, a member of an ensemble."""

    model: Name
    """A registered name, hub id or folder of a classifier, or package.module:object."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments, for example {target_label: nothate}."""


@dataclass
class BestOf:
    """Several samples of a model, of which the reward chooses one."""

    model: Name
    """Title of the model that samples: base, sft, aligned, or a key of evaluation.models."""
    n: Annotated[int, Range(minimum=2, maximum=1024)] = 4
    """Samples to choose from."""


@dataclass
class Prompted:
    """A model that reads every prompt with a text in front."""

    model: Name
    """Title of the model that completes: base, sft, aligned, or a key of evaluation.models."""
    prefix: str
    """Text in front of the prompt, within the user's turn of a chat: "Be polite.\\n\\n"."""


@dataclass
class AntiExpert:
    """A model that is steered, token by token, away from what an adapter was tuned to (DExperts, arXiv 2105.03023)."""

    model: Name
    """Title of the model that is steered: base, sft, aligned, or a key of evaluation.models that is an adapter."""
    adapter: Name
    """Folder of the anti-expert: a LoRA adapter that was tuned on policy.model to what is not wanted."""
    alpha: Annotated[float, Range(minimum=0, maximum=100)] = 2.0
    """Weight of what its tuning changed of the logits, which is subtracted from the model's."""


@dataclass
class DataSource:
    """Where rows come from and how a row becomes a prompt."""

    path: Name
    """File (.jsonl, .json, .csv, .tsv, .parquet; text also as .gz, .bz2, .xz or .zst), folder, hub id, or toy:NAME."""
    split: Name = "train"
    """Split to read: a split of the dataset, or one of the names in `fractions`."""
    fractions: dict[str, float] | None = None
    """Cut one file into splits by a hash of the prompt, for example {train: 0.9, validation: 0.1}."""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    """Expected name -> column in the file, or list of them: {response: summary, reference: [summary1, summary2]}."""
    template: str = "continuation"
    """dialogue_summary, instruction, continuation, or a template string with {column} fields."""
    chat: bool = False
    """Wrap the prompt as a user turn of the tokenizer's chat template."""
    max_prompt_tokens: PositiveInt | None = None
    """Longer prompts are dropped and counted; default: what the model's context length leaves for a prompt."""
    max_response_tokens: PositiveInt | None = None
    """Training rows whose response is longer are dropped and counted."""
    limit: PositiveInt | None = None
    """Stop after this many rows that fit."""


@dataclass
class PromptSet(DataSource):
    """Prompts for the evaluation; a `reference` column enables ROUGE, BLEU and the references' perplexity."""

    neutral: bool = False
    """Harmless prompts: any change on them is a side effect of the alignment."""
    cluster: Name | None = None
    """Column whose value several prompts share that are not independent, such as conversation, topic or author: they
    are resampled together. Default: every prompt is independent."""


@dataclass
class LabeledSource(DataSource):
    """Labeled texts for a classifier."""

    label: Name | None = None
    """The label of every row, for a file of one kind; default: the column `label`."""


@dataclass(kw_only=True)
class MixedSource(DataSource):
    """A further source of training rows, which are drawn with the run's seed and never repeated."""

    share: Share
    """Fraction of all training rows that come from this source; all shares together are below 1."""
