"""Points of a curve: read from rows of metrics, thinned, smoothed; and a number as text."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

from .record import Row

# Points of a curve on the page: a run of many thousand steps opens as quickly as a short one.
MOST_POINTS = 240
# From so many points on, a mean of neighbours is drawn over them.
SMOOTHED_FROM = 50
_WINDOWS = 20
# Larger numbers are read more easily with an exponent.
_MOST_WRITTEN_OUT = 1e9

# A step and a number.
Point = tuple[float, float]


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of all that was logged, in the order in which they came."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return list(names)


def points_of(rows: Sequence[Row], metric: str) -> list[Point]:
    """Return the steps at which a number was logged, with its values, if they are finite."""
    points = []
    for row in rows:
        value = row.get(metric)
        if isinstance(value, int | float) and math.isfinite(value):
            points.append((float(row["step"]), float(value)))
    return points


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most so many points of a curve, and its first, last, lowest and highest among them.

    Of each stretch of steps the lowest and the highest point stay, so that no peak is lost.

    >>> thinned([(0, 1), (1, 9), (2, 1), (3, 1), (4, 0), (5, 1)], most=4)
    [(0, 1), (1, 9), (4, 0), (5, 1)]
    """
    if len(points) <= most:
        return list(points)
    kept = {0, len(points) - 1}
    stretches = max(1, most // 2 - 1)
    for number in range(stretches):
        first = number * len(points) // stretches
        last = (number + 1) * len(points) // stretches
        stretch = range(first, last)
        kept.add(min(stretch, key=_value_in(points)))
        kept.add(max(stretch, key=_value_in(points)))
    return [points[index] for index in sorted(kept)]


def _value_in(points: Sequence[Point]) -> Callable[[int], float]:
    return lambda index: points[index][1]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Return the mean of each point and its neighbours; nothing where there are few points."""
    if len(points) < SMOOTHED_FROM:
        return []
    reach = max(1, len(points) // _WINDOWS // 2)
    # Sums from the first point on: the mean of a thousand neighbours costs what that of two does.
    sums = list(accumulate((value for _, value in points), initial=0.0))
    means = []
    for index, (step, _) in enumerate(points):
        first = max(0, index - reach)
        end = min(len(points), index + reach + 1)
        means.append((step, (sums[end] - sums[first]) / (end - first)))
    return means


def trailing(points: Sequence[Point], reach: int) -> list[Point]:
    """Return the mean of each point and those before it, `reach` in all."""
    means = []
    for end in range(1, len(points) + 1):
        near = points[max(0, end - reach) : end]
        means.append((points[end - 1][0], sum(value for _, value in near) / len(near)))
    return means


def number_text(value: float, digits: int = 3) -> str:
    """Return a number with so many digits, and with those before its point in any case.

    >>> number_text(2048.4), number_text(0.00012345), number_text(999.7), number_text(1.5e12)
    ('2,048', '0.000123', '1,000', '1.5e+12')
    """
    # What is rounded to more digits than there are would be written with an exponent.
    if 10**digits - 0.5 <= abs(value) < _MOST_WRITTEN_OUT:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"
