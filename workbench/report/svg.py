"""Plots as SVG markup. Their colors are CSS variables of the page, so that they follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.report.page import text

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 44
COLOURS = 6
LARGEST = 1e307  # larger values are left out
MAX_TIPS = 150  # per curve: more would be closer together than a pointer can tell


@dataclass(frozen=True)
class Series:
    """A named curve through points, in their order."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    number: int | None = None
    """That of its color; default: its position among the curves."""


@dataclass(frozen=True)
class Scale:
    """A linear map of values from `low` to `high` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return about five round values within the scale."""
        step = self._step()
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def label(self, tick: float) -> str:
        """Return a tick as text, with enough digits to differ from its neighbors."""
        last_digit = 10.0 ** math.floor(math.log10(self._step()) + 1e-9)
        largest = max(abs(self.low), abs(self.high))
        return number(tick, max(3, math.floor(math.log10(largest / last_digit)) + 1))

    def _step(self) -> float:
        """Return the distance between ticks: 1, 2 or 5 times a power of ten."""
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        return power * next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (power * factor) <= 5.5)


def line_plot(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    marks: bool = False,
    diagonal: bool = False,
    x_mark: float | None = None,
) -> str:
    """Return lines through the finite points; `x_mark` adds a vertical line there, `diagonal` the line y = x."""
    lines = [_finite(line.xs, line.ys) for line in series]
    corners = [(0.0, 0.0), (1.0, 1.0)]
    across, up = _scales([*(point for line in lines for point in line), *(corners if diagonal else [])] or corners)
    parts = _axes(across, up, x_label, y_label)
    if diagonal:
        parts.append(_path(corners, across, up, 'class="reference"'))
    if x_mark is not None:
        parts.append(_path(_finite((x_mark, x_mark), (up.low, up.high)), across, up, 'class="reference"'))
    numbers = [index if line.number is None else line.number for index, line in enumerate(series)]
    for index, line in zip(numbers, lines, strict=True):
        parts.append(_path(line, across, up, f'class="line {tone(index)}"'))
        if marks or len(line) == 1:
            parts += _circles(line, across, up, f'class="mark {tone(index)}" r="3.5"')
    for name, line in zip((line.name for line in series), lines, strict=True):
        parts += [_tip(name, point, across, up) for point in line[:: -(-len(line) // MAX_TIPS) or 1]]
    return _figure(title, parts, [line.name for line in series], numbers)


def histogram(title: str, values: Mapping[str, Sequence[float]], *, x_label: str, bins: int = 10) -> str:
    """Return the distributions of named values: bars of the fraction of each in bins of equal width, side by side."""
    finite = {name: [value for value in column if _is_drawable(value)] for name, column in values.items()}
    all_values = [value for column in finite.values() for value in column]
    low, high = min(all_values, default=0.0), max(all_values, default=1.0)
    width = (high - low) / bins or 1.0
    fractions = {}
    for name, column in finite.items():
        counts = [0] * bins
        for value in column:
            counts[min(int((value - low) / width), bins - 1)] += 1
        fractions[name] = [count / max(len(column), 1) for count in counts]
    top = max((fraction for column in fractions.values() for fraction in column), default=1.0) or 1.0
    across = Scale(low, low + bins * width, LEFT, WIDTH - RIGHT)
    up = Scale(0.0, top * 1.05, HEIGHT - BOTTOM, TOP)
    parts = _axes(across, up, x_label, "fraction")
    bar = (across(low + width) - across(low)) * 0.85 / max(len(fractions), 1)
    for index, (name, column) in enumerate(fractions.items()):
        for number_of_bin, fraction in enumerate(column):
            start = low + number_of_bin * width
            x, y = across(start) + bar * (index + 0.15), up(fraction)
            tip = f"{name}, {number(start)} to {number(start + width)}: {fraction:.1%}"
            parts.append(
                f'<rect class="c{index % COLOURS}" x="{x:.1f}" y="{y:.1f}" width="{bar:.1f}" '
                f'height="{up(0.0) - y:.1f}"><title>{text(tip)}</title></rect>'
            )
    return _figure(title, parts, list(fractions))


def scatter(
    title: str, xs: Sequence[float], ys: Sequence[float], *, x_label: str, y_label: str, direction: str | None = None
) -> str:
    """Return a point for each finite pair and the line y = x; a direction (lower or higher) colors the points."""
    points = _finite(xs, ys)
    values = [value for point in points for value in point] or [0.0, 1.0]
    ends = [(min(values), min(values)), (max(values), max(values))]
    across, up = _scales(ends)
    parts = _axes(across, up, x_label, y_label)
    parts.append(_path(ends, across, up, 'class="reference"'))
    above, below = {"lower": (" bad", " good"), "higher": (" good", " bad"), None: ("", "")}[direction]
    for x, y in points:
        tone = above if y > x else below if y < x else ""
        tip = f"{x_label} {number(x)}, {y_label} {number(y)}"
        position = f'cx="{across(x):.1f}" cy="{up(y):.1f}"'
        parts.append(f'<circle class="dot{tone}" r="2.5" {position}><title>{text(tip)}</title></circle>')
    return _figure(title, parts, [])


def tone(index: int) -> str:
    """Return the classes of a curve and its key: a color, and after the last one the colors again with dashes."""
    dashes = min(index // COLOURS, 2)
    return f"c{index % COLOURS}" + (f" dash{dashes}" if dashes else "")


def number(value: float, digits: int = 3) -> str:
    """Return a value with `digits` significant digits; below ten million, every digit before the point is kept."""
    if not 999.5 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    return f"{value:,.{max(digits - 1 - math.floor(math.log10(max(abs(value), 1000))), 0)}f}"


def _finite(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Return the pairs whose values can both be drawn."""
    return [(x, y) for x, y in zip(xs, ys, strict=True) if _is_drawable(x) and _is_drawable(y)]


def _is_drawable(value: float) -> bool:
    """Return whether a value is finite and so are the sums and differences that scales are made of."""
    return abs(value) < LARGEST


def _scales(points: Sequence[tuple[float, float]]) -> tuple[Scale, Scale]:
    """Return scales that hold every point, with a margin."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    room_y = (max(ys) - min(ys)) * 0.05 or abs(max(ys)) * 0.1 or 1.0
    room_x = (max(xs) - min(xs)) * 0.02 or abs(max(xs)) * 0.1 or 1.0
    return (
        Scale(min(xs) - room_x, max(xs) + room_x, LEFT, WIDTH - RIGHT),
        Scale(min(ys) - room_y, max(ys) + room_y, HEIGHT - BOTTOM, TOP),
    )


def _axes(across: Scale, up: Scale, x_label: str, y_label: str) -> list[str]:
    """Return grid, ticks and labels."""
    parts = []
    for tick in across.ticks():
        x = across(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{across.label(tick)}</text>')
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{up.label(tick)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{text(x_label)}</text>')
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{text(y_label)}</text>'
    )
    return parts


def _path(points: Sequence[tuple[float, float]], across: Scale, up: Scale, attributes: str) -> str:
    """Return a line through points."""
    steps = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
    return f'<polyline {attributes} points="{steps}"/>'


def _circles(points: Sequence[tuple[float, float]], across: Scale, up: Scale, attributes: str) -> list[str]:
    """Return a circle at each point."""
    return [f'<circle {attributes} cx="{across(x):.1f}" cy="{up(y):.1f}"/>' for x, y in points]


def _tip(name: str, point: tuple[float, float], across: Scale, up: Scale) -> str:
    """Return an invisible circle that shows the values of a point on hover."""
    x, y = point
    return (
        f'<circle class="tip" r="6" cx="{across(x):.1f}" cy="{up(y):.1f}">'
        f"<title>{text(name)}, {number(x)}: {number(y)}</title></circle>"
    )


def _figure(title: str, parts: Sequence[str], names: Sequence[str], numbers: Sequence[int] | None = None) -> str:
    """Return the figure with its title and, for several names, a legend; `numbers` are those of their tones."""
    tones = map(tone, range(len(names)) if numbers is None else numbers)
    keys = zip(names, tones, strict=True)
    legend = "".join(f'<span><i class="key {classes}"></i>{text(name)}</span>' for name, classes in keys)
    return (
        f'<figure><figcaption>{text(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{text(title)}">{"".join(parts)}</svg>'
        + (f'<div class="legend">{legend}</div>' if len(names) > 1 else "")
        + "</figure>"
    )


@dataclass(frozen=True)
class Point:
    """A named point of a plot; its number is its label and its color."""

    name: str
    x: float
    y: float
    number: int = 0


def frontier_plot(
    title: str, points: Sequence[Point], *, x_label: str, y_label: str, lower_x: bool, lower_y: bool = False
) -> str:
    """Return named points, and a line through those that no other one beats, less or more of either being better."""
    drawn = [point for point in points if _is_drawable(point.x) and _is_drawable(point.y)]
    across, up = _scales([(point.x, point.y) for point in drawn])
    parts = _axes(across, up, x_label, y_label)
    best = frontier(drawn, lower_x=lower_x, lower_y=lower_y)
    parts.append(_path([(point.x, point.y) for point in best], across, up, 'class="reference"'))
    for point in drawn:
        tip = f"{point.name}: {x_label} {number(point.x)}, {y_label} {number(point.y)}"
        parts.append(
            f'<circle class="mark {tone(point.number)}" r="5" cx="{across(point.x):.1f}" cy="{up(point.y):.1f}">'
            f'<title>{text(tip)}</title></circle><text x="{across(point.x) + 7:.1f}" y="{up(point.y) - 5:.1f}">'
            f"{point.number + 1}</text>"
        )
    names = [f"{point.number + 1} {point.name}" for point in drawn]
    return _figure(title, parts, names, [point.number for point in drawn])


def frontier(points: Sequence[Point], *, lower_x: bool, lower_y: bool = False) -> list[Point]:
    """Return the points that no other one beats in both directions, in the order of x."""
    sign, sign_y = 1 if lower_x else -1, 1 if lower_y else -1

    def beats(one: Point, other: Point) -> bool:
        first, second = (sign * one.x, sign_y * one.y), (sign * other.x, sign_y * other.y)
        return first != second and first[0] <= second[0] and first[1] <= second[1]

    return sorted(
        (point for point in points if not any(beats(other, point) for other in points)), key=lambda point: point.x
    )
