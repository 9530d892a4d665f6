"""Panels as charts: Vega-Lite draws each once, as SVG for the page and as PNG, SVG or PDF files.

The colours are names of variables of the page's style sheet, so that a chart follows the reader's
dark or light theme and is printed in ink on white. They are Okabe and Ito's, which colour-blind
readers can tell apart, and every series has a dash pattern or a marker of its own as well.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from .curves import Curve, Panel, usual_value
from .points import Point, number_text, smoothed, thinned

# In pixels; the page shows two or three beside each other, and a phone about one.
WIDTH = 330
HEIGHT = 190
_SCALE = 2.0

_SERIES = 7
COLOURS = [f"var(--series-{number})" for number in range(1, _SERIES + 1)]
DASHES = [[1, 0], [6, 3], [2, 2], [9, 3, 2, 3], [4, 1], [1, 3], [12, 4]]
_MARKERS = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke"]
# Points are marked where they are so few that a marker does not hide the line.
_MOST_MARKED = 40
# Steps of stacked areas.
_MOST_STACKED = 120
# Of a logarithmic axis, about.
_TICKS = 6
# Where a logarithmic axis has numbers without exponents: above 10 to this, and below this.
_LEAST_POWER, _MOST_PLAIN = -5, 1e5
# From here on an axis says "5k".
_THOUSAND = 1000
# Below, zeros behind the point would be counted.
_SMALL = 1e-4
# The variables for a picture in a file, which has no style sheet. Series 1 to 7 are blue,
# vermillion, green, purple, orange, sky blue and black.
LIGHT = {
    "series-1": "#0072b2",
    "series-2": "#d55e00",
    "series-3": "#009e73",
    "series-4": "#cc79a7",
    "series-5": "#e69f00",
    "series-6": "#56b4e9",
    "series-7": "#1b1f24",
    "ink": "#1b1f24",
    "muted": "#5b636d",
    "line": "#e4e4df",
    "paper": "#ffffff",
}
_CONFIG = {
    "background": "transparent",
    # Of one width on all machines, because the space for a legend is known before.
    "font": "Arial, 'Liberation Sans', Helvetica, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "domainColor": "var(--line)",
        "gridColor": "var(--line)",
        "labelColor": "var(--muted)",
        "labelFontSize": 11,
        "tickColor": "var(--line)",
        "ticks": False,
        "labelPadding": 5,
        "title": None,
        "titleColor": "var(--muted)",
        "titleFontSize": 11,
        "titleFontWeight": "normal",
    },
    "legend": {
        "labelColor": "var(--ink)",
        "labelFontSize": 11,
        "labelLimit": 150,
        "orient": "top",
        "padding": 0,
        "offset": 8,
        "columns": 3,
        "symbolStrokeWidth": 2,
        "symbolSize": 90,
        "title": None,
    },
    "line": {"strokeWidth": 1.8, "strokeJoin": "round"},
}


@dataclass(frozen=True)
class Chart:
    """A chart, ready for the page and for files.

    Args:
        name: for files and links.
        spec: of Vega-Lite, with the page's variables as colours.
        description: what a reader who does not see it is told.
    """

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    description: str

    def svg(self) -> str:
        """Return the chart as an element of the page."""
        drawn = str(vl_convert.vegalite_to_svg(self.spec, allowed_base_urls=[]))
        # As wide as its place: the view box keeps the proportions.
        return re.sub(r'(<svg[^>]*?) width="[\d.]+" height="[\d.]+"', r"\1", drawn, count=1)

    def file(self, kind: str) -> bytes:
        """Return the chart as the bytes of a file, with a title and on white.

        Args:
            kind: png, svg or pdf.
        """
        spec = self.spec | {"title": self.title}
        colours = re.sub(r"var\(--([\w-]+)\)", lambda name: LIGHT[name[1]], json.dumps(spec))
        spec = json.loads(colours)
        spec["config"] = spec["config"] | {
            "background": LIGHT["paper"],
            "title": {"anchor": "start", "fontSize": 13, "offset": 10},
            "padding": 12,
        }
        if kind == "svg":
            return str(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])).encode()
        if kind == "pdf":
            return bytes(vl_convert.vegalite_to_pdf(spec, allowed_base_urls=[]))
        return bytes(vl_convert.vegalite_to_png(spec, scale=_SCALE, allowed_base_urls=[]))


def chart_of(panel: Panel) -> Chart:
    """Draw the curves of a panel, or its areas where they add up."""
    if panel.stacked and len(panel.runs) == 1:
        layers = _areas(panel.curves)
    elif panel.stacked:
        layers = _bars(panel)
    else:
        layers = _lines(panel)
    caption = panel.caption
    if panel.may_peak and usual_value(panel.curves) is not None:
        caption += " The axis is logarithmic."
    return Chart(panel.name, panel.title, caption, spec_of(layers), _description(panel))


def spec_of(chart: Any) -> dict[str, Any]:
    """Return a chart's specification in the page's style."""
    spec: dict[str, Any] = chart.properties(width=WIDTH, height=HEIGHT).to_dict()
    spec.pop("$schema", None)
    # In altair, colours that are variables are not valid in a configuration.
    return spec | {"config": _CONFIG, "autosize": {"type": "fit", "contains": "padding"}}


def _lines(panel: Panel) -> Any:
    """Draw short curves with a marker for each point, and long ones with their running mean.

    A series is a label of one run, or one of several runs.
    """
    compares = len(panel.runs) > 1
    lines = []
    faint = []
    marked = []
    names = dict.fromkeys(panel.runs if compares else ())
    # The mean of a peak and its neighbours would be a tower.
    has_peaks = panel.may_peak and usual_value(panel.curves) is not None
    has_markers = max(len(curve.points) for curve in panel.curves) <= _MOST_MARKED
    for curve in panel.curves:
        name = curve.run if compares else curve.label
        names[name] = None
        rows = _rows(name, thinned(curve.points))
        means = [] if has_peaks else _rows(name, thinned(smoothed(curve.points)))
        lines += means or rows
        faint += rows if means else []
        marked += rows if has_markers else []
    place = _Place(list(names), _y_of(panel), has_markers)
    layers = place.lines(lines)
    if faint:
        layers += place.faint_lines(faint)
    if marked:
        layers += place.markers(marked)
    return layers


def _rows(series: str, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return points as rows of a chart, with four digits, which are more than it shows."""
    rows = []
    for step, value in points:
        rows.append({"step": int(step), "value": float(f"{value:.4g}"), "series": series})
    return rows


