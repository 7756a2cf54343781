"""Self-contained HTML pages for people: one look for every report, no script, no outside file."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from clearway.files import write_text

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
class Page:
    """One report: what was judged, the verdict, one sentence why, and the evidence."""

    title: str
    verdict: str
    status: str
    """pass, fail, warn or unknown: the colour of the verdict."""
    sentence: str
    facts: Sequence[tuple[str, str]] = ()
    blocks: Sequence[Table | Picture] = ()


def draw(figure: "Figure") -> bytes:
    """Render a matplotlib figure to PNG bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
    return stream.getvalue()


def write_page(path: Path, page: Page) -> None:
    """Render ``page`` to one HTML file. All text is escaped."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    write_text(path, environment.from_string(_TEMPLATE).render(page=page))


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}: {{ page.verdict }}</title>
<style>
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6675; --line: #d9dee6; --paper: #ffffff; --wash: #f5f7fa;
  --pass: #1a7f4b; --fail: #c22f2f; --warn: #a86400; --unknown: #5b6675; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b4; --line: #333c48; --paper: #14181e;
  --wash: #1b2129; --pass: #4cc38a; --fail: #ff7b72; --warn: #e3a64a; --unknown: #9aa5b4; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 68rem; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { display: inline-block; border-radius: .3rem; padding: .05rem .6rem; font-weight: 600; color: var(--paper); }
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
p.note { color: var(--soft); margin: .4rem 0 0; } img { max-width: 100%; background: #fff; border-radius: .3rem; }
</style>
</head>
<body>
<h1>{{ page.title }} <span class="verdict {{ page.status }}">{{ page.verdict }}</span></h1>
<p class="sentence">{{ page.sentence }}</p>
<dl>
{% for name, value in page.facts %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% for block in page.blocks %}
<h2>{{ block.title }}</h2>
{% if block is picture %}
<img src="{{ block.data_url }}" alt="{{ block.alt }}">
{% else %}
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
{% endif %}
{% endfor %}
</body>
</html>
"""
