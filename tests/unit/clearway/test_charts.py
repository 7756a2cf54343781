"""Charts put numbers where they belong, label their axes, and let no text of the data become markup."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup

from clearway.charts import Series, chart, heat_map, range_bar, ranked, span_of
from clearway.svg import number, standalone

EVIL = '<script>alert("x")</script>'


def shapes(svg: Markup, tag: str, kind: str) -> list[dict[str, str]]:
    root = ElementTree.fromstring(str(svg))
    found = [shape for shape in root.iter(tag) if kind in shape.attrib["class"].split()]
    return [{**shape.attrib, "title": shape.findtext("title") or ""} for shape in found]


def texts(svg: Markup) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(str(svg)).iter("text")]


def test_a_chart_draws_each_line_in_its_own_style_with_axes_and_a_legend() -> None:
    series = [Series("ours", [(0, 0), (1, 1)], 1), Series("theirs", [(0, 0), (1, 0.5)], 2)]
    svg = chart(series, alt="two lines", x_label="rate (share)", y_label="other (share)", unit=True, diagonal=True)
    assert 'aria-label="two lines"' in svg
    assert {"ours", "theirs", "rate (share)", "other (share)", "0", "0.25", "1"} <= set(texts(svg))
    ours, theirs = (shapes(svg, "path", kind)[0]["d"] for kind in ("s1", "s2"))
    assert ours.startswith("M50.0,262.0L408.0,24.0")
    assert theirs.startswith("M50.0,262.0L408.0,143.0")
    assert len(shapes(svg, "line", "break")) == 1


def test_points_carry_their_numbers_and_whiskers_their_ends() -> None:
    svg = chart(
        [Series("ours", [(5, 10), (10, 20)], whiskers=[(8, 12), (15, 25)], marked=True)],
        alt="",
        x_label="x",
        y_label="y",
    )
    assert [dot["title"] for dot in shapes(svg, "circle", "dot")] == ["ours: 5, 10", "ours: 10, 20"]
    first, second = shapes(svg, "line", "whisker")
    assert float(first["y1"]) > float(first["y2"])
    assert float(second["y2"]) >= 24
    assert "nan" not in str(chart([], alt="nothing", x_label="", y_label="")).lower()


def test_a_heat_map_shades_by_share_of_the_row() -> None:
    counts = np.array([[90, 10], [0, 0]])
    svg = heat_map(counts, ("no", "yes"), ("no", "yes"), alt="", x_label="answered", y_label="actual")
    cells = shapes(svg, "rect", "cell")
    assert cells[0]["title"] == "no answered no: 90 rows, 90.0% of no"
    assert float(cells[0]["fill-opacity"]) > float(cells[1]["fill-opacity"]) > float(cells[2]["fill-opacity"])
    assert {"90", "90.0%", "answered", "actual"} <= set(texts(svg))
    many = heat_map(np.eye(12, dtype=int), list("abcdefghijkl"), list("abcdefghijkl"), alt="", x_label="", y_label="")
    assert texts(many).count("100") == 12


def test_ranked_bars_start_at_zero_on_either_side() -> None:
    svg = ranked(["much", "none", "harm"], [0.2, 0.0, -0.05], [0.01, 0.0, 0.01], alt="", x_label="loss")
    bars = shapes(svg, "rect", "bar")
    zero = float(bars[0]["x"])
    assert float(bars[2]["x"]) + float(bars[2]["width"]) == pytest.approx(zero, abs=0.2)
    assert bars[0]["title"] == "much: 0.2000 ± 0.0100"
    assert "nan" not in str(ranked(["none"], [0.0], [0.0], alt="", x_label=""))


def test_a_range_bar_puts_estimate_interval_and_need_on_one_scale() -> None:
    svg = range_bar(0.5, 0.4, 0.6, 0.45, span=(0.0, 1.0), status="pass", other=0.55)
    (bar,), (needed,), (point,) = (
        shapes(svg, "line", "range"),
        shapes(svg, "line", "needed"),
        shapes(svg, "circle", "point"),
    )
    assert float(bar["x1"]) < float(needed["x1"]) < float(point["cx"]) < float(bar["x2"])
    assert 'aria-label="estimate 0.5, interval 0.4 to 0.6, needed 0.45, champion 0.55"' in svg
    outside = range_bar(9.0, None, None, None, span=(0.0, 1.0), status="plain")
    assert float(shapes(outside, "circle", "point")[0]["cx"]) == 145


def test_a_span_holds_every_known_value() -> None:
    low, high = span_of([0.2, None, 0.8, float("nan")])
    assert low < 0.2 < 0.8 < high
    assert span_of([None]) == (0.0, 1.0)
    low, high = span_of([0.0, 0.0])
    assert low < 0 < high


def test_no_text_of_the_data_becomes_markup() -> None:
    drawn = [
        chart([Series(EVIL, [(0, 1)], marked=True), Series("b", [])], alt=EVIL, x_label=EVIL, y_label=EVIL),
        heat_map(np.ones((1, 1), int), [EVIL], [EVIL], alt=EVIL, x_label=EVIL, y_label=EVIL),
        ranked([EVIL], [1.0], [0.0], alt=EVIL, x_label=EVIL),
    ]
    for svg in drawn:
        assert "<script" not in svg
        ElementTree.fromstring(str(svg))


def test_a_drawing_alone_is_a_whole_file_that_needs_no_other() -> None:
    alone = standalone(ranked(["a"], [1.0], [0.1], alt="one", x_label="x"))
    root = ElementTree.fromstring(alone)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "--challenger" in alone
    assert not re.search(r"(src|href)=", alone)


@pytest.mark.parametrize(
    ("values", "ends"),
    [([-85324.0, 123396.0], (-160e3, 160e3)), ([0.6, 1.0], (0.5, 1.0)), ([0.1, 0.9], (0.0, 1.0))],
)
def test_axes_end_on_round_numbers_and_hold_all_values(values: list[float], ends: tuple[float, float]) -> None:
    points = [(value, value) for value in values]
    svg = str(chart([Series("rows", points, 1)], alt="", x_label="x", y_label="y"))
    for end in ends:
        assert f">{number(end, ends[1] - ends[0])}</text>" in svg


def test_what_is_left_of_a_sum_that_should_be_nothing_is_shown_as_nothing() -> None:
    assert number(-5.6e-17, 0.6) == "0"
