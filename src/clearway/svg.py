"""Shapes of inline SVG, and the one style sheet of all drawings.

A drawing names what its parts are (``challenger``, ``allowed``, ``axis``); the page it stands in says what they look
like, light or dark. :func:`standalone` makes a file of one, for where there is no page.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup

WIDTH = 420
"""Of every drawing, in its own units; the page scales it."""

LIGHT = Markup("""--ink: #1c2330; --soft: #5b6675; --line: #d9dee6; --paper: #ffffff; --wash: #f5f7fa;
  --pass: #1a7f4b; --fail: #c22f2f; --warn: #a86400; --unknown: #5b6675; --bar: #6f8bb3; --allowed: #e3f3ea;
  --reference: #9aa5b4; --current: #c8650f; --challenger: #1f6feb; --champion: #a86400; --baseline: #7a8594;""")
DARK = Markup("""--ink: #e6eaf0; --soft: #9aa5b4; --line: #333c48; --paper: #14181e;
  --wash: #1b2129; --pass: #4cc38a; --fail: #ff7b72; --warn: #e3a64a; --unknown: #9aa5b4; --bar: #6d8fc4;
  --allowed: #17332a; --reference: #66717f; --current: #f29b4b; --challenger: #6cb0ff; --champion: #e3a64a;
  --baseline: #8b949e;""")
STYLE = Markup("""
.plot text { font: 10px system-ui, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
.plot .name { fill: var(--ink); } .plot .end { text-anchor: end; } .plot .middle { text-anchor: middle; }
.plot .axis { stroke: var(--soft); } .plot .grid { stroke: var(--line); stroke-dasharray: 2 3; }
.plot .break { stroke: var(--soft); stroke-dasharray: 1 3; }
.plot .allowed { fill: var(--allowed); } .plot .bound { stroke: var(--pass); }
.plot .rest { opacity: .4; } .plot .bar { fill: var(--bar); } .plot .bad { fill: var(--fail); }
.plot .reference { fill: var(--reference); fill-opacity: .55; stroke: var(--reference); }
.plot .current { fill: var(--current); fill-opacity: .3; stroke: var(--current); stroke-width: 1.5; }
.plot .s1 { --hue: var(--challenger); } .plot .s2 { --hue: var(--champion); } .plot .s3 { --hue: var(--baseline); }
.plot .s4 { --hue: var(--pass); } .plot .s5 { --hue: var(--fail); } .plot .s6 { --hue: var(--ink); }
.plot .curve { fill: none; stroke: var(--hue); stroke-width: 1.8; stroke-linejoin: round; }
.plot .whisker { stroke: var(--hue); stroke-width: 1.2; } .plot .dot { fill: var(--hue); }
.plot .curve.s2 { stroke-dasharray: 6 3; } .plot .curve.s3 { stroke-dasharray: 2 2; }
.plot .cloud { fill-opacity: .3; } .plot .cell { fill: var(--challenger); stroke: var(--line); }
.plot .on { fill: var(--ink); font-size: 12px; } .plot .off { fill: var(--paper); font-size: 12px; }
.plot .pass { --hue: var(--pass); } .plot .fail { --hue: var(--fail); } .plot .unknown { --hue: var(--unknown); }
.plot .plain { --hue: var(--challenger); } .plot .range { stroke: var(--hue); stroke-width: 2.5; }
.plot .point { fill: var(--hue); } .plot .needed { stroke: var(--ink); stroke-dasharray: 2 2; }
.plot .other { fill: var(--paper); stroke: var(--champion); stroke-width: 1.5; }""")

_RECT = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
_LINE = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
_DOT = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>')


def rect(kind: str, x: float, y: float, width: float, height: float, title: str) -> Markup:
    """A rectangle that says ``title`` under the pointer."""
    return _RECT.format(kind, x, y, max(width, 0.5), max(height, 0.0), title)


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A straight line."""
    return _LINE.format(kind, x1, y1, x2, y2)


def dot(kind: str, x: float, y: float, radius: float, title: str) -> Markup:
    """A disc that says ``title`` under the pointer."""
    return _DOT.format(kind, x, y, radius, title)


def path(kind: str, points: Sequence[tuple[float, float]]) -> Markup:
    """A line through ``points``."""
    way = "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<path class="{}" d="M{}"/>').format(kind, way) if points else Markup("")


def text(kind: str, x: float, y: float, words: str, title: str = "") -> Markup:
    """A text; ``title`` is said under the pointer where it is longer."""
    inner = Markup("<title>{}</title>").format(title) if title and title != words else Markup("")
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}{}</text>').format(kind, x, y, words, inner)


def drawing(alt: str, parts: Sequence[Markup], height: float, width: float = WIDTH) -> Markup:
    """The parts as one picture; ``alt`` says what it shows, for those who cannot see it."""
    head = Markup('<svg class="plot" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">').format(
        width, height, alt
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def standalone(made: Markup) -> str:
    """A drawing as a file of its own, on white."""
    style = f"<style>svg {{ {LIGHT} background: #ffffff; }} {STYLE}</style>"
    head, rest = str(made).split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg" width="840">{style}{rest}'


def number(value: float, spread: float) -> str:
    """A number with as many digits as tell it from its neighbours on an axis of that spread."""
    if abs(value) < 1e-9 * spread:
        return "0"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        return f"{value:.3g}"
    decimals = max(0, min(6, 2 - math.floor(math.log10(spread)))) if spread > 0 else 2
    written = f"{value:,.{decimals}f}"
    return written.rstrip("0").rstrip(".") if "." in written else written


def ceiling(value: float) -> float:
    """The next round number: 1, 2, 3, 4, 5, 6 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(step for step in (1, 2, 3, 4, 5, 6, 8, 10) if value <= step * power * (1 + 1e-9))
