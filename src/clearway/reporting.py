"""Self-contained HTML pages for people: one look for every report, no script, no outside file.

Distributions are drawn as inline SVG, which takes its colours from the page, light or dark, and costs no import:
:func:`histogram`, :func:`overlay` and :func:`bars` return markup for :class:`Drawing` and :class:`Card`.
"""

import base64
import bisect
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from clearway.files import write_text
from clearway.svg import DARK, LIGHT, STYLE, ceiling, drawing, line, number, rect, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table of ready-made strings. ``status`` marks a row: pass, fail, warn, unknown or an empty string."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    status: Sequence[str] = field(default_factory=tuple)
    note: str = ""
    folded: bool = False
    """Whether only the title is seen until it is opened."""


@dataclass(frozen=True)
class Picture:
    """A drawing, embedded as PNG; ``alt`` says what it shows."""

    title: str
    alt: str
    png: bytes

    @property
    def data_url(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Drawing:
    """A drawing of :func:`histogram`, :func:`overlay` or :func:`bars`, under a title."""

    title: str
    svg: Markup
    note: str = ""


@dataclass(frozen=True)
class Drawings:
    """Several drawings under one heading, side by side where the page is wide enough."""

    title: str
    drawings: Sequence[Drawing]
    note: str = ""


@dataclass(frozen=True)
class Card:
    """One judged thing with all its evidence."""

    title: str
    status: str
    """pass, fail, warn or unknown."""
    verdict: str
    """The word in the coloured mark."""
    facts: Sequence[tuple[str, str]]
    examples: Table | None = None
    drawing: Drawing | None = None


@dataclass(frozen=True)
class Cards:
    """Cards under one heading."""

    title: str
    cards: Sequence[Card]
    note: str = ""


Block = Table | Picture | Drawing | Drawings | Cards


@dataclass(frozen=True)
class Page:
    """One report: what was judged, the verdict, one sentence why, and the evidence."""

    title: str
    verdict: str
    status: str
    """pass, fail, warn or unknown: the colour of the verdict."""
    sentence: str
    facts: Sequence[tuple[str, str]] = ()
    blocks: Sequence[Block] = ()


def draw(figure: "Figure") -> bytes:
    """Render a matplotlib figure to PNG bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
    return stream.getvalue()


def write_page(path: Path, page: Page) -> None:
    """Render ``page`` to one HTML file. All text is escaped."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.tests["of"] = lambda block, kind: type(block).__name__ == kind
    write_text(path, environment.from_string(_TEMPLATE).render(page=page, light=LIGHT, dark=DARK, style=STYLE))


def histogram(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    alt: str,
    low: float | None = None,
    high: float | None = None,
    x_label: str = "",
    times: bool = False,
) -> Markup:
    """Draw one distribution; the allowed range is shaded, and what lies outside of it is coloured.

    Parameters
    ----------
    edges : (n + 1,) ascending
        Borders of the bins, in the unit of the column; seconds since 1970 where ``times``. Every bin is drawn equally
        wide, so a first or last bin that holds all outliers needs no room of its own.
    counts : (n,)
        Rows in each bin.
    alt : str
        What the drawing shows, for those who cannot see it.
    low, high : float, optional
        The allowed range, open where None.
    x_label : str
        Name of the horizontal axis.
    times : bool
        Whether the edges are times.

    Raises
    ------
    ValueError
        There is not one edge more than counts, or no bin at all.
    """
    axis = _Axis(edges, counts)
    top = ceiling(max(counts))
    first = axis.x(low) if low is not None else _LEFT
    last = axis.x(high) if high is not None else _RIGHT
    parts = []
    if low is not None or high is not None:
        parts.append(rect("allowed", first, _TOP, last - first, _BASE - _TOP, "allowed range"))
        parts += [line("bound", x, _TOP, x, _BASE) for x, bound in ((first, low), (last, high)) if bound is not None]
    write = _time if times else number
    spread = edges[-1] - edges[0]
    for start, end, left, right, count in axis.bins(counts):
        words = f"{write(start, spread)} to {write(end, spread)}: {count:,.0f} rows"
        # a bar over a bound is coloured on the far side of it only
        for a, b, kind in ((left, first, "bad"), (max(left, first), min(right, last), "bar"), (last, right, "bad")):
            begin, stop = max(a, left), min(b, right)
            if count > 0 and stop - begin > _HAIR:
                height = max(_height(count, top), 3.5)  # one bad row of a million is seen
                parts.append(rect(kind, begin + 0.5, _BASE - height, stop - begin - 1, height, words))
    return drawing(alt, [*parts, *_y_axis(top, "rows", as_share=False), *axis.ticks(x_label, times=times)], _HEIGHT)


def overlay(
    edges: Sequence[float],
    reference: Sequence[float],
    current: Sequence[float],
    *,
    alt: str,
    names: tuple[str, str] = ("reference", "now"),
    x_label: str = "",
    times: bool = False,
) -> Markup:
    """Draw two distributions over each other on the same bins, as shares of their own rows.

    Parameters
    ----------
    edges : (n + 1,) ascending
        Borders of the bins; seconds since 1970 where ``times``. Every bin is drawn equally wide.
    reference, current : (n,)
        Rows, or shares of them, in each bin; an empty side is drawn flat.
    alt : str
        What the drawing shows, for those who cannot see it.
    names : (str, str)
        What the legend calls the two.
    x_label : str
        Name of the horizontal axis.
    times : bool
        Whether the edges are times.

    Raises
    ------
    ValueError
        There is not one edge more than counts, or no bin at all.
    """
    axis = _Axis(edges, reference, current)
    sides = [_shares(side) for side in (reference, current)]
    top = ceiling(max(max(side) for side in sides))
    parts = []
    for side, kind in zip(sides, ("reference", "current"), strict=True):
        path = [f"M{_LEFT:.1f},{_BASE}"]
        for _, _, left, right, share in axis.bins(side):
            y = _BASE - _height(share, top)
            path.append(f"L{left:.1f},{y:.1f}L{right:.1f},{y:.1f}")
        parts.append(Markup('<path class="{}" d="{}L{:.1f},{}"/>').format(kind, "".join(path), _RIGHT, _BASE))
    legend = _legend(names)
    return drawing(
        alt, [*parts, *legend, *_y_axis(top, "share", as_share=True), *axis.ticks(x_label, times=times)], _HEIGHT
    )


def bars(
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[float]]],
    *,
    alt: str,
    bad: Collection[str] = (),
    rest: bool = False,
    as_share: bool = False,
) -> Markup:
    """Draw categories as horizontal bars, one beside the other where there are two series.

    Parameters
    ----------
    labels : (n,)
        The categories.
    series : one or two of (name, (n,) values)
        One is drawn as counts of rows, with the labels in ``bad`` coloured. Of two the first is the reference, the
        second the current one.
    alt : str
        What the drawing shows, for those who cannot see it.
    bad : collection of str
        Categories that are not allowed.
    rest : bool
        Whether the last label stands for all others: it is drawn faintly, and does not set the scale.
    as_share : bool
        Whether values are shares, to be written as percent.

    Raises
    ------
    ValueError
        A series has not one value for each label.
    """
    if any(len(values) != len(labels) for _, values in series):
        raise ValueError(f"{len(labels)} labels, but not as many values in each series")
    scaled = len(labels) - 1 if rest and len(labels) > 1 else len(labels)
    top = max((value for _, values in series for value in values[:scaled]), default=0) or 1
    thick = 13 if len(series) == 1 else 9
    pitch = thick * len(series) + 7
    start = 6 if len(series) == 1 else _TOP
    parts = []
    for row, label in enumerate(labels):
        y = start + row * pitch
        short = label if len(label) <= _LABEL else label[: _LABEL - 1] + "…"
        middle = y + thick * len(series) / 2
        parts.append(text("tick end", _BAR_LEFT - 6, middle + 3.5, short or "(empty)", title=label))
        for place, (name, values) in enumerate(series):
            value = values[row]
            kind = ("bad" if label in bad else "bar") if len(series) == 1 else ("reference", "current")[place]
            kind += " rest" if row >= scaled else ""
            width = max((_BAR_RIGHT - _BAR_LEFT) * min(value / top, 1), 1.5 if value else 0)
            written = _percent(value) if as_share else f"{value:,.0f}"
            words = f"{label}, {name}: {written}"
            parts.append(rect(kind, _BAR_LEFT, y + place * thick, width, thick - 1, words))
            parts.append(text("value", _BAR_LEFT + width + 4, y + place * thick + thick / 2 + 3, written))
    height = start + len(labels) * pitch + 2
    parts.append(line("axis", _BAR_LEFT, start - 2, _BAR_LEFT, height - 4))
    if len(series) == 2:
        parts += _legend((series[0][0], series[1][0]))
    return drawing(alt, parts, height)