@dataclass(frozen=True)
class _Place:
    """Where the series of a chart are drawn, each in a colour and in dashes or with markers.

    Args:
        names: of the series.
        y: the axis of values.
        has_markers: whether each point has a marker; otherwise lines have dashes.
    """

    names: list[str]
    y: Any
    has_markers: bool

    def lines(self, rows: list[dict[str, Any]]) -> Any:
        """Return a line for each series."""
        drawn = self._encoded(rows).mark_line()
        if self.has_markers:
            return drawn
        scale = alt.Scale(domain=self.names, range=_cycled(DASHES, self.names))
        return drawn.encode(
            strokeDash=alt.StrokeDash("series:N", scale=scale).legend(self._legend())
        )

    def faint_lines(self, rows: list[dict[str, Any]]) -> Any:
        """Return what a line is the mean of."""
        return self._encoded(rows).mark_line(strokeWidth=1, opacity=0.3, aria=False)

    def markers(self, rows: list[dict[str, Any]]) -> Any:
        """Return a marker for each point."""
        scale = alt.Scale(domain=self.names, range=_cycled(_MARKERS, self.names))
        shape = alt.Shape("series:N", scale=scale).legend(self._legend())
        return self._encoded(rows).mark_point(size=22, filled=True, opacity=1).encode(shape=shape)

    def _encoded(self, rows: list[dict[str, Any]]) -> Any:
        scale = alt.Scale(domain=self.names, range=_cycled(COLOURS, self.names))
        return alt.Chart(alt.Data(values=rows)).encode(
            x=alt.X("step:Q", axis=_step_axis(), scale=alt.Scale(nice=False)),
            y=self.y,
            color=alt.Color("series:N", scale=scale).legend(self._legend()),
        )

    def _legend(self) -> Any:
        """Return the legend; a single series needs none."""
        if len(self.names) == 1:
            return None
        return alt.Legend() if self.has_markers else alt.Legend(symbolType="stroke")


