"""The evaluation as one page: the verdict, then the numbers, the plots, the training, and every prompt to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from workbench.ppo.overoptimization import Point
from workbench.report.curves import distributions, training_plots
from workbench.report.examples import examples_section
from workbench.report.overoptimization_page import overoptimization_section
from workbench.report.page import page, table, text
from workbench.report.reward_page import reward_section
from workbench.report.set_tables import TONES, set_title, sets_section, shortage

Results = dict[str, Any]
NO_CURVES: Mapping[str, list[dict[str, Any]]] = MappingProxyType({})


def evaluation_page(
    results: Results,
    completions: Iterable[dict[str, Any]],
    *,
    offensive: Sequence[str] = (),
    curves: Mapping[str, list[dict[str, Any]]] = NO_CURVES,
    reward_report: dict[str, Any] | None = None,
    watch: Sequence[Point] = (),
) -> str:
    """An HTML document that needs no other file.

    `results` and `completions` are results.json and the lines of completions.jsonl, `offensive` the words that alone
    are blurred in a toxic text, `curves` the lines of each stage's metrics.jsonl, `reward_report` the reward model's
    report, `watch` the points of the watching scorer.
    """
    rows = list(completions)
    parts = {
        "sets": ("Results", sets_section(results)),
        "distributions": ("Distributions", distributions(results, rows)),
        "training": ("Training", training_plots(curves) + (overoptimization_section(watch) if watch else "")),
        "reward": ("Reward model", reward_section(reward_report) if reward_report else ""),
        "examples": ("Examples", examples_section(results, rows, offensive)),
        "origin": ("Where this comes from", _origin(results)),
    }
    kept = {key: part for key, part in parts.items() if part[1]}
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, (title, _) in kept.items())
    sections = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{content}</section>'
        for key, (title, content) in kept.items()
    )
    body = (
        '<a class="skip" href="#examples">Skip to the examples</a>'
        f"{_verdict(results)}"
        f'<nav aria-label="On this page"><ul>{links}</ul></nav>{sections}'
    )
    script = "".join(files(__package__).joinpath(name).read_text() for name in ("text.js", "report.js"))
    return page(f"{results['name']}: {results['verdict']['word']}", body, script)


def _verdict(results: Results) -> str:
    verdict = results["verdict"]
    tone = TONES.get(verdict["word"], "same")
    guards = "".join(_guard(guard) for guard in sorted(results["guards"], key=lambda guard: guard["passed"]))
    return (
        f'<header><h1>{text(results["name"])}</h1><p class="soft">Evaluation of {text(results["date"])}: '
        f"{text(results['after'])} against {text(results['before'])}</p></header>"
        f'<section class="verdict {tone}" aria-label="Verdict"><p class="word">{text(verdict["word"])}</p>'
        f"<p>{text(verdict['sentence'])}</p></section>"
        + "".join(f'<p class="warning">{markup}</p>' for markup in _warnings(results))
        + (f'<ul class="guards" aria-label="Guards">{guards}</ul>' if guards else "")
    )


def _guard(guard: dict[str, Any]) -> str:
    kind, sign, meaning = ("passed", "\u2713", "passed") if guard["passed"] else ("failed", "\u2717", "failed")
    return (
        f'<li class="{kind}"><span class="sign" role="img" aria-label="{meaning}">{sign}</span>'
        f"<span><strong>{text(guard['name'])}</strong> {text(guard['text'])}</span></li>"
    )


def _warnings(results: Results) -> list[str]:
    found = []
    if results["judges"] == ["reward"]:
        found.append(
            '<strong class="bad">The reward is the only judge.</strong> The policy was trained to please it, so its '
            "toxicity says little; name another scorer under <code>evaluation.judges</code>."
        )
    for name, of_set in results["sets"].items():
        lacking = shortage(of_set, results)
        if lacking:
            found.append(f"<strong>{text(set_title(name, of_set))}:</strong> {text(lacking)}")
    return found


def _origin(results: Results) -> str:
    settings = {
        "before \u2192 after": f"{results['before']} \u2192 {results['after']}",
        "reward": results["reward"] or "none",
        "judges": ", ".join(results["judges"]) or "none",
        "toxic from probability": f"{results['threshold']:g}",
        "temperature": f"{results['temperature']:g}",
        "samples per prompt": results["samples"],
        "longest answer, tokens": results["max_new_tokens"],
        "seeds": ", ".join(map(str, results["seeds"])),
        "date": results["date"],
        "commit": results["commit"] or "unknown",
        "machine": results["machine"],
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    }
    return (
        '<div class="origin">'
        + table(
            ["setting", ""], [[name, f'<span class="text">{text(value)}</span>'] for name, value in settings.items()]
        )
        + table(["input", "from", "sha256"], _inputs(results["inputs"]))
        + "</div>"
    )


def _inputs(inputs: dict[str, Any]) -> list[list[str]]:
    models = {name: (found["name"], found["sha256"]) for name, found in inputs.items() if name != "data" and found}
    data = {name: (found["path"], found["sha256"]) for name, found in inputs.get("data", {}).items()}
    return [
        [text(name), f'<span class="text">{text(place)}</span>', f'<code class="text">{text(digest or "none")}</code>']
        for name, (place, digest) in (models | data).items()
    ]
