"""Pages and plots: finite numbers, round ticks, nothing from outside, and no text that becomes markup."""

from __future__ import annotations

import itertools
import random
import re
from html.parser import HTMLParser
from importlib.resources import files
from math import inf, isfinite, nan

import numpy as np
import pytest

from workbench.ppo.overoptimization import Point
from workbench.report import svg
from workbench.report.overoptimization_page import overoptimization_page
from workbench.report.page import page, table, text
from workbench.report.reward_page import reward_page
from workbench.report.svg import Scale, Series, histogram, line_plot, number, scatter
from workbench.rewards.training.validation import classifier_report, preference_report

HOSTILE = "<script>alert('1')</script>\"&amp;</td></title></style><img src=x>\u202e\u2066\x00\x1b\x7f\x9b\ud800"
STYLE = files("workbench.report").joinpath("style.css").read_text()


class Markup(HTMLParser):
    """Fails on tags that do not nest; collects tags with attributes, and text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def drawn(figure: str) -> list[tuple[float, float]]:
    """Return every point of lines and marks; fails for a number that is not finite and a point outside of the axes."""
    tags = Markup(figure).tags
    assert all(isfinite(float(v)) for _, values in tags for name, v in values.items() if name[0] in "xy")
    points = [tuple(map(float, point.split(","))) for _, values in tags for point in values.get("points", "").split()]
    points += [(float(values["cx"]), float(values["cy"])) for tag, values in tags if tag == "circle"]
    right, bottom = svg.WIDTH - svg.RIGHT, svg.HEIGHT - svg.BOTTOM
    assert all(svg.LEFT <= x <= right and svg.TOP <= y <= bottom for x, y in points)
    return points


def bars(figure: str) -> list[tuple[float, float, float, float]]:
    """Return left, top, width and height of every bar; fails for one outside of the axes."""
    rectangles = [values for tag, values in Markup(figure).tags if tag == "rect"]
    boxes = [tuple(float(values[name]) for name in ("x", "y", "width", "height")) for values in rectangles]
    for left, top, width, height in boxes:
        assert svg.LEFT <= left <= left + width <= svg.WIDTH - svg.RIGHT
        assert svg.TOP <= top <= top + height <= svg.HEIGHT - svg.BOTTOM + 0.1
    return boxes


def reports() -> dict[str, str]:
    """Return every page, with a hostile text wherever a text can stand."""
    odds = {f"bad {HOSTILE}": -3.0, f"fine {HOSTILE}": 2.0, "so so": -1.0}
    report = classifier_report(lambda ts: [odds.get(t, 0.1) for t in ts], [*odds] * 3, [False, True, True] * 3, [*odds])
    report["identity"] |= {"terms": {HOSTILE: 0.5}, "templates": ["{} " + HOSTILE]}
    pairs = [("q", "yes yes", "no"), ("q", "no", "yes yes yes")]
    preferred = preference_report(lambda _, completions: [float(len(text)) for text in completions], pairs)
    name = {"x_label": HOSTILE, "y_label": HOSTILE}
    plots = line_plot(HOSTILE, [Series(HOSTILE, [0], [1])] * 2, **name) + scatter(HOSTILE, [0], [1], **name)
    plots += histogram(HOSTILE, {HOSTILE: [1.0, 2.0], "b": [1.0]}, x_label=HOSTILE)
    return {
        "classifier": reward_page(report | {"warnings": [HOSTILE]}),
        "preference": reward_page(preferred | {"warnings": [HOSTILE]}),
        "held-out reward": overoptimization_page([Point(i, 1.0 * i, 1.0 * i, -1.0 * i, 0.1) for i in range(1, 4)]),
        "plots": page(HOSTILE, plots + table([HOSTILE], [[text(HOSTILE)]], HOSTILE)),
    }


@pytest.mark.parametrize(
    ("name", "times"), [("classifier", 5), ("preference", 1), ("held-out reward", 0), ("plots", 32)]
)
def test_a_page_is_well_formed_loads_nothing_and_takes_text_as_text(name, times):
    document = reports()[name]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", document)
    markup = Markup(document)
    assert not {"script", "img", "link", "iframe", "a", "use", "image"} & {tag for tag, _ in markup.tags}
    keys = {key for _, attributes in markup.tags for key in attributes}
    assert not [key for key in keys if key in ("src", "href", "style", "fill", "stroke") or key.startswith("on")]
    assert "default-src 'none'" in document
    assert not re.search(r"https?:|src=|url\((?!data:)|@import|alert", document.replace(text(HOSTILE), ""))
    visible = HOSTILE[:-7] + "⟨U+202E⟩⟨U+2066⟩␀␛␡⟨U+009B⟩⟨U+D800⟩"
    labels = "".join(attributes.get("aria-label", "") for _, attributes in markup.tags)
    assert (markup.text + labels).count(visible) == times
    used = {key for _, attributes in markup.tags for key in attributes.get("class", "").split()}
    assert used <= set(re.findall(r"\.([a-z]\w*)", STYLE))


def test_every_colour_has_its_dark_twin():
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    names = set(re.findall(r"(--[\w-]+):", light))
    assert set(re.findall(r"(--[\w-]+):", dark)) == names >= set(re.findall(r"var\((--[\w-]+)\)", STYLE))
    assert re.findall(r"#[0-9a-f]{3,8}\b|rgb|hsl", STYLE.replace(light, "").replace(dark, "")) == []


VALUES = [
    *([], [3.0], [2.0] * 4, [0.0] * 3, [1e300, -1e300, 1.0], [1e-300, 3e-300, 2e-300], [1e16, 1e16 + 2]),
    *([nan], [nan, 1.0], [1.0, nan, 2.0], [inf, 1.0, -inf, 4.0], [-5.0, -5.0], [1.0, 1.0 + 2e-16]),
]


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_plots_draw_every_finite_point_and_no_other(values):
    finite = sum(map(isfinite, values))
    for xs, ys in ((range(len(values)), values), (values, range(len(values))), (values, values)):
        figure = line_plot("a", [Series("b", xs, ys)], x_label="x", y_label="y", marks=True, x_mark=nan)
        assert len(drawn(figure)) == 3 * finite, "on the line, as a mark and under the pointer"
        assert len(drawn(scatter("a", xs, ys, x_label="x", y_label="y"))) == finite + 2
    assert len(bars(histogram("a", {"b": values, "c": [1.0]}, x_label="x"))) == 20


def test_the_diagonal_is_where_x_is_y():
    figure = line_plot("a", [Series("b", [0, 1, -2], [0, 1, 5])], x_label="", y_label="", diagonal=True)
    reference, line = re.findall(r'class="(?:reference|line c0)" points="([^"]+)"', figure)
    assert line.startswith(reference)


def test_ticks_are_round_within_the_scale_and_told_apart():
    chance = random.Random(0)
    for _ in range(2000):
        low, width = chance.choice([0, 10 ** chance.uniform(-6, 6)]), 10 ** chance.uniform(-6, 9)
        scale = Scale(low, low + width, 10.0, 20.0)
        ticks = scale.ticks()
        assert 2 <= len(ticks) <= 7
        assert all(10 - 1e-6 <= scale(tick) <= 20 + 1e-6 for tick in ticks)
        step = ticks[1] - ticks[0]
        assert f"{step:.0e}"[0] in "125"
        assert np.diff(ticks) == pytest.approx(step, rel=1e-3)
        assert [float(scale.label(tick).replace(",", "")) for tick in ticks] == pytest.approx(ticks, abs=step / 100)
        assert [round(tick / step) * step for tick in ticks] == pytest.approx(ticks, rel=1e-6)


def test_a_histogram_holds_the_fraction_of_each_bin_of_every_column():
    first, second = np.random.default_rng(0).normal(size=(2, 300))
    figure = histogram("a", {"b": list(first), "c": [*second, nan]}, x_label="x")
    edges = np.histogram_bin_edges([*first, *second], bins=10)
    fractions = [np.histogram(column, edges)[0] / 300 for column in (first, second)]
    heights = np.array([bar[3] for bar in bars(figure)]).reshape(2, 10)
    assert heights / heights.max() == pytest.approx(np.array(fractions) / np.max(fractions), abs=2e-3)
    tips = [float(tip) for tip in re.findall(r": ([\d.]+)%</title>", figure)]
    assert tips == pytest.approx(100 * np.concatenate(fractions), abs=0.051)


def test_bars_of_several_columns_stand_side_by_side_also_at_the_ends():
    lefts = sorted(bar[:3:2] for bar in bars(histogram("a", {"b": [0.0, 1.0], "c": [0.0], "d": [1.0]}, x_label="x")))
    assert all(left + width <= following + 0.15 for (left, width), (following, _) in itertools.pairwise(lefts))


def test_a_long_curve_has_few_values_on_hover_and_a_short_one_all():
    curves = [Series("long", range(1000), range(1000)), Series("short", [1, 2], [0.5, 7])]
    figure = line_plot("a", curves, x_label="step", y_label="")
    tips = re.findall(r"<title>(\w+), ", figure)
    assert tips.count("short") == 2
    assert svg.MAX_TIPS / 2 <= tips.count("long") <= svg.MAX_TIPS
    assert "<title>short, 2: 7</title>" in figure


def test_numbers_have_three_significant_digits():
    texts = {0.0: "0", 0.12345: "0.123", -7: "-7", 999.7: "1,000", 12345.6: "12,346", 2e9: "2e+09", 1e-9: "1e-09"}
    assert {value: number(value) for value in texts} == texts
