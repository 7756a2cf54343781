"""Drawings say what the numbers say, at the right place, and no text of the data becomes markup."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from clearway.reporting import Card, Cards, Drawing, Drawings, Page, Table, bars, histogram, overlay, write_page

EVIL = '<script>alert("x")</script>'


def shapes(svg: Markup, kind: str) -> list[dict[str, str]]:
    """The rectangles of a kind, and the title that each shows under the pointer."""
    root = ElementTree.fromstring(str(svg))
    found = [shape for shape in root.iter("rect") if kind in shape.attrib["class"].split()]
    return [{**shape.attrib, "title": shape.findtext("title") or ""} for shape in found]


def texts(svg: Markup) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(str(svg)).iter("text")]


def test_a_histogram_shades_the_allowed_range_and_colours_what_is_outside() -> None:
    svg = histogram([0, 10, 20, 30, 1000], [5, 100, 50, 1], low=10, high=30, alt="temperatures", x_label="temp")
    (allowed,) = shapes(svg, "allowed")
    good, bad = shapes(svg, "bar"), shapes(svg, "bad")
    assert [shape["title"] for shape in good] == ["10 to 20: 100 rows", "20 to 30: 50 rows"]
    assert [shape["title"] for shape in bad] == ["0 to 10: 5 rows", "30 to 1,000: 1 rows"]
    left, width = float(allowed["x"]), float(allowed["width"])
    assert all(left <= float(bar["x"]) < left + width for bar in good)
    assert not any(left <= float(bar["x"]) < left + width for bar in bad)
    assert float(good[0]["height"]) == pytest.approx(2 * float(good[1]["height"]), abs=0.2)
    assert {"0", "1,000", "temp", "rows"} <= set(texts(svg))


def test_one_bad_row_of_a_million_is_seen() -> None:
    (bad,) = shapes(histogram([0, 1, 2], [1_000_000, 1], high=1, alt=""), "bad")
    assert float(bad["height"]) > 2


def test_a_bar_over_a_bound_is_coloured_on_its_far_side_only() -> None:
    svg = histogram([0, 10], [4], low=5, alt="")
    (bad,), (good,) = shapes(svg, "bad"), shapes(svg, "bar")
    assert float(bad["x"]) + float(bad["width"]) == pytest.approx(float(good["x"]), abs=1.5)
    assert not shapes(histogram([0, 10], [4], alt=""), "bad")
    assert not shapes(histogram([0, 10], [4], alt=""), "allowed")


def test_times_are_written_as_dates_or_minutes() -> None:
    year = [1356998400.0 + 86400 * 73 * i for i in range(6)]
    assert {"2013-01-01", "2014-01-01"} <= set(texts(histogram(year, [1] * 5, alt="", times=True)))
    assert "01-01 06:00" in texts(histogram([1356998400.0 + 21600 * i for i in range(5)], [1] * 4, alt="", times=True))


def test_an_overlay_compares_shares_and_not_counts() -> None:
    svg = overlay([0, 1, 2], [1000, 3000], [1, 3], alt="both", names=("reference", "now"))
    paths = {path.attrib["class"]: path.attrib["d"] for path in ElementTree.fromstring(str(svg)).iter("path")}
    assert paths["reference"] == paths["current"]
    assert {"reference", "now", "80%"} <= set(texts(svg))
    assert "nan" not in str(overlay([0, 1], [3], [0], alt="nothing now")).lower()


def test_bars_stand_side_by_side_with_their_shares() -> None:
    svg = bars(["a", "b"], [("reference", [0.75, 0.25]), ("now", [0.5, 0.5])], alt="", as_share=True)
    widths = [float(bar["width"]) for bar in shapes(svg, "reference") if float(bar["height"]) < 9]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01)
    assert texts(svg).count("50%") == 2


def test_categories_that_are_not_allowed_are_coloured_and_the_rest_sets_no_scale() -> None:
    svg = bars(["EWR", "XXX", "90 others"], [("rows", [10, 1, 100000])], alt="", bad=["XXX"], rest=True)
    assert [bar["title"] for bar in shapes(svg, "bad")] == ["XXX, rows: 1"]
    first, rest = shapes(svg, "bar")
    assert first["width"] == rest["width"]
    assert "rest" in rest["class"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: histogram([0, 1], [1, 2], alt=""),
        lambda: overlay([0], [], [], alt=""),
        lambda: overlay([0, 1, 2], [1, 2], [1], alt=""),
        lambda: bars(["a"], [("rows", [1, 2])], alt=""),
    ],
)
def test_numbers_that_do_not_fit_their_axis_are_refused(wrong: "object") -> None:
    with pytest.raises(ValueError, match=r"edges|labels"):
        wrong()  # type: ignore[operator]


def test_a_page_shows_every_kind_of_block_and_escapes_what_the_data_says(tmp_path: Path) -> None:
    drawing = Drawing(EVIL, bars([EVIL], [(EVIL, [1])], alt=EVIL), note=EVIL)
    examples = Table("", ("row", EVIL), [("1", EVIL)], note=EVIL)
    cards = Cards("Cards", [Card(EVIL, "fail", "failed", [("found", EVIL)], examples, drawing)], note=EVIL)
    folded = Table("Folded", ("a",), [("cell",)], ["pass"], folded=True)
    blocks = [cards, drawing, Drawings("Drawings", [drawing]), folded, Table("Open", ("a",), [("b",)])]
    write_page(tmp_path / "page.html", Page(EVIL, "failed", "fail", EVIL, [(EVIL, EVIL)], blocks))
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert page.count("<svg") == 3
    assert re.search(r"<details><summary>Folded</summary>\s*<div", page)
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"(src|href)=", page), "the page needs no other file"
