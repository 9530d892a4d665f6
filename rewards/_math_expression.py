r"""Compare expressions by their values.

Two expressions with variables are the same if they have the same values at points that are drawn
once and for all, positive and negative ones (Schwartz, 1980). So a wrong answer costs no more than
a right one, which computer algebra cannot promise.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from grpo_hf.rewards import _bounded_numbers as numbers
from grpo_hf.rewards._bounded_numbers import Number
from grpo_hf.rewards._math_reader import POINTS, ExpressionReader, tokenized

_CACHE_SIZE = 4096
# An expression may be undefined at the others.
_MIN_POINTS = 3


class Reading(NamedTuple):
    """The values of an expression.

    Attributes:
        variables: whether the expression has any.
        values: one per point, or a single one if there are no variables. None where it is
            undefined.
        imaginary: whether it contains the imaginary unit.
    """

    variables: bool
    values: Sequence[Number | None]
    imaginary: bool


def same_value(gold: str, answer: str) -> bool:
    r"""Say whether two expressions are the same wherever the gold one is defined.

    >>> same_value(r"\frac{1}{3}", "0.333333"), same_value("4", "4t")
    (True, False)
    >>> same_value(r"\sin 2x", r"2\sin x\cos x"), same_value("x", "|x|")
    (True, False)
    """
    pairs = _comparable(gold, answer)
    if pairs is None:
        return False
    decimal = "." in gold + answer and len(pairs) == 1
    for gold_value, value in pairs:
        if value is None or not numbers.close(gold_value, value, decimal=decimal):
            return False
    return True


def ratio(gold: str, answer: str) -> Number | None:
    """Return the number that the answer is a multiple of the gold expression by.

    Return None if it is no multiple, or if the gold expression is zero.
    """
    pairs = _comparable(gold, answer)
    found = None
    for gold_value, value in pairs or []:
        if value is None or numbers.close(gold_value, Fraction(0)):
            return None
        quotient = numbers.divide(value, gold_value)
        if found is None:
            found = quotient
        elif not numbers.close(found, quotient):
            return None
    return found


def constant_value(text: str) -> Number | None:
    """Return the value of an expression without variables, or None."""
    reading = read(text)
    if reading is None or reading.variables:
        return None
    return reading.values[0]


@lru_cache(maxsize=_CACHE_SIZE)
def read(text: str) -> Reading | None:
    """Return the values of the text, or None if it cannot be read or is defined nowhere."""
    tokens = tokenized(text)
    if not tokens:
        return None
    imaginary = "i" in tokens
    values: list[Number | None] = []
    for point in range(POINTS):
        reader = ExpressionReader(tokens, point)
        try:
            values.append(reader.whole())
        except (ValueError, ArithmeticError):
            values.append(None)
        if not reader.variables:
            break
    if values.count(None) == len(values):
        return None
    return Reading(len(values) > 1, values, imaginary)


def _comparable(gold: str, answer: str) -> list[tuple[Number, Number | None]] | None:
    """Return both values at every point where the gold expression is defined."""
    gold_reading = read(gold)
    reading = read(answer)
    if gold_reading is None or reading is None:
        return None
    count = max(len(gold_reading.values), len(reading.values))
    pairs = []
    for point in range(count):
        gold_value = gold_reading.values[point % len(gold_reading.values)]
        if gold_value is None:
            continue
        # The root of a negative number lies outside of the domain of a real function.
        outside = count > 1 and not gold_reading.imaginary and numbers.real(gold_value) is None
        if not outside:
            pairs.append((gold_value, reading.values[point % len(reading.values)]))
    return pairs if len(pairs) >= min(count, _MIN_POINTS) else None