_HEIGHT = 176
_LEFT, _RIGHT, _TOP, _BASE = 46.0, 408.0, 22.0, 138.0
"""The frame of a histogram, in units of the drawing."""
_HAIR = 0.01
"""A part of a bar thinner than this is an edge of a bin that was laid just beyond a bound."""
_BAR_LEFT, _BAR_RIGHT = 126.0, 356.0
_LABEL = 18
"""Characters of a category that fit beside its bar."""


class _Axis:
    """The horizontal axis of a histogram: from values to places, every bin equally wide."""

    def __init__(self, edges: Sequence[float], *sides: Sequence[float]) -> None:
        for counts in sides:
            if len(edges) != len(counts) + 1 or not counts:
                raise ValueError(f"{len(counts)} bins need {len(counts) + 1} edges, not {len(edges)}")
        self.edges = edges
        self.step = (_RIGHT - _LEFT) / (len(edges) - 1)

    def x(self, value: float) -> float:
        """The place of a value; what lies beyond the axis stands at its end."""
        if value <= self.edges[0]:
            return _LEFT
        if value >= self.edges[-1]:
            return _RIGHT
        index = bisect.bisect_right(self.edges, value) - 1
        low, high = self.edges[index], self.edges[index + 1]
        return _LEFT + self.step * (index + (value - low) / (high - low))

    def bins(self, counts: Sequence[float]) -> list[tuple[float, float, float, float, float]]:
        """First value, last value, left, right and count of each bin."""
        return [
            (self.edges[i], self.edges[i + 1], _LEFT + i * self.step, _LEFT + (i + 1) * self.step, count)
            for i, count in enumerate(counts)
        ]

    def ticks(self, label: str, *, times: bool) -> list[Markup]:
        """The axis line with a few edges written under it, and the axis's name."""
        bins = len(self.edges) - 1
        spread = self.edges[-1] - self.edges[0]
        wanted = sorted({round(i * bins / 4) for i in range(5)} if bins > 4 else range(bins + 1))
        widths = [b - a for a, b in zip(self.edges, self.edges[1:], strict=False)]
        usual = sorted(widths)[len(widths) // 2]
        # an outer bin of another width holds the outliers: where it ends matters more than an even step
        breaks = [i for i, width in ((1, widths[0]), (bins - 1, widths[-1])) if bins > 2 and width > 1.5 * usual]
        parts = [line("axis", _LEFT, _BASE, _RIGHT, _BASE)]
        parts += [line("break", _LEFT + i * self.step, _TOP, _LEFT + i * self.step, _BASE) for i in breaks]
        for index in wanted:
            x = _LEFT + index * self.step
            written = _time(self.edges[index], spread) if times else number(self.edges[index], spread)
            place = "start" if index == 0 else "end" if index == bins else "middle"
            parts.append(line("axis", x, _BASE, x, _BASE + 4))
            parts.append(text(f"tick {place}", x, _BASE + 15, written))
        if label:
            parts.append(text("name middle", (_LEFT + _RIGHT) / 2, _HEIGHT - 6, label))
        return parts


def _y_axis(top: float, label: str, *, as_share: bool) -> list[Markup]:
    parts = [line("axis", _LEFT, _TOP, _LEFT, _BASE), text("name start", 2, 11, label)]
    for value in (0.0, top / 2, top):
        y = _BASE - _height(value, top)
        written = _percent(value) if as_share else _short(value)
        parts.append(text("tick end", _LEFT - 5, y + 3.5, written))
        if value:
            parts.append(line("grid", _LEFT, y, _RIGHT, y))
    return parts


def _legend(names: tuple[str, str]) -> list[Markup]:
    parts = []
    x = _RIGHT
    for name, kind in ((names[1], "current"), (names[0], "reference")):
        x -= 5.6 * len(name)
        parts.append(text("name start", x, 11, name))
        x -= 13
        parts.append(rect(kind, x, 3, 9, 9, name))
        x -= 12
    return parts


def _height(value: float, top: float) -> float:
    return (_BASE - _TOP) * value / top


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _short(count: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 10 * size or (count >= size and count % size == 0):
            return f"{count / size:.3g}{unit}"
    return f"{count:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _time(seconds: float, spread: float) -> str:
    """A time, UTC, to the day, or to the minute where the axis is short."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%d}" if spread > 4 * 86400 else f"{moment:%m-%d %H:%M}"


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}: {{ page.verdict }}</title>
<style>
:root { color-scheme: light dark; {{ light }} }
@media (prefers-color-scheme: dark) { :root { {{ dark }} } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 68rem; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
.verdict { display: inline-block; border-radius: .3rem; padding: .05rem .6rem; font-weight: 600; color: var(--paper);
  white-space: nowrap; }
h3 .verdict { font-size: .8rem; margin-right: .35rem; }
.verdict.pass { background: var(--pass); } .verdict.fail { background: var(--fail); }
.verdict.warn { background: var(--warn); } .verdict.unknown { background: var(--unknown); }
p.sentence { font-size: 1.05rem; margin: .6rem 0 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; color: var(--soft); }
dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; background: var(--wash); }
tr.pass td:first-child { border-left: 3px solid var(--pass); }
tr.fail td:first-child { border-left: 3px solid var(--fail); }
tr.warn td:first-child { border-left: 3px solid var(--warn); }
tr.unknown td:first-child { border-left: 3px solid var(--unknown); }
details.detail { color: var(--soft); font-size: .85rem; max-width: 34rem; overflow-wrap: anywhere; min-width: 11rem; }
details.detail summary { color: var(--ink); font-size: .95rem; font-weight: 600; margin: 0; }
td svg.plot { width: 9.5rem; } @media (max-width: 48rem) { th, td { padding: .35rem .4rem; } }
p.note { color: var(--soft); margin: .4rem 0 0; } img { max-width: 100%; background: #fff; border-radius: .3rem; }
summary { cursor: pointer; font-size: 1.1rem; font-weight: 700; margin: 2rem 0 .5rem; }
.card { border: 1px solid var(--line); border-left: 4px solid var(--unknown); border-radius: .4rem; margin: .7rem 0;
  padding: .8rem 1rem; display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 26rem); gap: .6rem 1.5rem; }
.card.pass { border-left-color: var(--pass); } .card.fail { border-left-color: var(--fail); }
.card.warn { border-left-color: var(--warn); } .card.plain { grid-template-columns: minmax(0, 1fr); }
.card table { font-size: .87rem; width: auto; } .card .scroll { margin-top: .7rem; }
.card th, .card td { padding: .2rem .6rem; white-space: nowrap; }
.card p.note { font-size: .87rem; }
.drawings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem 2rem;
  margin-top: .8rem; }
figure { margin: 0; } figcaption { font-size: .87rem; color: var(--soft); }
.drawings figcaption { color: var(--ink); font-weight: 600; font-size: .95rem; }
@media (max-width: 48rem) { .card { grid-template-columns: minmax(0, 1fr); } body { margin-top: 1rem; } }
svg.plot { display: block; width: 100%; max-width: 30rem; height: auto; }
{{ style }}
</style>
</head>
<body>
{% macro table(block) %}
<div class="scroll"><table>
<thead><tr>{% for column in block.columns %}<th>{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in block.rows %}
<tr class="{{ block.status[loop.index0] if block.status else '' }}">
{% for cell in row %}<td>{{ cell }}</td>{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% if block.note %}<p class="note">{{ block.note }}</p>{% endif %}
{% endmacro %}
{% macro figure(drawing) %}
<figure><figcaption>{{ drawing.title }}</figcaption>{{ drawing.svg }}
{% if drawing.note %}<p class="note">{{ drawing.note }}</p>{% endif %}</figure>
{% endmacro %}
<h1>{{ page.title }} <span class="verdict {{ page.status }}">{{ page.verdict }}</span></h1>
<p class="sentence">{{ page.sentence }}</p>
<dl>
{% for name, value in page.facts %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% for block in page.blocks %}
{% if block is of("Table") and block.folded %}
<details><summary>{{ block.title }}</summary>
{{ table(block) }}
</details>
{% elif block is of("Drawing") %}
<h2>{{ block.title }}</h2>
{{ block.svg }}
{% if block.note %}<p class="note">{{ block.note }}</p>{% endif %}
{% else %}
<h2>{{ block.title }}</h2>
{% if block is of("Picture") %}
<img src="{{ block.data_url }}" alt="{{ block.alt }}">
{% elif block is of("Table") %}
{{ table(block) }}
{% elif block is of("Drawings") %}
{% if block.note %}<p class="note">{{ block.note }}</p>{% endif %}
<div class="drawings">
{% for drawing in block.drawings %}
{{ figure(drawing) }}
{% endfor %}
</div>
{% else %}
{% if block.note %}<p class="note">{{ block.note }}</p>{% endif %}
{% for card in block.cards %}
<section class="card {{ card.status }}{{ '' if card.drawing else ' plain' }}">
<div>
<h3><span class="verdict {{ card.status }}">{{ card.verdict }}</span> {{ card.title }}</h3>
<dl>
{% for name, value in card.facts %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% if card.examples %}{{ table(card.examples) }}{% endif %}
</div>
{% if card.drawing %}{{ figure(card.drawing) }}{% endif %}
</section>
{% endfor %}
{% endif %}
{% endif %}
{% endfor %}
</body>
</html>
"""
