"""Charts of evaluations: accuracies with their intervals, pass@k and maj@k."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from ..reporting.headings import HEADINGS
from .charts import COLOURS, DASHES, Chart, spec_of
from .curves import slug

# An axis from here on has a label for every second tenth.
_MANY_TENTHS = 0.55
# Numbers of samples that are labelled one by one; of more, the powers of two.
_MOST_LABELLED = 8


def accuracy_chart(rows: Sequence[dict[str, Any]]) -> Chart:
    """Draw accuracies with their intervals.

    Args:
        rows: each with `set`, `model` (base or adapter), `value`, `low` and `high`.
    """
    models = ["base", "adapter"]
    colours = alt.Scale(domain=models, range=[COLOURS[1], COLOURS[0]])
    shapes = alt.Scale(domain=models, range=["square", "circle"])
    shares = _shares(rows)
    axis = alt.Axis(format="~%", values=_ticks(*shares), labelOverlap=False)
    chart = alt.Chart(alt.Data(values=list(rows)))
    sets = list(dict.fromkeys(str(row["set"]) for row in rows))
    place = {
        # Of several runs a label is "run: set", which is too long for a line.
        "y": alt.Y(
            "set:N",
            sort=sets,
            axis=alt.Axis(grid=False, labelLimit=130, labelExpr="split(datum.label, ': ')"),
        ),
        "yOffset": alt.YOffset("model:N", sort=models),
        "color": alt.Color("model:N", scale=colours),
    }
    bars = chart.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", axis=axis, scale=alt.Scale(domain=shares)), x2="high:Q", **place
    )
    points = chart.mark_point(filled=True, opacity=1, size=70).encode(
        x=alt.X("value:Q"), shape=alt.Shape("model:N", scale=shapes), **place
    )
    parts = [f"{row['set']} {row['model']} {row['value']:.1%}" for row in rows]
    spec = spec_of(bars + points)
    title, caption = HEADINGS["accuracy"]
    return Chart("accuracy", title, caption, spec, f"{title}: {'; '.join(parts)}")


def _shares(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Return the range of an axis of shares, in tenths."""
    lowest = min(float(row["low"]) for row in rows)
    highest = max(float(row["high"]) for row in rows)
    return [max(0.0, int(lowest * 10) / 10), min(1.0, (int(highest * 10) + 1) / 10)]


def _ticks(low: float, high: float) -> list[float]:
    """Return the labelled shares of an axis: every tenth, or every fifth where those are many.

    >>> _ticks(0.2, 0.7), _ticks(0.0, 0.9)
    ([0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [0.0, 0.2, 0.4, 0.6, 0.8])
    """
    every = 1 if high - low < _MANY_TENTHS else 2
    first = round(low * 10)
    return [tenth / 10 for tenth in range(first + first % every, round(high * 10) + 1, every)]


def at_k_chart(name: str, rows: Sequence[dict[str, Any]]) -> Chart:
    """Draw pass@k and maj@k of base and adapter with their bands, the paper's figure 7.

    Args:
        name: of the set.
        rows: each with `series` (as "adapter pass@k"), `k`, `value`, `low` and `high`.
    """
    series = ["adapter pass@k", "base pass@k", "adapter maj@k", "base maj@k"]
    present = [one for one in series if any(row["series"] == one for row in rows)]
    colour_of = dict(zip(series, (0, 1, 0, 1), strict=True))
    dash_of = dict(zip(series, (0, 0, 1, 1), strict=True))
    colours = alt.Scale(domain=present, range=[COLOURS[colour_of[one]] for one in present])
    dashes = alt.Scale(domain=present, range=[DASHES[dash_of[one]] for one in present])
    ks = sorted({row["k"] for row in rows})
    labelled = ks if ks[-1] <= _MOST_LABELLED else [k for k in ks if k & (k - 1) == 0]
    x = alt.X(
        "k:Q",
        scale=alt.Scale(type="log", base=2, nice=False),
        axis=alt.Axis(values=labelled, title="k", grid=False, labelOverlap=False),
    )
    chart = alt.Chart(alt.Data(values=list(rows)))
    share = alt.Scale(zero=False)
    # A line in its dashes says more than the colour of a band.
    legend = alt.Legend(symbolType="stroke", symbolOpacity=1, columns=2)
    colour = alt.Color("series:N", scale=colours).legend(legend)
    bands = chart.mark_area(opacity=0.13, aria=False).encode(
        x=x, y=alt.Y("low:Q", scale=share), y2="high:Q", color=colour
    )
    places = {"x": x, "y": alt.Y("value:Q", axis=alt.Axis(format="~%", tickCount=5), scale=share)}
    lines = chart.mark_line().encode(
        **places,
        color=colour,
        strokeDash=alt.StrokeDash("series:N", scale=dashes).legend(legend),
    )
    lines += chart.mark_point(size=25, filled=True, opacity=1).encode(**places, color=colour)
    has_votes = any("maj@k" in one for one in present)
    title = f"pass@k{' and maj@k' if has_votes else ''} on {name}"
    caption = HEADINGS["at_k"].caption
    if has_votes:
        caption += " As in DeepSeekMath's figure 7."
    else:
        caption += " Here they cannot: the reward does not say which answers are the same."
    ends = [row for row in rows if row["k"] in (ks[0], ks[-1])]
    parts = [f"{row['series']} {row['value']:.1%} at k = {row['k']}" for row in ends]
    return Chart(f"at_k_{slug(name)}", title, caption, spec_of(bands + lines), "; ".join(parts))
