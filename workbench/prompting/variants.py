"""The rows of a grid of prompts: every combination of template, number of examples and way to generate."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from workbench.config.derived import completion_limit
from workbench.config.generation import GenerationSettings
from workbench.config.prompting import PromptingConfig
from workbench.config.schema import Config
from workbench.data.templates import FIELD, WITH_INPUT, template_text
from workbench.errors import UserError, error_context

NO_INSTRUCTION = "no instruction"
SHOTS = {0: "zero-shot", 1: "one-shot"}


@dataclass(frozen=True)
class Wording:
    """How a row of data becomes a prompt, whatever generates."""

    title: str
    template: str
    """A known name, or text with {column} fields."""
    shots: int
    """Examples before the prompt."""


@dataclass(frozen=True)
class Variant:
    """One row of the grid."""

    title: str
    wording: Wording
    generation: GenerationSettings

    def max_new_tokens(self, config: Config) -> int:
        """Return the limit of tokens per completion, by default that of the evaluation."""
        return self.generation.max_new_tokens or completion_limit(config)


def grid(config: Config) -> list[Variant]:
    """Return the rows of the grid, without instruction first, then by number of examples, template and generation.

    Raises UserError for an unknown template, and for two rows of one name.
    """
    prompting = config.prompting
    assert prompting is not None
    for name, template in prompting.templates.items():
        with error_context(f"prompting.templates.{name}"):
            template_text(template)
    wordings = [
        Wording(", ".join([shots_title(shots), *([name] if len(prompting.templates) > 1 else [])]), template, shots)
        for shots in prompting.shots
        for name, template in prompting.templates.items()
    ]
    if prompting.no_instruction and (bare := without_instruction(prompting)) is not None:
        wordings.insert(0, Wording(NO_INSTRUCTION, bare, 0))
    generation = prompting.generation or {"": evaluation_settings(config)}
    variants = [
        Variant(", ".join([wording.title, *([name] if len(generation) > 1 else [])]), wording, settings)
        for wording in wordings
        for name, settings in generation.items()
    ]
    title, count = Counter(variant.title for variant in variants).most_common(1)[0]
    if count > 1:
        raise UserError(f"prompting: {count} rows would be called {title!r}; leave the commas out of the names")
    return variants


def shots_title(shots: int) -> str:
    """Return what a number of examples is called."""
    return SHOTS.get(shots, f"few-shot {shots}")


def without_instruction(prompting: PromptingConfig) -> str | None:
    """Return the columns of the first template alone; None if this is what a template consists of, anyway."""
    first = next(iter(prompting.templates.values()))
    if first == "instruction":  # whose rows may have an input
        return "bare_instruction"
    texts = [template_text(template).strip() for template in prompting.templates.values()]
    bare = "\n\n".join(f"{{{name}}}" for name in dict.fromkeys(FIELD.findall(texts[0])))
    return None if bare in texts else bare


def identity_template(templates: Collection[str]) -> str:
    """Return a template with the columns of all templates, in any order: it cuts splits and tells rows apart."""
    names = sorted({name for template in templates for name in FIELD.findall(template_text(template))})
    if names == ["instruction"] and WITH_INPUT.keys() & set(templates):  # whose rows may have an input
        return "bare_instruction"
    return "\n".join(f"{{{name}}}" for name in names)


def evaluation_settings(config: Config) -> GenerationSettings:
    """Return how the evaluation generates."""
    values = {field.name: vars(config.evaluation)[field.name] for field in dataclasses.fields(GenerationSettings)}
    return GenerationSettings(**values)
