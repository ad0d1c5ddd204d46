"""The configuration: typed dataclasses, one YAML file per experiment, overrides on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

STAGES = ("sft", "reward", "ppo", "evaluation")


@dataclass
class DataSource:
    """Where rows come from and how a row becomes a prompt."""

    path: str
    """File (.jsonl, .json, .csv, .parquet), folder of such files, hub data set id, or embedded:NAME."""
    split: str = "train"
    """Split to read: a split of the data set, or one of the names in `fractions`."""
    fractions: dict[str, float] | None = None
    """Cut one file into splits by a hash of the prompt, for example {train: 0.9, validation: 0.1}."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column map, our name -> name in the file, for example {response: summary}."""
    template: str = "continuation"
    """dialogue_summary, instruction, continuation, or a text with {column} fields."""
    chat: bool = False
    """Wrap the prompt as a user turn of the tokenizer's chat template."""
    max_prompt_tokens: int | None = None
    """Longer prompts are dropped and counted; default: what the model's window leaves for a prompt."""
    max_response_tokens: int | None = None
    """Training rows whose response is longer are dropped and counted."""
    limit: int | None = None
    """Stop at this many rows that fit."""


@dataclass
class LoraSettings:
    """Low-rank adapters (arXiv 2106.09685)."""

    r: int = 16
    """Rank."""
    alpha: int = 32
    """Scale numerator: the update is multiplied by alpha / r."""
    target_modules: list[str] | None = None
    """Names of the layers to adapt; default: every linear layer but the output head."""


@dataclass
class PolicyConfig:
    """The model to align."""

    model: str
    """Hub id, folder, or embedded:NAME."""
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    """Train adapters on a frozen base; null trains every parameter."""
    quantization: Literal["nf4", "int8"] | None = None
    """Hold the frozen base in 4 or 8 bits (bitsandbytes); needs LoRA."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the matrix products; adapters, value head and optimizer stay in fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


@dataclass
class SFTConfig:
    """Supervised fine-tuning; leave the section out and the base model is the reference."""

    data: DataSource
    """Rows with the template's columns and `response`."""
    validation: DataSource | None = None
    """Rows on which the loss is measured at the end."""
    epochs: float = 1.0
    """Passes over the data; ignored when max_steps is set."""
    max_steps: int | None = None
    """Optimizer steps."""
    batch_size: int = 16
    """Rows per optimizer step, all processes and accumulation steps together."""
    micro_batch_size: int | None = None
    """Rows per forward pass and process; default: batch_size over the processes."""
    learning_rate: float = 2e-4
    """Peak rate."""
    save_every: int = 200
    """Optimizer steps between checkpoints."""
    trainer_args: dict[str, Any] = field(default_factory=dict)
    """Passed on to transformers.TrainingArguments unchanged."""


@dataclass
class RewardTraining:
    """Train a toxicity classifier, or a preference model, as the reward model."""

    model: str
    """Checkpoint to start from: hub id, folder, or embedded:NAME; an encoder or a decoder."""
    data: DataSource
    """Rows with `text` and `label`, or with `chosen` and `rejected` (and the template's columns, or none)."""
    validation: DataSource
    """Rows on which the model is judged before use."""
    objective: Literal["classifier", "preference"] = "classifier"
    """Tell labels apart, or score the chosen answer of a pair above the rejected one (arXiv 2203.02155)."""
    wanted_label: str | None = None
    """The label that PPO shall be paid for; a classifier needs one."""
    more_data: list[DataSource] = field(default_factory=list)
    """Further sources to learn from, with the same columns."""
    clean_data: list[DataSource] = field(default_factory=list)
    """Sources of clean texts (column `text`), such as the policy's own domain: learned from under the wanted label."""
    clean_validation: DataSource | None = None
    """Clean texts of the policy's domain on which false positives are counted."""
    class_weights: Literal["balanced"] | None = None
    """Weigh labels in the loss so that each counts the same, however rare."""
    variants: float = 0.0
    """Share of the texts that is learned in another case, without punctuation, misspelled or obfuscated."""
    average_from: float | None = None
    """Average the weights over the steps after this share of the training (arXiv 1803.05407)."""
    early_stopping: int | None = None
    """Stop after so many evaluations (each save_every steps) without a better AUROC or pair accuracy; keep the best."""
    lora: LoraSettings | None = None
    """Train an adapter, which is merged into the saved model; default: train every weight."""
    threshold: float = 0.5
    """The report calls a text toxic from this probability on."""
    polarity_pair: list[str] = field(
        default_factory=lambda: ["Thank you, that was kind of you.", "You are a stupid idiot."]
    )
    """A polite and a rude sentence; the first must score higher."""
    epochs: float = 2.0
    """Passes over the data."""
    batch_size: int = 32
    """Rows per optimizer step, all processes together."""
    learning_rate: float = 5e-5
    """Peak rate."""
    max_tokens: int = 128
    """Longer texts are cut at the end."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the matrix products."""
    save_every: int = 200
    """Optimizer steps between checkpoints."""
    trainer_args: dict[str, Any] = field(default_factory=dict)
    """Passed on to transformers.TrainingArguments unchanged."""


