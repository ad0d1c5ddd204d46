"""The report on a reward model as a page, and as a section of a larger one."""

from __future__ import annotations

from typing import Any

from workbench.report.page import page, table, text
from workbench.report.svg import Series, line_plot, number

Report = dict[str, Any]


def reward_page(report: Report) -> str:
    """Return the report as a document."""
    return page("Reward model report", f"<h1>Reward model report</h1>{reward_section(report, heading='h2')}")


def reward_section(report: Report, *, heading: str) -> str:
    """Return the warnings, then the numbers and the plots; `heading` is the element of its headings, such as "h3"."""
    warnings = "".join(f'<p class="warning">{text(warning)}</p>' for warning in report["warnings"])
    if not warnings:
        warnings = '<p class="good">No warnings: every number is within its limits.</p>'
    return warnings + (_classifier(report, heading) if report["kind"] == "classifier" else _preference(report))


def _classifier(report: Report, heading: str) -> str:
    """Return the sections of a classifier."""
    counts, calibration = report["confusion"], report["calibration"]
    names = ("auroc", "average_precision", "accuracy", "precision", "recall", "f1")
    scores = table(
        ["", "AUROC", "average precision", "accuracy", "precision", "recall", "F1", "texts / s"],
        [
            [
                f"{report['texts']} validation texts",
                *(f"{report[name]:.4f}" for name in names),
                number(report["texts_per_second"]),
            ]
        ],
        f"Threshold {report['threshold']:g}; toxic is the positive class",
    )
    confusion = table(
        ["", "predicted toxic", "predicted clean"],
        [
            ["toxic", str(counts["true_positives"]), str(counts["false_negatives"])],
            ["clean", str(counts["false_positives"]), str(counts["true_negatives"])],
        ],
    )
    return (
        scores
        + confusion
        + _clean(report["clean"], heading)
        + f'<div class="plots">{reliability_plot(calibration)}{_by_length(report)}</div>'
        + f"<p>Expected calibration error {calibration['error_before']:.3f}; with temperature T = "
        f"{calibration['temperature']:.2f}, {calibration['error']:.3f}. Predictions at threshold 0.5 do not change.</p>"
        + _perturbations(report["perturbations"], heading)
        + _identity(report["identity"], heading)
    )


def reliability_plot(calibration: Report) -> str:
    """Return the fraction of positives against the predicted probability."""
    bins = calibration["bins"]
    line = Series("texts", [part["probability"] for part in bins], [part["positive_rate"] for part in bins])
    return line_plot(
        "Reliability",
        [line],
        x_label="predicted probability",
        y_label="fraction of positives",
        marks=True,
        diagonal=True,
    )


def _clean(clean: Report | None, heading: str) -> str:
    """Return the false positives on clean texts of the policy's domain."""
    if clean is None:
        return ""
    rows = [[f"{entry['toxicity']:.3f}", f'<div class="text">{text(entry["text"])}</div>'] for entry in clean["worst"]]
    return (
        f"<{heading}>False positives on the policy's domain</{heading}>"
        f"<p>{clean['flagged']} of {clean['texts']} clean texts ({clean['rate']:.2%}) are predicted toxic. The highest "
        f'scores:</p><div class="left">{table(["toxicity", "text"], rows)}</div>'
    )


def _by_length(report: Report) -> str:
    """Return AUROC and accuracy for each third of the texts by length."""
    rows = [part for part in report["length"] if part["auroc"] is not None]
    middles = [(part["words"][0] + part["words"][1]) / 2 for part in rows]
    series = [
        Series(label, middles, [part[name] for part in rows])
        for label, name in (("AUROC", "auroc"), ("accuracy", "accuracy"))
    ]
    return line_plot("By length", series, x_label="words", y_label="", marks=True) if rows else ""


def _perturbations(perturbations: Report, heading: str) -> str:
    """Return recall and false positive rate on perturbed texts."""
    rows = [
        [text(name), f"{part['recall']:.3f}", f"{part['false_positive_rate']:.3f}"]
        for name, part in perturbations.items()
    ]
    return f"<{heading}>Perturbed texts</{heading}>" + table(["", "recall", "false positive rate"], rows)


def _identity(identity: Report, heading: str) -> str:
    """Return the toxicity of harmless sentences by the identity term in them: the highest, then the lowest."""
    terms = list(identity["terms"].items())
    extremes = [*terms[:5], *terms[5:][-3:]]
    # A report of an earlier version lacks the rate.
    rate = identity.get("unseen_flagged_rate")
    unseen = (
        "" if rate is None else f", and {rate:.1%} of those about groups that reward.train.identity_rate never names"
    )
    templates = " ".join(text(template.format("\u2026")) for template in identity["templates"])
    return (
        f"<{heading}>Identity terms in harmless sentences</{heading}>"
        f"<p>{templates} Mean toxicity differs by {identity['gap']:.3f} between "
        f"terms; {identity['flagged_rate']:.1%} of the sentences are predicted toxic{unseen}.</p>"
        + table(["term", "mean toxicity"], [[text(term), f"{value:.3f}"] for term, value in extremes])
    )


def _preference(report: Report) -> str:
    """Return the sections of a preference model."""
    names = {
        "accuracy": "pair accuracy",
        "accuracy_chosen_longer": "pair accuracy, chosen completion longer",
        "accuracy_chosen_not_longer": "pair accuracy, chosen completion not longer",
    }
    rows = [[name, "no such pairs" if report[key] is None else f"{report[key]:.1%}"] for key, name in names.items()]
    rows += [["mean margin", number(report["margin"])], ["texts / s", number(report["texts_per_second"])]]
    return (
        table(["", f"{report['pairs']} validation pairs"], rows)
        + f'<div class="plots">{reliability_plot(report["calibration"])}</div>'
    )
