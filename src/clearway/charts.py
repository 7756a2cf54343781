"""Charts of a model as inline SVG: curves, clouds of points, heat maps, ranked bars and intervals.

Colours come from the page (``clearway.svg``), and never say anything alone: lines are dashed differently, and every
number that is drawn can be read under the pointer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from clearway.svg import ceiling, dot, drawing, line, number, path, rect, text

_LEFT, _RIGHT, _TOP = 50.0, 408.0, 24.0
_BASE = 262.0
_LABEL = 28
"""Characters of a name beside its bar."""


@dataclass(frozen=True)
class Series:
    """One line, or cloud, of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 1
    """1 to 6: its hue and dashes."""
    whiskers: Sequence[tuple[float, float]] = ()
    """Lower and upper end at each point."""
    marked: bool = False
    """Whether each point is a dot."""
    joined: bool = True
    """Whether a line goes through them."""


def chart(
    series: Sequence[Series],
    *,
    alt: str,
    x_label: str,
    y_label: str,
    diagonal: bool = False,
    level: float | None = None,
    unit: bool = False,
) -> Markup:
    """Draw lines and clouds over two axes, with a legend where there is more than one.

    Parameters
    ----------
    series : sequence of Series
        Drawn in this order, the last on top.
    alt : str
        What the chart shows, for those who cannot see it.
    x_label, y_label : str
        Names of the axes, with their units.
    diagonal : bool
        Whether the line of equal x and y is drawn.
    level : float, optional
        A horizontal line there.
    unit : bool
        Whether both axes go from 0 to 1; else each goes as far as the points do.
    """
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    ys += [end for each in series for ends in each.whiskers for end in ends]
    x_range = (0.0, 1.0) if unit else _span(xs + (ys if diagonal else []))
    y_range = (0.0, 1.0) if unit else x_range if diagonal else _span([*ys, *([] if level is None else [level])])
    legend = _legend(series) if len(series) > 1 else []

    def x_of(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (value - x_range[0]) / (x_range[1] - x_range[0])

    def y_of(value: float) -> float:
        return _BASE - (_BASE - _TOP) * (value - y_range[0]) / (y_range[1] - y_range[0])

    parts = _axes(x_range, y_range, x_label, y_label)
    if diagonal:
        parts.append(line("break", x_of(x_range[0]), y_of(x_range[0]), x_of(x_range[1]), y_of(x_range[1])))
    if level is not None:
        parts.append(line("break", _LEFT, y_of(level), _RIGHT, y_of(level)))
    for each in series:
        places = [(x_of(x), y_of(y)) for x, y in each.points]
        kind = f"s{each.style}"
        for (x, _), (lower, upper) in zip(places, each.whiskers, strict=False):
            parts.append(line(f"whisker {kind}", x, y_of(lower), x, y_of(upper)))
        if each.joined:
            parts.append(path(f"curve {kind}", places))
        if each.marked:
            radius, cloud = (3.0, "") if each.joined else (2.2, " cloud")
            for (x, y), (left, bottom) in zip(each.points, places, strict=True):
                parts.append(dot(f"dot {kind}{cloud}", left, bottom, radius, f"{each.name}: {x:.4g}, {y:.4g}"))
    return drawing(alt, [*parts, *legend], _BASE + 44 + (16 * math.ceil(len(series) / 2) if legend else 0))


def heat_map(
    counts: NDArray[np.intp], rows: Sequence[str], columns: Sequence[str], *, alt: str, x_label: str, y_label: str
) -> Markup:
    """Draw a table of counts, each cell shaded by its share of its row.

    Parameters
    ----------
    counts : int array of shape (rows, columns)
    rows, columns : sequences of str
    alt, x_label, y_label : str
    """
    left, top = 96.0, 20.0
    wide = (_RIGHT - left) / len(columns)
    high = max(20.0, min(64.0, 240.0 / len(rows)))
    parts = [text("name middle", (left + _RIGHT) / 2, 11, x_label), text("name start", 2, 11, y_label)]
    totals = counts.sum(axis=1)
    crowded = len(columns) > 6
    for i, row in enumerate(rows):
        y = top + i * high
        parts.append(text("tick end", left - 6, y + high / 2 + 3.5, _cut(row, 14), row))
        for j, column in enumerate(columns):
            count, share = int(counts[i, j]), float(counts[i, j] / totals[i]) if totals[i] else 0.0
            x = left + j * wide
            words = f"{row} answered {column}: {count:,} rows, {share:.1%} of {row}"
            cell = Markup(
                '<rect class="cell" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}">'
                "<title>{}</title></rect>"
            ).format(x, y, wide, high, 0.04 + 0.9 * share, words)
            parts.append(cell)
            ink = "off" if share > 0.55 else "on"
            if not crowded:
                parts.append(text(f"{ink} middle", x + wide / 2, y + high / 2 - 1, f"{count:,}"))
                parts.append(text(f"{ink} middle", x + wide / 2, y + high / 2 + 13, f"{share:.1%}"))
            elif count:
                parts.append(text(f"{ink} middle", x + wide / 2, y + high / 2 + 3.5, f"{100 * share:.0f}"))
    bottom = top + len(rows) * high
    every = max(1, math.ceil(len(columns) / 8))
    for j, column in enumerate(columns):
        if j % every == 0:
            parts.append(text("tick middle", left + (j + 0.5) * wide, bottom + 13, _cut(column, 14), column))
    return drawing(alt, parts, bottom + 20)


def ranked(
    labels: Sequence[str], values: Sequence[float], spreads: Sequence[float], *, alt: str, x_label: str
) -> Markup:
    """Draw values as horizontal bars from 0, to either side, each with plus and minus its spread.

    Parameters
    ----------
    labels : (n,)
    values, spreads : (n,)
        In the same unit; a spread is not negative.
    alt, x_label : str
    """
    left, right, pitch, top = 172.0, 398.0, 17.0, 6.0
    ends = [0.0, *(v + s for v, s in zip(values, spreads, strict=True))]
    ends += [v - s for v, s in zip(values, spreads, strict=True)]
    low, high = min(ends), max(ends)
    low, high = (-ceiling(-low) if low < 0 else 0.0), (ceiling(high) if high > 0 else 0.0)
    # a little noise below zero needs no round number
    low = max(low, min(ends) * 1.05) if low < 0 else low
    high = high if high > low else low + 1.0

    def x_of(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    zero, bottom = x_of(0.0), top + pitch * len(labels)
    parts = [line("grid", x_of(high * part), top, x_of(high * part), bottom) for part in (0.5, 1.0)]
    for place, (label, value, spread) in enumerate(zip(labels, values, spreads, strict=True)):
        y = top + place * pitch
        words = f"{label}: {value:.4f} ± {spread:.4f}"
        start, stop = sorted((zero, x_of(value)))
        parts.append(rect("bar", start, y + 2, stop - start, pitch - 5, words))
        parts.append(line("axis", x_of(value - spread), y + pitch / 2 - 0.5, x_of(value + spread), y + pitch / 2 - 0.5))
        parts.append(text("tick end", left - 6, y + pitch / 2 + 3, _cut(label, _LABEL), label))
    parts.append(line("axis", zero, top, zero, bottom))
    parts += [
        text("tick middle", x_of(value), bottom + 13, number(value, high - low)) for value in (0.0, high / 2, high)
    ]
    return drawing(alt, [*parts, text("name middle", (left + right) / 2, bottom + 28, x_label)], bottom + 34)


def range_bar(
    estimate: float,
    lower: float | None,
    upper: float | None,
    needed: float | None,
    *,
    span: tuple[float, float],
    status: str,
    other: float | None = None,
) -> Markup:
    """Draw an estimate, its interval and what was needed in one line, for a cell of a table.

    Parameters
    ----------
    estimate, lower, upper, needed, other : float
        In one unit; ``other`` is a value to compare with, a ring.
    span : (float, float)
        The two ends of the drawing.
    status : str
        pass, fail, unknown or plain: its hue.
    """
    width, height = 150.0, 18.0
    low, high = span
    reach = (high - low) or 1.0

    def x_of(value: float) -> float:
        return 5 + (width - 10) * min(1.0, max(0.0, (value - low) / reach))

    parts = [line("grid", 2, height / 2, width - 2, height / 2)]
    said = f"estimate {estimate:.4g}"
    if needed is not None:
        parts.append(line("needed", x_of(needed), 1, x_of(needed), height - 1))
    if lower is not None and upper is not None:
        parts.append(line(f"range {status}", x_of(lower), height / 2, x_of(upper), height / 2))
        said += f", interval {lower:.4g} to {upper:.4g}"
    said += "" if needed is None else f", needed {needed:.4g}"
    if other is not None:
        parts.append(dot("other", x_of(other), height / 2, 3.2, f"champion {other:.4g}"))
        said += f", champion {other:.4g}"
    parts.append(dot(f"point {status}", x_of(estimate), height / 2, 3.6, said))
    return drawing(said, parts, height, width)


def span_of(values: Sequence[float | None]) -> tuple[float, float]:
    """The ends of a drawing that shows all of ``values``, with a little room."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    room = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _axes(x_range: tuple[float, float], y_range: tuple[float, float], x_label: str, y_label: str) -> list[Markup]:
    parts = [line("axis", _LEFT, _BASE, _RIGHT, _BASE), line("axis", _LEFT, _TOP, _LEFT, _BASE)]
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _LEFT + part * (_RIGHT - _LEFT), _BASE - part * (_BASE - _TOP)
        x_value, y_value = (low + part * (high - low) for low, high in (x_range, y_range))
        if part:
            parts.append(line("grid", _LEFT, y, _RIGHT, y))
        parts.append(text("tick end", _LEFT - 5, y + 3.5, number(y_value, y_range[1] - y_range[0])))
        place = "start" if part == 0 else "end" if part == 1 else "middle"
        parts.append(text(f"tick {place}", x, _BASE + 14, number(x_value, x_range[1] - x_range[0])))
    parts.append(text("name middle", (_LEFT + _RIGHT) / 2, _BASE + 30, x_label))
    return [*parts, text("name start", 2, 9, y_label)]


def _legend(series: Sequence[Series]) -> list[Markup]:
    """Two to a row, below the chart."""
    parts = []
    for place, each in enumerate(series):
        x = _LEFT + (place % 2) * (_RIGHT - _LEFT) / 2
        y = _BASE + 48 + 16 * (place // 2)
        kind = f"s{each.style}"
        parts.append(path(f"curve {kind}", [(x, y - 3.5), (x + 18, y - 3.5)]) if each.joined else Markup(""))
        parts += [dot(f"dot {kind}", x + 9, y - 3.5, 3, each.name)] if each.marked else []
        parts.append(text("name start", x + 24, y, _cut(each.name, 26), each.name))
    return parts


def _span(values: Sequence[float]) -> tuple[float, float]:
    """From a round number to a round number around all values, or from 0 where they are near it."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if 0 <= low < high / 2:
        return 0.0, ceiling(high)
    if not low < high:
        room = abs(high) * 0.1 or 1.0
        return low - room, high + room
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    for step in (size * factor for factor in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 20)):  # four from end to end
        begin = math.floor(low / step) * step
        if begin + 4 * step >= high:
            break
    return begin, begin + 4 * step


def _cut(label: str, most: int) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
