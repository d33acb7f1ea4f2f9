"""Charts as inline SVG: no script, no font and no picture from elsewhere, and colours that follow the page's theme.

Marks carry classes (`series-0`, `mark`, `grid`) that the page's style sheet colours, so one drawing serves light and
dark. All charts are 360 units wide, about the width of a phone, and stand beside each other on wider screens.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH = 360
_PLOT_HEIGHT = 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 34


class Series(NamedTuple):
    """A line: its name and its points, in the order in which they are joined."""

    name: str
    points: Sequence[tuple[float, float]]


class Estimate(NamedTuple):
    """A number with its interval, under a label."""

    label: str
    value: float
    low: float
    high: float


class Scale(NamedTuple):
    """Where values of an axis stand in the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Place of `value`, rounded so that the drawing is small."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def number(value: float, *, digits: int = 3, signed: bool = False) -> str:
    """`value` in a few significant digits and at most `digits` decimals, as people write it."""
    decimals = digits
    if value:
        decimals = min(digits, max(0, digits - 1 - math.floor(math.log10(abs(value)))))
    text = f"{value:{'+' if signed else ''},.{decimals}f}"
    # A hyphen is too short for a minus.
    return text.replace("-", "\u2212")


def tick_text(value: float) -> str:
    """A round number as it stands at an axis."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
    return text.replace("-", "\u2212")


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def line_chart(title: str, series: Sequence[Series], *, x_label: str, y_label: str, description: str) -> Markup:
    """Lines over a common axis, with a legend when there are several."""
    points = [point for line in series for point in line.points]
    x_scale = _scale([x for x, _ in points], _LEFT, WIDTH - _RIGHT, pad=0.0)
    y_scale = _scale([y for _, y in points], _TOP + _PLOT_HEIGHT, _TOP)
    body = _axes(x_scale, y_scale, x_label=x_label, y_label=y_label)
    for index, line in enumerate(series):
        body += _polyline(index, " ".join(f"{x_scale(x)},{y_scale(y)}" for x, y in line.points), line.name)
    return _figure(title, body, description=description, legend=[line.name for line in series])


def forest_chart(
    title: str, rows: Sequence[Estimate], *, x_label: str, description: str, zero: float | None = 0.0
) -> Markup:
    """Estimates under each other with their intervals, against a line at `zero`, the value of no effect."""
    left, row_height = 112, 22
    height = len(rows) * row_height
    values = [value for row in rows for value in (row.low, row.high, row.value)]
    x_scale = _scale([*values, *([] if zero is None else [zero])], left, WIDTH - _RIGHT - 6)
    body = Markup("")
    for tick in ticks(x_scale.low, x_scale.high, count=4):
        body += _line("grid", x_scale(tick), _TOP, x_scale(tick), _TOP + height)
        body += _text(x_scale(tick), _TOP + height + 14, tick_text(tick), anchor="middle")
    if zero is not None:
        body += _line("zero", x_scale(zero), _TOP, x_scale(zero), _TOP + height)
    for index, row in enumerate(rows):
        y = _TOP + (index + 0.5) * row_height
        name = row.label if len(row.label) <= 18 else row.label[:17] + "\u2026"
        body += _text(left - 8, y + 4, name, anchor="end", kind="strong" if index == 0 else "label")
        body += Markup("<g><title>{}</title>").format(f"{row.label}: {interval_text(row)}")
        body += _line("whisker", x_scale(row.low), y, x_scale(row.high), y)
        body += Markup('<circle class="mark" cx="{}" cy="{}" r="{}"/></g>').format(
            x_scale(row.value), y, 5 if index == 0 else 4
        )
    body += _text((left + WIDTH - _RIGHT) / 2, _TOP + height + 30, x_label, anchor="middle", kind="axis")
    return _figure(title, body, description=description, height=_TOP + height + 36)


def share_chart(title: str, series: Sequence[Series], *, x_label: str, description: str) -> Markup:
    """Share of rows up to a value, over the values on a logarithmic axis.

    Args:
        title: name of the chart.
        series: points of (share, value), shares ascending.
        x_label: what the values are.
        description: what is to be seen, for those who don't see it.
    """
    values = [value for line in series for _, value in line.points]
    logs = _scale([math.log(value) for value in values], _LEFT, WIDTH - _RIGHT - 8, pad=0.02)
    y_scale = Scale(0.0, 1.0, _TOP + _PLOT_HEIGHT, _TOP)
    body = _axes(None, y_scale, x_label=x_label, y_label="share of rows")
    for tick in _log_ticks(math.exp(logs.low), math.exp(logs.high)):
        body += _text(logs(math.log(tick)), _TOP + _PLOT_HEIGHT + 14, tick_text(tick), anchor="middle")
    if logs.low < 0 < logs.high:
        body += _line("zero", logs(0.0), _TOP, logs(0.0), _TOP + _PLOT_HEIGHT)
    for index, line in enumerate(series):
        points = " ".join(f"{logs(math.log(value))},{y_scale(share)}" for share, value in line.points)
        body += _polyline(index, points, line.name)
    return _figure(title, body, description=description, legend=[line.name for line in series])


def scatter_chart(
    title: str, points: Sequence[tuple[str, float, float]], *, x_label: str, y_label: str, description: str
) -> Markup:
    """Named points; the names stand beside them."""
    x_scale = _scale([x for _, x, _ in points], _LEFT, WIDTH - _RIGHT)
    y_scale = _scale([y for _, _, y in points], _TOP + _PLOT_HEIGHT, _TOP)
    body = _axes(x_scale, y_scale, x_label=x_label, y_label=y_label)
    for name, x, y in points:
        is_right = x_scale(x) > WIDTH * 0.7
        body += Markup('<circle class="mark" cx="{}" cy="{}" r="4"><title>{}</title></circle>').format(
            x_scale(x), y_scale(y), f"{name}: {number(x)}, {number(y)}"
        )
        body += _text(x_scale(x) + (-7 if is_right else 7), y_scale(y) + 4, name, anchor="end" if is_right else "start")
    return _figure(title, body, description=description)


def calibration_chart(title: str, rows: Sequence[Estimate], predicted: Sequence[float], *, description: str) -> Markup:
    """Observed shares with intervals over predicted probabilities, against the diagonal of a calibrated model."""
    x_scale = Scale(0.0, 1.0, _LEFT, WIDTH - _RIGHT)
    y_scale = Scale(0.0, 1.0, _TOP + _PLOT_HEIGHT, _TOP)
    body = _axes(x_scale, y_scale, x_label="predicted probability", y_label="observed share")
    body += _line("zero", x_scale(0), y_scale(0), x_scale(1), y_scale(1))
    for x, row in zip(predicted, rows, strict=True):
        body += Markup("<g><title>{}</title>").format(f"predicted {number(x)}: observed {interval_text(row)}")
        body += _line("whisker", x_scale(x), y_scale(row.low), x_scale(x), y_scale(row.high))
        body += Markup('<circle class="mark" cx="{}" cy="{}" r="4"/></g>').format(x_scale(x), y_scale(row.value))
    return _figure(title, body, description=description)


def graph_picture(columns: Sequence[Sequence[str]], edges: Iterable[tuple[str, str]], *, description: str) -> Markup:
    """Boxes in columns from left to right, joined by curves: the graph of stages."""
    box_width, box_height, gap_x, gap_y = 116, 30, 34, 16
    tallest = max(len(column) for column in columns)
    places: dict[str, tuple[float, float]] = {}
    for index, column in enumerate(columns):
        offset = (tallest - len(column)) * (box_height + gap_y) / 2
        for row, name in enumerate(column):
            places[name] = (4 + index * (box_width + gap_x), 4 + offset + row * (box_height + gap_y))
    body = Markup("")
    for source, target in edges:
        x1, y1 = places[source][0] + box_width, places[source][1] + box_height / 2
        x2, y2 = places[target][0], places[target][1] + box_height / 2
        bend = (x2 - x1) / 2
        body += Markup('<path class="edge" d="M{} {}C{} {} {} {} {} {}"/>').format(
            x1, y1, x1 + bend, y1, x2 - bend, y2, x2, y2
        )
    for name, (x, y) in places.items():
        body += Markup('<rect class="box" x="{}" y="{}" width="{}" height="{}" rx="6"/>').format(
            x, y, box_width, box_height
        )
        body += _text(x + box_width / 2, y + box_height / 2 + 4, name, anchor="middle", kind="label")
    width = len(columns) * (box_width + gap_x) - gap_x + 8
    height = tallest * (box_height + gap_y) - gap_y + 8
    return Markup('<svg class="graph" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, description, body
    )


def interval_text(estimate: Estimate, *, signed: bool = False) -> str:
    """The number and its interval as people read them."""
    low, high = (number(end, signed=signed) for end in (estimate.low, estimate.high))
    return f"{number(estimate.value, signed=signed)} ({low} to {high})"


def _scale(values: Sequence[float], start: float, end: float, *, pad: float = 0.05) -> Scale:
    """A scale that holds all finite values, with a margin of `pad` of their range."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if low == high:
        low, high = low - 0.5, high + 0.5
    margin = (high - low) * pad
    return Scale(low - margin, high + margin, start, end)


