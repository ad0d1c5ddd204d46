"""The evaluation as one page: the verdict, then the numbers, the plots, the training, and every prompt to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from workbench.evaluation.non_inferiority import retention_sentence
from workbench.evaluation.results import Example, Guard, Results
from workbench.evaluation.sources import Provenance, Source
from workbench.ppo.overoptimization import Point
from workbench.report.completion_choices import judges_of
from workbench.report.curves import Log, distributions, training_plots
from workbench.report.examples import example_metrics, examples_section
from workbench.report.judges_section import judges_section
from workbench.report.overoptimization_page import overoptimization_section
from workbench.report.page import page, table, text
from workbench.report.reward_page import reward_section
from workbench.report.set_tables import TONES, sets_section
from workbench.report.tables import decoding_details, insufficient_prompts, set_title
from workbench.report.variance_section import variance_section

NO_CURVES: Mapping[str, Log] = MappingProxyType({})


def evaluation_page(
    results: Results,
    examples: Iterable[Example],
    *,
    toxic_words: Sequence[str] = (),
    curves: Mapping[str, Log] = NO_CURVES,
    reward_report: dict[str, Any] | None = None,
    held_out: Sequence[Point] = (),
    configuration: str = "",
) -> str:
    """Return a self-contained HTML document.

    `toxic_words` are blurred individually in toxic texts, `curves` are the lines of each stage's metrics.jsonl,
    `reward_report` is the reward model's report.json, `held_out` are the points of the held-out reward, and
    `configuration` is the run's as YAML.
    """
    rows = list(examples)
    parts = {
        "sets": ("Results", sets_section(results, example_metrics(rows))),
        "judges": ("Judges", judges_section(results, judges_of(rows))),
        "variance": ("Sources of variance", variance_section(results)),
        "distributions": ("Distributions", distributions(results, rows)),
        "training": ("Training", training_plots(curves) + (overoptimization_section(held_out) if held_out else "")),
        "reward": ("Reward model", reward_section(reward_report, heading="h3") if reward_report else ""),
        "examples": ("Examples", examples_section(results, rows, toxic_words)),
        "provenance": ("Provenance", provenance_section(results) + configuration_section(configuration)),
    }
    body = f"{_head(results)}{sections(parts)}"
    script = "".join(files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("text.js", "report.js"))
    return page(f"{results.name}: {results.verdict.headline}", body, script)


def sections(parts: Mapping[str, tuple[str, str]]) -> str:
    """Return links to the parts that have content, then these parts under their titles."""
    filled = {key: (title, content) for key, (title, content) in parts.items() if content}
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, (title, _) in filled.items())
    return f'<nav aria-label="On this page"><ul>{links}</ul></nav>' + "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{content}</section>'
        for key, (title, content) in filled.items()
    )


def verdict_box(results: Results) -> str:
    """Return the verdict in its color, and below it the verdicts on other questions and what was retained."""
    verdict = results.verdict
    return (
        f'<section class="verdict {TONES.get(verdict.word, "same")}" aria-label="Verdict">'
        f'<p class="word">{text(verdict.headline)}</p><p>{text(verdict.sentence)}</p></section>'
        + "".join(f"<p><strong>{text(v.headline)}:</strong> {text(v.sentence)}</p>" for v in results.other_verdicts)
        + (f"<p>{text(retained)}</p>" if (retained := retention_sentence(results)) else "")
    )


def _head(results: Results) -> str:
    """Return the head of the page: verdict, warnings, failed guards, and those that passed behind a disclosure."""
    return (
        '<a class="skip" href="#examples">Skip to the examples</a>'
        f'<header><h1>{text(results.name)}</h1><p class="soft">Evaluated {text(results.provenance.date)}: '
        f"{text(results.after)} compared with {text(results.before)}</p></header>"
        f"{verdict_box(results)}"
        + "".join(f'<p class="warning">{markup}</p>' for markup in _warnings(results))
        + _guards([guard for guard in results.guards if not guard.passed], "Failed guards")
        + _passed([guard for guard in results.guards if guard.passed])
    )


def _guards(guards: Sequence[Guard], label: str) -> str:
    """Return guards as a list; "" if there are none."""
    items = "".join(map(_guard, guards))
    return f'<ul class="guards" aria-label="{label}">{items}</ul>' if guards else ""


def _passed(guards: Sequence[Guard]) -> str:
    """Return the number of guards that passed, and behind it the guards."""
    if not guards:
        return ""
    count = f"{len(guards)} guard{'s' * (len(guards) != 1)} against reward hacking passed"
    return f"<details><summary>\u2713 {count}</summary>{_guards(guards, 'Passed guards')}</details>"


def _guard(guard: Guard) -> str:
    """Return a guard as a list item."""
    kind, sign = ("passed", "\u2713") if guard.passed else ("failed", "\u2717")
    return (
        f'<li class="{kind}"><span class="sign" role="img" aria-label="{kind}">{sign}</span>'
        f"<span><strong>{text(guard.name)}</strong> {text(guard.text)}</span></li>"
    )


def _warnings(results: Results) -> list[str]:
    """Return why the verdict is weak, as markup."""
    warnings = []
    if results.settings.reward_is_only_judge:
        warnings.append(
            '<strong class="bad">The reward is the only judge.</strong> The policy was optimized against it, so its '
            "toxicity scores are not independent evidence; add a judge under <code>evaluation.judges</code>."
        )
    for result in results.sets:
        warning = insufficient_prompts(result, results)
        if warning:
            warnings.append(f"<strong>{text(set_title(result))}:</strong> {text(warning)}")
    return warnings


def provenance_section(results: Results) -> str:
    """Return the settings, the environment, and the inputs with their hashes."""
    settings, provenance = results.settings, results.provenance
    values = {
        "comparison": f"{results.before} \u2192 {results.after}",
        "reward": settings.reward or "none",
        "judges": ", ".join(settings.judges) or "none",
        "protocol": settings.protocol or "none",
        "toxicity threshold": f"{settings.threshold:g}",
        "temperature": f"{settings.temperature:g}",
        "beams": settings.num_beams,
        "further decoding settings": ", ".join(decoding_details(settings)) or "none",
        "samples per prompt and seed": settings.samples,
        "max new tokens": settings.max_new_tokens,
        "seeds": ", ".join(map(str, settings.seeds)),
        **{f"model {title}": description for title, description in settings.strategies.items()},
        **_environment(provenance),
    }
    rows = [[name, f'<span class="text">{text(value)}</span>'] for name, value in values.items()]
    inputs = table(["input", "kind", "origin", "sha256"], [_source(source) for source in provenance.sources])
    return f'<div class="left">{table(["setting", "value"], rows)}{inputs}</div>'


def configuration_section(configuration: str) -> str:
    """Return the run's settings behind a disclosure."""
    if not configuration:
        return ""
    return (
        f'<details><summary>Configuration of the run</summary><pre class="text">{text(configuration)}</pre></details>'
    )


def _environment(provenance: Provenance) -> dict[str, str]:
    """Return when, where and with which code the evaluation ran."""
    return {
        "date": provenance.date,
        "commit": provenance.commit or "unknown",
        "machine": provenance.machine,
        "versions": ", ".join(f"{name} {version}" for name, version in provenance.versions.items()),
    }


def _source(source: Source) -> list[str]:
    """Return the cells of one input."""
    return [
        text(source.name),
        text(source.kind),
        f'<span class="text">{text(source.origin)}</span>',
        f'<code class="text">{text(source.sha256 or "none")}</code>',
    ]