def _y_of(panel: Panel) -> Any:
    """Return the axis of values: logarithmic above the usual values where there are peaks."""
    values = [value for curve in panel.curves for _, value in curve.points]
    form = _form_of(max(map(abs, values)))
    usual = usual_value(panel.curves) if panel.may_peak else None
    if usual is None:
        axis = alt.Axis(tickCount=5, format=form)
        # An axis from a number to itself has no second tick, and rounds the label of its first.
        is_constant = min(values) == max(values)
        return alt.Y("value:Q", scale=alt.Scale(zero=is_constant), axis=axis)
    ticks = [0.0]
    first = math.ceil(math.log10(usual))
    end = math.floor(math.log10(max(values))) + 1
    # A ratio beyond float32 is 10^38, and would have forty labels.
    for power in range(first, end, max(1, (end - first) // _TICKS)):
        ticks.append(10.0**power)
    # Numbers as people write them, unless they are very large or small.
    form = "~r" if first > _LEAST_POWER and max(values) < _MOST_PLAIN else "~g"
    scale = alt.Scale(type="symlog", constant=usual, nice=False)
    return alt.Y("value:Q", scale=scale, axis=alt.Axis(values=ticks, format=form))


def _form_of(largest: float) -> str:
    """Return the form of an axis' labels, as d3 names it: 5k, 0.5 or 5e-5."""
    if largest >= _THOUSAND:
        return "~s"
    return "~e" if 0 < largest < _SMALL else "~r"


def _cycled(values: Sequence[Any], names: Sequence[str]) -> list[Any]:
    return [values[number % len(values)] for number in range(len(names))]


def _step_axis() -> Any:
    return alt.Axis(grid=False, tickCount=5, format="~s", title="step")


def _areas(curves: Sequence[Curve]) -> Any:
    rows = []
    for order, curve in enumerate(curves):
        # The same steps of each, as they are stacked.
        every = max(1, len(curve.points) // _MOST_STACKED)
        for row in _rows(curve.label, curve.points[::every]):
            rows.append(row | {"order": order})
    chart = alt.Chart(alt.Data(values=rows))
    style: dict[str, Any] = {"stroke": "var(--paper)", "strokeWidth": 1.5}
    has_steps = len({row["step"] for row in rows}) > 1
    # A line of paper between the areas, so that colour is not all that parts them.
    marked = chart.mark_area(**style) if has_steps else chart.mark_bar(**style)
    return marked.encode(
        x=alt.X("step:Q", axis=_step_axis(), scale=alt.Scale(nice=False)),
        y=alt.Y("value:Q", stack=True, axis=alt.Axis(tickCount=5, format="~r", title="seconds")),
        color=_stacked_colour([curve.label for curve in curves]),
        order=alt.Order("order:Q"),
    )


def _bars(panel: Panel) -> Any:
    """Draw the mean seconds of each phase for several runs."""
    labels = list(dict.fromkeys(curve.label for curve in panel.curves))
    rows = []
    for curve in panel.curves:
        mean = sum(value for _, value in curve.points) / len(curve.points)
        (row,) = _rows(curve.label, [(0, mean)])
        rows.append(row | {"run": curve.run, "order": labels.index(curve.label)})
    chart = alt.Chart(alt.Data(values=rows)).mark_bar(stroke="var(--paper)", strokeWidth=1.5)
    return chart.encode(
        x=alt.X("value:Q", stack=True, axis=alt.Axis(title="seconds of a step", format="~r")),
        y=alt.Y("run:N", sort=list(panel.runs), axis=alt.Axis(labelLimit=110, grid=False)),
        color=_stacked_colour(labels),
        order=alt.Order("order:Q"),
    )


def _stacked_colour(labels: Sequence[str]) -> Any:
    scale = alt.Scale(domain=labels, range=_cycled(COLOURS, labels))
    legend = alt.Legend() if len(labels) > 1 else None
    return alt.Color("series:N", scale=scale).legend(legend)


def _description(panel: Panel) -> str:
    parts = []
    for curve in panel.curves:
        (start, first), (end, last) = curve.points[0], curve.points[-1]
        name = f"{curve.run} {curve.label}" if len(panel.runs) > 1 else curve.label
        parts.append(
            f"{name} {number_text(first)} at step {start:.0f}, {number_text(last)} at {end:.0f}"
        )
    return f"{panel.title}: {'; '.join(parts)}"


def below_each_other(charts: Sequence[Chart], title: str) -> Chart:
    """Return several charts as one."""
    parts = []
    for chart in charts:
        part = {"title": {"text": chart.title, "anchor": "start", "fontSize": 12}} | chart.spec
        # What belongs to the whole.
        parts.append({name: part[name] for name in part if name not in ("config", "autosize")})
    # Each chart has a scale and a legend of its own.
    own = ("color", "shape", "strokeDash")
    resolve = {"scale": dict.fromkeys(own, "independent")}
    spec = {"vconcat": parts, "config": _CONFIG, "resolve": resolve}
    return Chart("plot", title, "", spec, "; ".join(chart.description for chart in charts))
