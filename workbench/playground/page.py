"""The page: a prompt and settings above, the models' completions below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from workbench.errors import UserError
from workbench.playground.comparison import LoadedRun, compare
from workbench.playground.markup import error_markup, notes_markup, side_by_side_markup
from workbench.playground.prompts import ExamplePrompt
from workbench.playground.settings import Settings
from workbench.report.page import text, visible_text

MAX_EXAMPLE_LABEL = 90


def make_page(run: LoadedRun, examples: Sequence[ExamplePrompt], defaults: Settings) -> gr.Blocks:
    """Return the page of a run; nothing that it does leaves the machine."""
    takes_text = run.prompt_format.takes_text
    with gr.Blocks(title=f"{run.name}: playground", analytics_enabled=False) as page:
        titles = ", ".join(text(model.title) for model in run.models)
        gr.HTML(
            f'<div class="play"><h1>{text(run.name)}</h1><p>One prompt, the same random numbers for {titles}.</p>'
            f"{notes_markup(run.notes)}</div>",
            apply_default_css=False,
        )
        if examples:
            example = gr.Dropdown(
                [(example_label(item), index) for index, item in enumerate(examples)],
                value=0,
                label="Example from the evaluation",
                elem_id="examples",
            )
        prompt = gr.Textbox(
            examples[0].text if examples else "", label="Prompt", lines=5, max_lines=16, elem_id="prompt"
        )
        raw = gr.Checkbox(
            not takes_text or (bool(examples) and examples[0].is_raw),
            label="Raw prompt",
            info=f"Use the text as the whole prompt, without the template of {run.prompt_format.key}",
            interactive=takes_text,
            elem_id="raw",
        )
        with gr.Row():
            temperature = gr.Number(defaults.temperature, label="Temperature", step=0.1, min_width=120)
            max_new_tokens = gr.Number(defaults.max_new_tokens, label="Max new tokens", precision=0, min_width=120)
            seed = gr.Number(defaults.seed, label="Seed", precision=0, min_width=120)
            samples = gr.Number(defaults.samples, label="Samples", precision=0, min_width=120)
        button = gr.Button("Complete", variant="primary", elem_id="complete")
        output = gr.HTML(apply_default_css=False, elem_id="output", min_height=120)

        def complete(
            typed: str | None,
            is_raw: bool,
            temperature: float | None,
            max_new_tokens: int | None,
            seed: int | None,
            samples: int | None,
        ) -> str:
            try:
                settings = read_settings(temperature, max_new_tokens, seed, samples)
                return side_by_side_markup(compare(run, typed or "", settings, raw=is_raw))
            except UserError as error:
                return error_markup(str(error))

        inputs = [prompt, raw, temperature, max_new_tokens, seed, samples]
        # One at a time: the models are adapters of one base, of which one is active.
        gr.on([button.click, prompt.submit], complete, inputs, output, concurrency_limit=1, api_visibility="private")
        if examples:
            example.input(
                lambda index: (examples[index].text, not takes_text or examples[index].is_raw),
                example,
                [prompt, raw],
                api_visibility="private",
                show_progress="hidden",
            )
    return page


def read_settings(
    temperature: float | None, max_new_tokens: int | None, seed: int | None, samples: int | None
) -> Settings:
    """Return the settings that the page's fields hold; raises UserError for one that is empty."""
    fields = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed, "samples": samples}
    values: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    for name in fields.keys() - values.keys():
        raise UserError(f"{name}: empty; type a number")
    return Settings(**values)


def example_label(example: ExamplePrompt) -> str:
    """Return set, number and the beginning of an example's text."""
    beginning = " ".join(visible_text(example.text).split())
    label = f"{example.set} #{example.index}: {beginning}"
    return label if len(label) <= MAX_EXAMPLE_LABEL else label[: MAX_EXAMPLE_LABEL - 1] + "\u2026"
