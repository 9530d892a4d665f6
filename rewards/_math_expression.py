r"""Compare expressions by their values.

Two expressions with variables are the same if they have the same values at points that are drawn
once and for all, positive and negative ones (Schwartz, 1980). So a wrong answer costs no more than
a right one, which computer algebra cannot promise. Where one term is much larger than another, they
are computed once more with as many digits as show the smaller one.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from grpo_hf.rewards import _bounded_numbers as numbers
from grpo_hf.rewards._bounded_numbers import Number
from grpo_hf.rewards._math_reader import GENTLE_POINTS, POINTS, ExpressionReader, tokenized

_CACHE_SIZE = 4096
# An expression may be undefined at the others.
_MIN_POINTS = 3
# What more digits may cost, in powers of a number of 80 digits: some ten milliseconds.
_MAX_WORK = 3000
_GROWTH_OF_WORK = 1.7


class Value(NamedTuple):
    """What an expression is at one point.

    Attributes:
        number: its value, or None where it is undefined.
        digits: how many digits it has to be computed with, so that none of its terms is lost.
        work: what computing it took (`Computation.work`).
    """

    number: Number | None
    digits: int
    work: int


class Reading(NamedTuple):
    """The values of an expression.

    Attributes:
        variables: whether the expression has any.
        values: one per point, or a single one if there are no variables.
        imaginary: whether it contains the imaginary unit.
    """

    variables: bool
    values: Sequence[Value]
    imaginary: bool


class Pair(NamedTuple):
    """The values of two expressions at one point, and how many digits they were computed with."""

    gold: Number | None
    answer: Number | None
    digits: int


def same_value(gold: str, answer: str) -> bool:
    r"""Say whether two expressions are the same wherever the gold one is defined.

    >>> same_value(r"\frac{1}{3}", "0.333333"), same_value("4", "4t")
    (True, False)
    >>> same_value(r"\sin 2x", r"2\sin x\cos x"), same_value("x", "|x|")
    (True, False)
    >>> same_value("(x+1)^{200}", "(x+1)^{200}+1"), same_value(r"10^{99}\pi", r"10^{99}\pi+1")
    (False, False)
    """
    count = len(_points(gold, answer))
    decimal = "." in gold + answer and count == 1
    return count > 0 and all(_is_equal(pair, decimal) for pair in _pairs(gold, answer))


def ratio(gold: str, answer: str) -> Number | None:
    """Return the number that the answer is a multiple of the gold expression by.

    Return None if it is no multiple, or if the gold expression is zero.
    """
    found = None
    found_digits = 0
    for pair in _pairs(gold, answer):
        with numbers.computing(pair.digits):
            if pair.gold is None or pair.answer is None or numbers.close(pair.gold, Fraction(0)):
                return None
            quotient = numbers.divide(pair.answer, pair.gold)
        if found is not None:
            with numbers.computing(min(found_digits, pair.digits)):
                if not numbers.close(found, quotient):
                    return None
        if pair.digits > found_digits:
            found = quotient
            found_digits = pair.digits
    return found


def constant_value(text: str) -> Number | None:
    """Return the value of an expression without variables, or None."""
    reading = read(text)
    if reading is None or reading.variables:
        return None
    return reading.values[0].number


def is_sharp(text: str) -> bool:
    """Say whether the value of a constant shows each of its terms."""
    reading = read(text)
    return reading is not None and reading.values[0].digits <= numbers.DIGITS


@lru_cache(maxsize=_CACHE_SIZE)
def read(text: str) -> Reading | None:
    """Return the values of the text, or None if it cannot be read or is defined nowhere."""
    tokens = tokenized(text)
    if not tokens:
        return None
    values: list[Value] = []
    for point in range(POINTS):
        value, variables = _computed(tokens, point)
        values.append(value)
        if not variables:
            break
    if all(value.number is None for value in values):
        return None
    return Reading(len(values) > 1, values, "i" in tokens)


def _computed(tokens: list[str], point: int) -> tuple[Value, bool]:
    """Return the value at a point, and whether there are variables."""
    reader = ExpressionReader(tokens, point)
    with numbers.computing(numbers.DIGITS) as computation:
        number = _number(reader)
    return Value(number, computation.needed_digits(), computation.work), reader.variables


@lru_cache(maxsize=_CACHE_SIZE)
def _gentle(text: str, point: int) -> Value:
    return _computed(tokenized(text), point)[0]


@lru_cache(maxsize=_CACHE_SIZE)
def _sharp(text: str, point: int, digits: int) -> Number | None:
    with numbers.computing(digits):
        return _number(ExpressionReader(tokenized(text), point, digits))


def _number(reader: ExpressionReader) -> Number | None:
    try:
        return reader.whole()
    except (ValueError, ArithmeticError):
        return None


def _is_equal(pair: Pair, decimal: bool) -> bool:
    if pair.gold is None or pair.answer is None:
        return False
    with numbers.computing(pair.digits):
        return numbers.close(pair.gold, pair.answer, decimal=decimal)


def _pairs(gold: str, answer: str) -> Iterator[Pair]:
    """Yield the values at all points, then once more where a term may be lost in 80 digits.

    10^{99} and 10^{99} + x differ in the hundredth digit. A pair without values says that too few
    points can be computed so exactly.
    """
    points = _points(gold, answer)
    for point in points:
        yield Pair(_value(gold, point).number, _value(answer, point).number, numbers.DIGITS)
    sharp = _sharp_points(gold, answer, points)
    if len(sharp) < min(len(points), _MIN_POINTS):
        yield Pair(None, None, numbers.DIGITS)
    for digits, point in sharp:
        if digits > numbers.DIGITS:
            yield Pair(_sharp(gold, point, digits), _sharp(answer, point, digits), digits)


def _sharp_points(gold: str, answer: str, points: list[int]) -> list[tuple[int, int]]:
    """Return how many digits to compute with, and a point, as often as time allows it."""
    # Points with negative values come first.
    needs = sorted((_digits(gold, answer, point), -point) for point in points)
    if len(points) > 1 and needs[_MIN_POINTS - 1][0] > numbers.DIGITS:
        for point in range(POINTS, POINTS + GENTLE_POINTS):
            if _is_inside(gold, point):
                needs.append((_digits(gold, answer, point), -point))
    sharp = []
    work = 0.0
    for digits, point in sorted(needs):
        if digits > numbers.DIGITS:
            effort = _value(gold, -point).work + _value(answer, -point).work
            work += effort * (digits / numbers.DIGITS) ** _GROWTH_OF_WORK
        if work > _MAX_WORK or len(sharp) == POINTS:
            break
        sharp.append((digits, -point))
    return sharp


def _digits(gold: str, answer: str, point: int) -> int:
    """Return how many digits show the difference of two expressions at a point."""
    digits = max(_value(gold, point).digits, _value(answer, point).digits)
    # mpmath keeps the constants of each number of digits.
    return digits if digits <= numbers.DIGITS else -(-digits // 100) * 100


def _value(text: str, point: int) -> Value:
    reading = read(text)
    if reading is None:
        return Value(None, numbers.DIGITS, 0)
    if not reading.variables:
        return reading.values[0]
    return reading.values[point] if point < POINTS else _gentle(text, point)


def _points(gold: str, answer: str) -> list[int]:
    """Return the points where the gold expression is defined; none if they are too few."""
    readings = [read(gold), read(answer)]
    if None in readings:
        return []
    if not any(reading and reading.variables for reading in readings):
        return [0]
    points = [point for point in range(POINTS) if _is_inside(gold, point)]
    return points if len(points) >= _MIN_POINTS else []


def _is_inside(gold: str, point: int) -> bool:
    """Say whether the point lies in the domain of the gold expression."""
    reading = read(gold)
    number = _value(gold, point).number
    if reading is None or number is None:
        return False
    # The root of a negative number lies outside of the domain of a real function.
    return reading.imaginary or numbers.real(number) is not None
