"""The report on a reward model as a page, and as a section of a larger one."""

from __future__ import annotations

from typing import Any

from workbench.report.page import page, table, text
from workbench.report.svg import Series, line_plot, number

Report = dict[str, Any]


def reward_page(report: Report) -> str:
    """The report as a document of its own."""
    return page("Reward model report", f"<h1>Reward model report</h1>{reward_section(report)}")


def reward_section(report: Report) -> str:
    """Warnings first, then the numbers and the plots, as markup."""
    found = "".join(f'<p class="warning">{text(warning)}</p>' for warning in report["warnings"])
    if not found:
        found = '<p class="good">Nothing in this report is beyond its bounds.</p>'
    return found + (_classifier(report) if report["kind"] == "classifier" else _preference(report))


def _classifier(report: Report) -> str:
    counts, calibration = report["confusion"], report["calibration"]
    ranking = table(
        ["", "AUROC", "average precision", "accuracy", "precision", "recall", "F1", "texts / s"],
        [
            [
                f"{report['texts']} validation texts",
                *(
                    f"{report[name]:.4f}"
                    for name in ("auroc", "average_precision", "accuracy", "precision", "recall", "f1")
                ),
                number(report["texts_per_second"]),
            ]
        ],
        f"Toxic from probability {report['threshold']:g} on",
    )
    confusion = table(
        ["", "called toxic", "called clean"],
        [
            ["toxic", str(counts["true_positives"]), str(counts["false_negatives"])],
            ["clean", str(counts["false_positives"]), str(counts["true_negatives"])],
        ],
    )
    return (
        ranking
        + confusion
        + _clean(report["clean"])
        + f'<div class="plots">{reliability_plot(calibration)}{_by_length(report)}</div>'
        + f"<p>Temperature {calibration['temperature']:.2f} takes the calibration error from "
        f"{calibration['error_before']:.3f} to {calibration['error']:.3f}; it scales probabilities and moves no text "
        "across one half.</p>" + _variants(report["variants"]) + _identity(report["identity"])
    )


def reliability_plot(calibration: dict[str, Any]) -> str:
    """Share of toxic texts against the probability that was given."""
    bins = calibration["bins"]
    line = Series("texts", [part["probability"] for part in bins], [part["share"] for part in bins])
    return line_plot("Reliability", [line], x_label="probability given", y_label="share", marks=True, diagonal=True)


def _clean(found: Report | None) -> str:
    if found is None:
        return ""
    rows = [[f"{entry['toxicity']:.3f}", f'<div class="text">{text(entry["text"])}</div>'] for entry in found["worst"]]
    return (
        f"<h2>Clean texts of the policy's domain</h2><p>{found['flagged']} of {found['texts']} are called toxic "
        f"({found['rate']:.2%}). The loudest:</p>" + table(["toxicity", "text"], rows)
    )


def _by_length(report: Report) -> str:
    rows = [part for part in report["length"] if part["auroc"] is not None]
    middles = [(part["words"][0] + part["words"][1]) / 2 for part in rows]
    lines = [Series(name, middles, [part[name] for part in rows]) for name in ("auroc", "accuracy")]
    return line_plot("By length", lines, x_label="words", y_label="", marks=True) if rows else ""


def _variants(found: Report) -> str:
    rows = [[name, f"{part['recall']:.3f}", f"{part['false_positive_rate']:.3f}"] for name, part in found.items()]
    return "<h2>The same texts, written in another way</h2>" + table(["", "recall", "false positive rate"], rows)


def _identity(found: Report) -> str:
    terms = list(found["terms"].items())
    shown = [*terms[:5], *terms[-3:]]
    templates = " ".join(text(template.format("\u2026")) for template in found["templates"])
    return (
        f"<h2>Harmless sentences about people</h2><p>{templates} Between terms the toxicity differs by "
        f"{found['gap']:.3f}; {found['flagged_share']:.1%} of the sentences are called toxic.</p>"
        + table(["term", "mean toxicity"], [[text(term), f"{value:.3f}"] for term, value in shown])
    )


def _preference(report: Report) -> str:
    names = {
        "accuracy": "pairs in the right order",
        "accuracy_chosen_longer": "of those whose chosen answer is longer",
        "accuracy_chosen_not_longer": "of those whose chosen answer is not longer",
    }
    rows = [[name, "none" if report[key] is None else f"{report[key]:.1%}"] for key, name in names.items()]
    rows += [["mean margin", number(report["margin"])], ["texts / s", number(report["texts_per_second"])]]
    return (
        table(["", f"{report['pairs']} validation pairs"], rows)
        + f'<div class="plots">{reliability_plot(report["calibration"])}</div>'
    )
