"""Calculate with numbers whose size is bounded.

A number is exact (a `Fraction`) as long as it is rational; every other number is one of mpmath with
80 digits, or as many as `computing` says. An operation whose result would be undefined, or longer
than `_MAX_BITS`, raises `NoValueError` before it is computed: so each operation takes milliseconds
at most, whatever a model wrote.

>>> power(Fraction(2), Fraction(-3)), close(root(Fraction(2), Fraction(2)), Fraction("1.414214"))
(Fraction(1, 8), False)
>>> close(root(Fraction(2), Fraction(2)), Fraction("1.414214"), decimal=True)
True
>>> power(Fraction(9), Fraction(9**9))
Traceback (most recent call last):
    ...
grpo_hf.rewards._bounded_numbers.NoValueError: a power that is too large
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import comb, factorial, log2
from typing import Any

Number = Any  # a Fraction, or an mpf or mpc of mpmath

# Enough for 2009^{2009} and 2000!.
_MAX_BITS = 50_000
# The power of 2 that a number of mpmath may have: functions of larger ones take too much precision.
_MAX_MAGNITUDE = 10_000
_MAX_FACTORIAL = 2000
# Powers are products up to this exponent, and exponentials beyond it.
_MAX_FACTORS = 10_000
DIGITS = 80
# How many of the last digits may differ after a few operations: relative to the number, and to 1.
_LOST_DIGITS = 50
_LOST_PLACES = 20
_HYPERBOLIC = ("sinh", "cosh", "tanh")
_TRIGONOMETRIC = ("sin", "cos", "tan", "sec", "csc", "cot")
# How far a decimal may be from the number that it rounds: half a unit of the sixth decimal, or of
# the sixth digit of a number below 0.1.
_ROUNDING = Fraction(1, 2 * 10**6)


class NoValueError(ValueError):
    """The text has no value: it cannot be read, is undefined, or is too large."""


@dataclass
class Computation:
    """How exactly numbers are computed, and what was met on the way.

    Attributes:
        digits: how many digits the numbers have that are not exact.
        lowest: the power of 2 of the smallest of these numbers but 0, at most 0.
        highest: the power of 2 of the largest of them, at least 0.
        work: what it took, in powers of a number; a function counts for more.
    """

    digits: int = DIGITS
    lowest: int = 0
    highest: int = 0
    work: int = 0

    def needed_digits(self) -> int:
        """Return how many digits show each term of a sum, and the square of the smallest one.

        The cosine of a small number is 1 less its square.
        """
        span = (self.highest - self.lowest) / log2(10)
        return int(2 * span) + _LOST_DIGITS + 5

    def met(self, power_of_two: int) -> None:
        self.lowest = min(self.lowest, power_of_two)
        self.highest = max(self.highest, power_of_two)


# Threads may compare answers at the same time, each with digits of its own.
_COMPUTATION: ContextVar[Computation | None] = ContextVar("computation", default=None)


@contextmanager
def computing(digits: int) -> Iterator[Computation]:
    """Compute with so many digits in the block, and yield what is met."""
    computation = Computation(digits)
    token = _COMPUTATION.set(computation)
    try:
        yield computation
    finally:
        _COMPUTATION.reset(token)


def add(left: Number, right: Number) -> Number:
    """Return the sum."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _checked(left + right)
    return _checked(_inexact(left) + _inexact(right))


def multiply(left: Number, right: Number) -> Number:
    """Return the product."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _checked(left * right)
    return _checked(_inexact(left) * _inexact(right))


def divide(left: Number, right: Number) -> Number:
    """Return the quotient."""
    if right == 0:
        raise NoValueError("a division by zero")
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _checked(left / right)
    return _checked(_inexact(left) / _inexact(right))


def power(base: Number, exponent: Number) -> Number:
    """Return the principal value of the power."""
    if base == 0 and not _is_positive(exponent):
        raise NoValueError("zero to a power that is not positive")
    if base == 0:
        return base
    if not _is_whole(exponent):
        return call("exp", multiply(exponent, call("ln", base)))
    if not isinstance(base, Fraction):
        return _inexact_power(base, exponent)
    if abs(base) == 1:
        return base if exponent.numerator % 2 else Fraction(1)
    if _bits(base) * abs(exponent.numerator) > _MAX_BITS:
        raise NoValueError("a power that is too large")
    return base**exponent.numerator


def _inexact_power(base: Number, exponent: Fraction) -> Number:
    if abs(exponent) > _MAX_FACTORS:
        return call("exp", multiply(exponent, call("ln", base)))
    # The power of 2 of 1.5 is 1.
    if (abs(_context().mag(base)) - 1) * abs(exponent) > _MAX_MAGNITUDE:
        raise NoValueError("a power that is too large")
    _computation().work += 1
    return _checked(base**exponent.numerator)


def root(base: Number, degree: Number) -> Number:
    """Return the root; the real one of a negative number if the degree is odd."""
    if _is_whole(degree) and degree % 2 and _is_real(base) and base < 0:
        return -power(-base, 1 / degree)
    return power(base, divide(Fraction(1), degree))


def call(name: str, argument: Number) -> Number:
    """Return the value of mpmath's function of that name."""
    if name in ("exp", *_HYPERBOLIC) and abs(argument) > _MAX_MAGNITUDE:
        raise NoValueError("an exponential that is too large")
    argument = _inexact(argument)
    computation = _computation()
    computation.work += 50 if name == "factorial" else 5
    # These are sums of two exponentials: tanh 500 is 1, but for a part of e^{-1000}.
    exponent = 0
    if name in _HYPERBOLIC:
        exponent = _context().re(argument)
    elif name in _TRIGONOMETRIC:
        exponent = _context().im(argument)
    if abs(exponent) < _MAX_MAGNITUDE:
        computation.met(-int(3 * abs(exponent)))
    return _checked(getattr(_context(), name)(argument))