def _axes(x_scale: Scale | None, y_scale: Scale, *, x_label: str, y_label: str) -> Markup:
    """Grid lines with their numbers, and the names of both axes."""
    body = Markup("")
    for tick in ticks(y_scale.low, y_scale.high, count=4):
        body += _line("grid", _LEFT, y_scale(tick), WIDTH - _RIGHT, y_scale(tick))
        body += _text(_LEFT - 6, y_scale(tick) + 4, tick_text(tick), anchor="end")
    if x_scale is not None:
        for tick in ticks(x_scale.low, x_scale.high, count=5):
            body += _text(x_scale(tick), _TOP + _PLOT_HEIGHT + 14, tick_text(tick), anchor="middle")
    middle = _TOP + _PLOT_HEIGHT / 2
    body += _text((_LEFT + WIDTH - _RIGHT) / 2, _TOP + _PLOT_HEIGHT + 30, x_label, anchor="middle", kind="axis")
    body += Markup('<text class="axis" text-anchor="middle" transform="translate(10 {}) rotate(-90)">{}</text>').format(
        middle, y_label
    )
    return body


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, x1, y1, x2, y2)


def _polyline(index: int, points: str, name: str) -> Markup:
    return Markup('<polyline class="line series-{}" points="{}"><title>{}</title></polyline>').format(
        index, points, name
    )


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten with their doubles and fives, inside the range."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    return [tick for tick in found if low <= tick <= high]


def _text(x: float, y: float, text: str, *, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _figure(
    title: str,
    body: Markup,
    *,
    description: str,
    legend: Sequence[str] = (),
    height: float = _TOP + _PLOT_HEIGHT + _BOTTOM,
) -> Markup:
    """The drawing with its name above, the legend, and the description for those who don't see it."""
    keys = Markup("").join(
        Markup('<span class="key"><i class="swatch series-{}"></i>{}</span>').format(index, name)
        for index, name in enumerate(legend if len(legend) > 1 else [])
    )
    return Markup(
        '<figure><figcaption>{}</figcaption>{}<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>'
    ).format(title, keys and Markup('<div class="legend">{}</div>').format(keys), WIDTH, height, description, body)