@dataclass
class RewardConfig:
    """The reward: give `model`, or `train` to make one."""

    model: str | None = None
    """A name in reward_models.TABLE, hub id or folder of a classifier, or package.module:object; wins over `train`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the reward, for example {wanted_label: nothate}."""
    sanity_pair: list[str] | None = None
    """A good and a bad response; the reward must score the first higher before PPO starts."""
    watch: str | None = None
    """A second reward, named like `model`, that scores the answers to ppo.validation; nothing is learned from it."""
    watch_options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the reward that watches."""
    train: RewardTraining | None = None
    """Train the reward model in the stage `reward`."""


@dataclass
class PPOConfig:
    """Proximal policy optimization (arXiv 1707.06347) under a KL penalty (arXiv 1909.08593)."""

    data: DataSource
    """Prompts; further columns are handed to the reward by name."""
    steps: int = 100
    """Rollouts, each followed by epochs x minibatches optimizer steps."""
    batch_size: int = 64
    """Prompts per rollout, all processes together."""
    minibatch_size: int = 16
    """Responses per optimizer step, all processes together."""
    micro_batch_size: int | None = None
    """Responses per forward pass and process; default: minibatch_size over the processes."""
    epochs: int = 4
    """Passes over each rollout."""
    learning_rate: float = 1e-4
    """Peak rate of the policy."""
    value_learning_rate: float | None = None
    """Peak rate of the value head; default: learning_rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rates fall over the run."""
    kl_coef: float = 0.05
    """Weight of the per-token KL penalty against the reference."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the penalty: log ratio, half its square, or the non-negative k3."""
    kl_target: float | None = None
    """Nats per response; adapts kl_coef towards it by the proportional controller of arXiv 1909.08593."""
    kl_horizon: int = 10_000
    """Episodes over which the controller acts."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """Lambda of generalized advantage estimation (arXiv 1506.02438)."""
    clip_range: float = 0.2
    """Clip of the probability ratio."""
    value_clip_range: float = 0.2
    """Clip of the value change."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus, per token."""
    target_kl: float | None = None
    """Nats per token; a minibatch that has moved further from the policy that sampled ends the rollout's epochs."""
    value_model: Literal["shared", "separate"] = "shared"
    """Values from a head on the policy's own states, or from a model (with LoRA: an adapter) of their own."""
    value_warmup_steps: int = 0
    """Steps at the start that train the value alone."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    max_new_tokens: int = 32
    """Longest response, in tokens."""
    min_token_limit: int | None = None
    """Draw each step's token limit between this and max_new_tokens, instead of always taking the latter."""
    temperature: float = 1.0
    """Sampling temperature; it divides the logits in old, new and reference log-probabilities alike."""
    score_samples: int = 0
    """Normalize scores by mean and deviation over this many (whole batches) of the initial policy's; 0: do not."""
    score_clip: float | None = None
    """Scores, normalized or not, are clipped to +- this."""
    score_scale: float = 1.0
    """Scores are divided by this after clipping."""
    missing_eos_penalty: float = 0.0
    """Subtracted from the score of a response that was cut at max_new_tokens."""
    checkpoint_every: int = 20
    """Steps between checkpoints, and between samples in samples.jsonl."""
    checkpoints_kept: int = 2
    """Newest checkpoints to keep."""
    validation: DataSource | None = None
    """Prompts to answer at every checkpoint; the best policy on them, by score less KL penalty, is kept in ppo/best."""
    self_checks: bool = True
    """Before the first update: ratio 1, KL 0, a reference of its own, gradients everywhere, an ordered sanity pair."""


@dataclass
class EvaluationConfig:
    """Base, SFT and aligned outputs on the same prompts with the same random numbers."""

    data: dict[str, DataSource]
    """Named prompt sets; a set with a `reference` column gets ROUGE."""
    neutral: list[str] = field(default_factory=list)
    """Names of the sets in `data` whose prompts provoke nothing: what changes there is what alignment broke."""
    models: dict[str, str] = field(default_factory=dict)
    """Further models to compare, by a title: an adapter's folder, a model's folder, or a hub id."""
    judges: list[str] = field(default_factory=list)
    """Toxicity scorers beside the reward model: names in reward_models.TABLE, models, or package.module:object."""
    judge_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keyword arguments of a judge, by its name, for example {owner/name: {wanted_label: ok}}."""
    samples: int = 1
    """Answers to each prompt; of several, the worst and the chance of a toxic one are reported (arXiv 2009.11462)."""
    seeds: list[int] | None = None
    """Seeds of the answers, each with all samples; several give a spread. Default: the experiment's seed."""
    similarity: str | None = None
    """Encoder whose sentence embeddings compare answers with references: hub id or folder."""
    fail_on: Literal["worse"] | None = None
    """Exit code 1 where the verdict is "worse" or a guard against reward hacking failed."""
    max_new_tokens: int | None = None
    """Longest output; default: ppo.max_new_tokens, or 128 without PPO."""
    temperature: float = 1.0
    """Sampling temperature; 0 is greedy."""
    batch_size: int = 64
    """Prompts per generation."""
    threshold: float = 0.5
    """A text is toxic from this probability on."""


@dataclass
class Config:
    """One experiment."""

    name: str
    """Name of the run folder."""
    policy: PolicyConfig
    """The model to align."""
    evaluation: EvaluationConfig
    """The comparison."""
    sft: SFTConfig | None = None
    """Supervised fine-tuning before PPO."""
    reward: RewardConfig | None = None
    """The reward."""
    ppo: PPOConfig | None = None
    """The alignment; leave the section out to measure SFT alone."""
    seed: int = 0
    """Seed of everything random."""
    track: Literal["tensorboard", "trackio", "wandb"] | None = None
    """Send metrics to this tracker too; metrics.jsonl is always written."""
    runs: str = "runs"
    """Folder that holds the run folders."""


def answer_limit(config: Config) -> int:
    """Tokens of the longest answer in the evaluation: PPO's own limit unless the configuration says otherwise."""
    return config.evaluation.max_new_tokens or (config.ppo.max_new_tokens if config.ppo else 128)
