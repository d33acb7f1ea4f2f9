"""Charts: numbers as people read them, marks where they belong, and text that stays text."""

import math
import re
from xml.etree import ElementTree as ET

import pytest

from stages.page.charts import (
    Estimate,
    Scale,
    Series,
    calibration_chart,
    forest_chart,
    graph_picture,
    interval_text,
    line_chart,
    number,
    scatter_chart,
    share_chart,
    tick_text,
    ticks,
)

HOSTILE = "</svg><script>alert(1)</script>\"'&"


def parsed(markup):
    """The chart as XML, which it has to be."""
    return ET.fromstring(str(markup))  # noqa: S314


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0.000"),
        (0.51234, "0.512"),
        (14.3426, "14.3"),
        (-0.148, "\u22120.148"),
        (123.4, "123"),
        (12345.6, "12,346"),
        (0.00001, "0.000"),
        (1.0, "1.00"),
    ],
)
def test_numbers_have_three_digits_and_at_most_three_decimals(value, expected):
    assert number(value) == expected


def test_signs_and_intervals_are_written_out():
    assert number(0.2, signed=True) == "+0.200"
    assert interval_text(Estimate("x", 0.5, 0.25, 0.75)) == "0.500 (0.250 to 0.750)"
    assert tick_text(-0.2) == "\u22120.2"
    assert tick_text(20000.0) == "20,000"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-0.3, 0.25, [-0.2, 0.0, 0.2]), (3.0, 3.0, [3.0])],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == expected


def test_a_scale_maps_its_ends_to_the_ends_of_the_drawing():
    scale = Scale(2.0, 4.0, 100.0, 200.0)

    assert (scale(2.0), scale(3.0), scale(4.0)) == (100.0, 150.0, 200.0)


def test_larger_values_stand_higher_and_lines_keep_their_points():
    chart = parsed(
        line_chart("Loss", [Series("loss", [(0, 1.0), (1, 3.0)])], x_label="step", y_label="loss", description="d")
    )

    (line,) = chart.iter("polyline")
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.get("points").split())
    assert x1 > x0
    assert y1 < y0


def test_a_legend_stands_only_where_there_are_several_lines():
    def legend_of(count):
        lines = [Series(f"line {i}", [(0, 0.0), (1, 1.0)]) for i in range(count)]
        return "legend" in str(line_chart("t", lines, x_label="x", y_label="y", description="d"))

    assert legend_of(2)
    assert not legend_of(1)


def test_a_forest_names_each_estimate_and_marks_no_effect():
    chart = forest_chart(
        "Gain",
        [Estimate("all", 0.2, 0.1, 0.3), Estimate("a rather long name of a slice", -0.1, -0.2, 0.0)],
        x_label="gain",
        description="d",
    )

    texts = [element.text for element in parsed(chart).iter("text")]
    assert "all" in texts
    assert any(text.endswith("\u2026") for text in texts)
    assert 'class="zero"' in chart
    assert "a rather long name of a slice: \u22120.100 (\u22120.200 to 0.000)" in chart


def test_equal_values_still_have_a_scale():
    chart = str(line_chart("t", [Series("x", [(1, 5.0), (1, 5.0)])], x_label="x", y_label="y", description="d"))

    assert "nan" not in chart
    assert not re.search(r"\binf\b", chart)


def test_ratios_stand_on_a_logarithmic_axis():
    chart = parsed(
        share_chart("r", [Series("all", [(0.0, 0.1), (0.5, 1.0), (1.0, 10.0)])], x_label="ratio", description="d")
    )

    (line,) = chart.iter("polyline")
    xs = [float(point.split(",")[0]) for point in line.get("points").split()]
    assert math.isclose(xs[1] - xs[0], xs[2] - xs[1], abs_tol=0.2)


def test_the_graph_has_a_box_for_each_stage_and_a_curve_for_each_edge():
    picture = parsed(graph_picture([["a"], ["b", "c"]], [("a", "b"), ("a", "c")], description="d"))

    assert len(list(picture.iter("rect"))) == 3
    assert len(list(picture.iter("path"))) == 2


@pytest.mark.parametrize(
    "chart",
    [
        line_chart(HOSTILE, [Series(HOSTILE, [(0, 1.0)])] * 2, x_label=HOSTILE, y_label=HOSTILE, description=HOSTILE),
        forest_chart(HOSTILE, [Estimate(HOSTILE, 0, 0, 0)], x_label=HOSTILE, description=HOSTILE, zero=None),
        scatter_chart(HOSTILE, [(HOSTILE, 0, 0)], x_label=HOSTILE, y_label=HOSTILE, description=HOSTILE),
        share_chart(HOSTILE, [Series(HOSTILE, [(0, 1.0)])], x_label=HOSTILE, description=HOSTILE),
        calibration_chart(HOSTILE, [Estimate(HOSTILE, 0, 0, 0)], [0.5], description=HOSTILE),
        graph_picture([[HOSTILE]], [], description=HOSTILE),
    ],
)
def test_text_stays_text_and_every_picture_has_words(chart):
    tree = parsed(chart)

    assert not list(tree.iter("script"))
    pictures = [element for element in tree.iter() if element.tag == "svg"]
    assert all(picture.get("role") == "img" and picture.get("aria-label") == HOSTILE for picture in pictures)
