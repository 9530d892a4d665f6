r"""Read sets of real numbers: intervals, inequalities, and unions of them.

`x < 0`, `(-\infty, 0)` and `\{x \mid x < 0\}` are one set.
"""

import re
from typing import NamedTuple

from grpo_hf.rewards import _bounded_numbers as numbers
from grpo_hf.rewards._bounded_numbers import Number
from grpo_hf.rewards._math_expression import constant_value, is_sharp
from grpo_hf.rewards._math_text import bracketed, listed, outermost, split, squeezed

RELATION = re.compile(r"\\(?:le|ge|ne|approx|equiv|in)(?![A-Za-z])|[=<>]")
_UNION = re.compile(r"\\cup(?![A-Za-z])|\\text\{\s*or\s*\}|(?<![A-Za-z])or(?![A-Za-z])")
_AND = re.compile(r"\\(?:land|wedge)(?![A-Za-z])|\\text\{\s*and\s*\}|(?<![A-Za-z])and(?![A-Za-z])")
_MINUS = re.compile(r"\\setminus(?![A-Za-z])")
_VARIABLE = re.compile(r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?")
_INCREASING = {"<": False, "\\le": True}
_DECREASING = {">": False, "\\ge": True}


class Interval(NamedTuple):
    """An interval, and whether each end belongs to it."""

    low: Number
    low_closed: bool
    high: Number
    high_closed: bool


class RealSet(NamedTuple):
    """Intervals in order that do not touch, and the variable of the inequality, if any."""

    intervals: list[Interval]
    variable: str


def relation(text: str) -> tuple[list[str], list[str]] | None:
    """Return the sides of a chain of relations and its signs; None if there is no sign."""
    spans = outermost(text, RELATION)
    if not spans:
        return None
    signs = [text[start:end] for start, end in spans]
    return split(text, RELATION), signs


def real_set(text: str) -> RealSet | None:
    r"""Return the set that the text describes, or None if it describes no set of real numbers.

    >>> len(real_set(r"x < 0 \text{ or } x \ge 2").intervals), real_set("3, 4")
    (2, None)
    """
    intervals = []
    variables = set()
    for part in split(text, _UNION):
        piece = _piece(part)
        if piece is None:
            return None
        intervals += piece.intervals
        if piece.variable:
            variables.add(piece.variable)
    if len(variables) > 1:
        return None
    return RealSet(_merged(intervals), "".join(variables))


def same_set(gold: RealSet, answer: RealSet) -> bool:
    """Say whether two sets are the same; the name of the variable may be left out."""
    if gold.variable and answer.variable and gold.variable != answer.variable:
        return False
    if len(gold.intervals) != len(answer.intervals):
        return False
    for left, right in zip(gold.intervals, answer.intervals, strict=True):
        if (left.low_closed, left.high_closed) != (right.low_closed, right.high_closed):
            return False
        if not numbers.close(left.low, right.low) or not numbers.close(left.high, right.high):
            return False
    return True


def _piece(text: str) -> RealSet | None:
    if squeezed(text) == "\\reals":
        return RealSet([_everything()], "")
    conditions = split(text, _AND)
    if len(conditions) > 1:
        return _where_all_hold(conditions)
    parts = split(text, _MINUS)
    if len(parts) == 2:
        return _without_points(parts[0], parts[1])
    chain = relation(text)
    if chain is not None:
        return _inequality(*chain)
    return _interval(text)


def _where_all_hold(conditions: list[str]) -> RealSet | None:
    """Return the set of x > 1 and x < 3; None if it is empty, as many who write that mean "or"."""
    intervals = [_everything()]
    variables = set()
    for condition in conditions:
        piece = _piece(condition)
        # Without a variable, (0, 1) and (2, 3) are two intervals.
        if piece is None or not piece.variable:
            return None
        variables.add(piece.variable)
        intervals = _common(intervals, piece.intervals)
    if not intervals or len(variables) > 1:
        return None
    return RealSet(intervals, variables.pop())


def _common(left: list[Interval], right: list[Interval]) -> list[Interval]:
    common = []
    for one in left:
        for other in right:
            # An end that is open comes first among equal ones, wherever it cuts more off.
            low, low_open = max((i.low, not i.low_closed) for i in (one, other))
            high, high_closed = min((i.high, i.high_closed) for i in (one, other))
            if low < high or (low == high and high_closed and not low_open):
                common.append(Interval(low, not low_open, high, high_closed))
    return common


def _interval(text: str) -> RealSet | None:
    brackets = bracketed(text)
    if brackets is None:
        return None
    opening, content, closing = brackets
    ends = [_real(item) for item in listed(content)]
    if opening == "\\{":
        return _points(ends)
    if len(ends) != 2 or opening == "{" or None in ends or not ends[0] < ends[1]:
        return None
    return RealSet([Interval(ends[0], opening == "[", ends[1], closing == "]")], "")


def _points(values: list[Number | None]) -> RealSet | None:
    if not values or None in values:
        return None
    return RealSet(_merged([Interval(value, True, value, True) for value in values]), "")


def _without_points(text: str, removed: str) -> RealSet | None:
    whole = real_set(text)
    points = _interval(removed)
    if whole is None or points is None:
        return None
    intervals = whole.intervals
    for point in points.intervals:
        if point.low is not point.high:
            return None
        intervals = _split_at(intervals, point.low)
    return RealSet(intervals, whole.variable)


def _split_at(intervals: list[Interval], point: Number) -> list[Interval]:
    pieces = []
    for interval in intervals:
        if interval.low < point < interval.high:
            pieces.append(interval._replace(high=point, high_closed=False))
            pieces.append(interval._replace(low=point, low_closed=False))
        else:
            pieces.append(interval)
    return pieces


def _inequality(sides: list[str], signs: list[str]) -> RealSet | None:
    if signs == ["\\in"]:
        inner = real_set(sides[1])
        return None if inner is None else inner._replace(variable=squeezed(sides[0]))
    if set(signs) <= _DECREASING.keys():
        sides = sides[::-1]
        flipped = {">": "<", "\\ge": "\\le"}
        signs = [flipped[sign] for sign in reversed(signs)]
    if signs == ["\\ne"]:
        return _all_but(*sides)
    if not set(signs) <= _INCREASING.keys() or len(sides) > 3:
        return None
    return _between(sides, [_INCREASING[sign] for sign in signs])


def _all_but(variable: str, value: str) -> RealSet | None:
    point = _real(value)
    if point is None or not _is_variable(variable):
        return None
    return RealSet(_split_at([_everything()], point), squeezed(variable))


def _between(sides: list[str], closed: list[bool]) -> RealSet | None:
    """Return the set of `low < x < high`, where one of the ends may be missing."""
    low, low_closed, high, high_closed = _everything()
    if _is_variable(sides[0]) and len(sides) == 2:
        variable, high, high_closed = sides[0], _real(sides[1]), closed[0]
    elif len(sides) == 2:
        variable, low, low_closed = sides[1], _real(sides[0]), closed[0]
    else:
        variable = sides[1]
        low, low_closed = _real(sides[0]), closed[0]
        high, high_closed = _real(sides[2]), closed[1]
    if not _is_variable(variable) or low is None or high is None or not low < high:
        return None
    return RealSet([Interval(low, low_closed, high, high_closed)], squeezed(variable))


def _merged(intervals: list[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for interval in sorted(intervals, key=lambda interval: (interval.low, not interval.low_closed)):
        last = merged[-1] if merged else None
        touches = last is not None and (
            interval.low < last.high
            or (interval.low == last.high and (interval.low_closed or last.high_closed))
        )
        if last is None or not touches:
            merged.append(interval)
        elif interval.high == last.high:
            merged[-1] = last._replace(high_closed=last.high_closed or interval.high_closed)
        elif interval.high > last.high:
            merged[-1] = last._replace(high=interval.high, high_closed=interval.high_closed)
    return merged


def _everything() -> Interval:
    infinity = numbers.constant("inf")
    return Interval(-infinity, False, infinity, False)


def _is_variable(text: str) -> bool:
    return bool(_VARIABLE.fullmatch(squeezed(text))) and constant_value(text) is None


def _real(text: str) -> Number | None:
    value = constant_value(text)
    # Otherwise the texts of the ends are compared, with more digits.
    return numbers.real(value) if value is not None and is_sharp(text) else None