def constant(name: str) -> Number:
    """Return `pi`, `e`, `inf`, or the imaginary unit `j`."""
    # The sign turns mpmath's constant into a number.
    return +getattr(_context(), name)


def absolute(value: Number) -> Number:
    """Return the absolute value."""
    return abs(value)


def rounded(value: Number, name: str) -> Number:
    """Return the `floor` or the `ceil` of a real number."""
    if not _is_real(value):
        raise NoValueError("a complex number has no integer part")
    return _checked(getattr(_context(), name)(_inexact(value)))


def factorial_of(value: Number) -> Number:
    """Return the factorial; by the gamma function if the number is not whole."""
    if abs(value) > _MAX_FACTORIAL or (_is_whole(value) and value < 0):
        raise NoValueError("no factorial, or one that is too large")
    if _is_whole(value):
        return Fraction(factorial(value.numerator))
    return call("factorial", value)


def choose(total: Number, chosen: Number) -> Number:
    """Return the binomial coefficient."""
    if abs(total) > _MAX_FACTORIAL or abs(chosen) > _MAX_FACTORIAL:
        raise NoValueError("a binomial coefficient that is too large")
    if _is_whole(total) and _is_whole(chosen) and min(total, chosen) >= 0:
        return Fraction(comb(total.numerator, chosen.numerator))
    _computation().work += 150
    return _checked(_context().binomial(_inexact(total), _inexact(chosen)))


def real(value: Number) -> Number | None:
    """Return the value as a real number of mpmath, or None if it is not real."""
    value = _inexact(value)
    imaginary = abs(_context().im(value))
    if imaginary > _error(value):
        return None
    return _context().re(value)


def at_most(left: Number, right: Number) -> bool:
    """Say whether a real number is not larger than another one."""
    return bool(_inexact(left) <= _inexact(right))


def close(left: Number, right: Number, *, decimal: bool = False) -> bool:
    """Say whether two numbers are the same.

    Args:
        left: the right answer.
        right: what is compared with it.
        decimal: one of them is written as a decimal, which may be rounded to six decimals.
    """
    limit = _rounding(left) if decimal else Fraction(0)
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return abs(left - right) <= limit
    left = _inexact(left)
    right = _inexact(right)
    if _context().isinf(left) or _context().isinf(right):
        return bool(left == right)
    return bool(abs(left - right) <= _error(left) + _inexact(limit))


def _error(value: Number) -> Number:
    """Return how far a number may be off after a few operations."""
    digits = _computation().digits
    context = _context()
    relative = context.mpf(10) ** (_LOST_DIGITS - digits)
    return relative * abs(value) + context.mpf(10) ** (_LOST_PLACES - digits)


def _rounding(value: Number) -> Fraction:
    size = abs(_inexact(value))
    if size == 0 or size >= 0.1:
        return _ROUNDING if size else Fraction(0)
    return _ROUNDING * Fraction(10) ** (int(_context().floor(_context().log10(size))) + 1)


def _computation() -> Computation:
    return _COMPUTATION.get() or Computation()


def _context() -> Any:
    return _context_of(_computation().digits)


@cache
def _context_of(digits: int) -> Any:
    # mpmath takes a while to import, and not every run pays for mathematics.
    from mpmath import mp

    context = mp.clone()
    context.dps = digits
    return context


def _checked(value: Number) -> Number:
    if isinstance(value, Fraction):
        if _bits(value) > _MAX_BITS:
            raise NoValueError("a number that is too large")
        return value
    if _context().isnan(value):
        raise NoValueError("an undefined number")
    if not _context().isinf(value) and value != 0:
        power_of_two = _context().mag(value)
        if abs(power_of_two) > _MAX_MAGNITUDE:
            raise NoValueError("a number that is too large")
        _computation().met(power_of_two)
    return value


def _inexact(value: Number) -> Number:
    if isinstance(value, Fraction):
        return _checked(_context().mpf(value.numerator) / value.denominator)
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _is_whole(value: Number) -> bool:
    return isinstance(value, Fraction) and value.denominator == 1


def _is_real(value: Number) -> bool:
    return isinstance(value, Fraction) or _context().im(value) == 0


def _is_positive(value: Number) -> bool:
    return _is_real(value) and value > 0
