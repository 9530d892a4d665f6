r"""Read an expression in LaTeX, or in a calculator's spelling, and compute its value on the way.

Nothing is simplified or solved, and `_bounded_numbers.py` bounds each operation, so reading takes
about the same time for everything that a model can write. A letter is a variable and has a value of
its own at each point. Integrals, sums, limits and unknown commands have no value: an answer that
leaves them to be worked out is no answer, unless the gold answer is written like it.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from random import Random

from grpo_hf.rewards import _bounded_numbers as numbers
from grpo_hf.rewards._bounded_numbers import NoValueError, Number

# Each level of parentheses takes a few calls of Python.
_MAX_DEPTH = 30
_CACHE_SIZE = 4096

POINTS = 12
# Small values lie in the domain of arcsin; large ones tell functions apart that are nearly equal
# at 0.
_RANGES = [(0.1, 0.9), (0.3, 2.5), (1.0, 5.0)]
# Further points where exponentials and powers stay near 1, the latter at -1 and 1.
GENTLE_POINTS = 6
_GENTLE_RANGES = [(0.0002, 0.002), (0.002, 0.02), (0.36, 0.376)]

# What mpmath calls the functions.
_FUNCTIONS = {
    "sin": "sin",
    "cos": "cos",
    "tan": "tan",
    "sec": "sec",
    "csc": "csc",
    "cot": "cot",
    "sinh": "sinh",
    "cosh": "cosh",
    "tanh": "tanh",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "exp": "exp",
    "ln": "ln",
    "log": "log10",
    "lg": "log10",
}
_INVERSE = {"sin": "asin", "cos": "acos", "tan": "atan"}
_CONSTANTS = {"\\pi": "pi", "pi": "pi", "\\infty": "inf", "e": "e", "i": "j"}
_SYMBOL = re.compile(
    r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|iota|kappa|lambda|mu|nu|xi"
    r"|(?:var)?rho|sigma|tau|upsilon|(?:var)?phi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma"
    r"|Upsilon|Phi|Psi|Omega|ell|hbar|angle|triangle|partial|nabla)|[A-Za-z]|\\?pi|\\infty"
)
_ACCENT = re.compile(r"\\(?:vec|hat|bar|d?dot|tilde|overline|overrightarrow)")
_CLOSING = {
    "{": "}",
    "(": ")",
    "[": "]",
    "|": "|",
    "\\lvert": "\\rvert",
    "\\lfloor": "\\rfloor",
    "\\lceil": "\\rceil",
}
_TIMES = ("*", "\\cdot", "\\times")
_DIVIDED_BY = ("/", "\\div")
# Commands that stand between factors or behind them.
_ENDS = (*_TIMES, *_DIVIDED_BY, *_CLOSING.values(), "\\%")
# Of tokens with a space between them: \frac{1}{2}, \frac12 or 1/2.
_PROPER_FRACTION = re.compile(
    r"\\frac \{ ([0-9]+) \} \{ ([0-9]+) \}|\\frac ([0-9])([0-9])(?![0-9])"
    r"|([0-9]+) / ([0-9]+)(?![0-9])"
)

_NAMES = "|".join(sorted([*_FUNCTIONS, "sqrt", "pi"], key=len, reverse=True))
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|(?P<command>\\[A-Za-z]+)"
    rf"|(?P<name>(?:{_NAMES})(?![A-Za-z]))|(?P<letter>[A-Za-z])"
    r"|(?P<sign>\*\*|\\%|[-+*/^_!'|(){}\[\]%]))"
)


def tokenized(text: str) -> list[str]:
    """Return the tokens of the text; none if a part of it is no token."""
    tokens = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return []
        tokens.append(token[0].strip())
        position = token.end()
    return tokens


@lru_cache(maxsize=_CACHE_SIZE)
def _variable(name: str, point: int, digits: int) -> Number:
    random = Random(f"{name} at {point}")
    ranges = _RANGES if point < POINTS else _GENTLE_RANGES
    value = random.uniform(*ranges[point % len(ranges)])
    if point >= POINTS // 2:
        value *= random.choice([-1, 1])
    # What is met here does not depend on what the cache holds.
    with numbers.computing(digits):
        # Not exact: powers of a fraction would grow.
        return numbers.multiply(numbers.constant("e"), Fraction(value))


class ExpressionReader:
    r"""Read tokens from the left to the right, and compute their value at one point.

    >>> ExpressionReader(tokenized(r"\frac12 + 3^2"), point=0).whole()
    Fraction(19, 2)
    """

    def __init__(self, tokens: list[str], point: int, digits: int = numbers.DIGITS) -> None:
        self.tokens = tokens
        self.point = point
        self.digits = digits
        self.position = 0
        self.depth = 0
        self.in_bars = False
        self.variables = False

    def whole(self) -> Number:
        value = self.sum()
        if self.position < len(self.tokens):
            raise NoValueError(f"{self.tokens[self.position]} cannot stand here")
        return value

    def next(self, ahead: int = 0) -> str:
        position = self.position + ahead
        return self.tokens[position] if position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.next()
        self.position += 1
        return token

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise NoValueError(f"{token} is missing")

    def sum(self) -> Number:
        value = self.product()
        while self.next() in ("+", "-"):
            # The sign belongs to the next product.
            value = numbers.add(value, self.product())
        return value

    def product(self) -> Number:
        value = self.signed(self.factors)
        while True:
            if self.next() in _TIMES:
                self.take()
                value = numbers.multiply(value, self.signed(self.factors))
            elif self.next() in _DIVIDED_BY:
                self.take()
                # 1/2x is half of x; a/bc is a over bc.
                part = self.power if self.starts_number() else self.factors
                value = numbers.divide(value, self.signed(part))
            elif self.starts_factor():
                value = numbers.multiply(value, self.factors())
            else:
                return value

    def signed(self, part: Callable[[], Number]) -> Number:
        negative = False
        while self.next() in ("+", "-"):
            negative ^= self.take() == "-"
        value = part()
        return -value if negative else value

    def factors(self) -> Number:
        """Return the product of factors that stand side by side."""
        value = self.power()
        while self.starts_factor():
            value = numbers.multiply(value, self.power())
        return value

    def starts_number(self) -> bool:
        return self.next()[:1].isdigit() or self.next().startswith(".")

    def starts_factor(self) -> bool:
        token = self.next()
        # A number is no second factor: 4 2 is not 8.
        if not token or self.starts_number() or token in _TIMES or token in _DIVIDED_BY:
            return False
        if token == "|":
            return not self.in_bars
        return token[0].isalpha() or token[0] in "({[" or (token[0] == "\\" and token not in _ENDS)

    def power(self) -> Number:
        value = self.atom()
        while True:
            if self.next() in ("^", "**"):
                self.take()
                value = self.raised(value)
            elif self.next() == "!":
                self.take()
                value = numbers.factorial_of(value)
            elif self.next() in ("%", "\\%"):
                self.take()
                value = numbers.divide(value, Fraction(100))
            else:
                return value

    def raised(self, base: Number) -> Number:
        if self.skip("\\circ") or self.skip("{", "\\circ", "}"):
            return numbers.multiply(base, self.degree())
        return numbers.power(base, self.argument())

    def degree(self) -> Number:
        return numbers.divide(numbers.constant("pi"), Fraction(180))

    def skip(self, *tokens: str) -> bool:
        """Take these tokens if they come next."""
        end = self.position + len(tokens)
        if tuple(self.tokens[self.position : end]) != tokens:
            return False
        self.position = end
        return True

    def argument(self) -> Number:
        """Return what a command or an exponent takes: a group in braces, or one atom."""
        return self.signed(self.atom)

    def atom(self) -> Number:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise NoValueError("nested too deeply")
        if self.starts_number():
            value = self.number()
        elif self.next() in _CLOSING:
            value = self.group()
        elif self.next().removeprefix("\\") in _FUNCTIONS:
            value = self.function()
        elif self.next() in self.commands():
            value = self.commands()[self.take()]()
        else:
            value = self.symbol()
        self.depth -= 1
        return value

    def commands(self) -> dict[str, Callable[[], Number]]:
        return {
            "\\frac": self.fraction,
            "\\binom": self.binomial,
            "\\sqrt": self.root,
            "sqrt": self.root,
        }

    def number(self) -> Number:
        value = Fraction(self.take())
        start = self.position
        fraction = self.fraction_after_number()
        # 3\frac{1}{2} is a mixed number.
        if fraction is not None and value.denominator == 1 and fraction < 1:
            return value + fraction
        self.position = start
        return value

    def fraction_after_number(self) -> Fraction | None:
        match = _PROPER_FRACTION.match(" ".join(self.tokens[self.position : self.position + 7]))
        if match is None:
            return None
        self.position += len(match[0].split())
        top, bottom = (int(part) for part in match.groups() if part)
        return Fraction(top, bottom) if bottom else None

    def group(self) -> Number:
        closing = _CLOSING[self.next()]
        outer = self.in_bars
        self.in_bars = self.take() == "|"
        value = self.sum()
        self.in_bars = outer
        self.expect(closing)
        if closing in ("|", "\\rvert"):
            return numbers.absolute(value)
        if closing in ("\\rfloor", "\\rceil"):
            return numbers.rounded(value, "floor" if closing == "\\rfloor" else "ceil")
        return value

    def fraction(self) -> Number:
        top = self.digit_or_argument()
        return numbers.divide(top, self.digit_or_argument())

    def binomial(self) -> Number:
        top = self.digit_or_argument()
        return numbers.choose(top, self.digit_or_argument())

    def digit_or_argument(self) -> Number:
        r"""Return the argument, which is a single digit in \frac12."""
        token = self.next()
        if not token.isdigit():
            return self.argument()
        if len(token) == 1:
            self.take()
        else:
            self.tokens = [*self.tokens]
            self.tokens[self.position] = token[1:]
        return Fraction(token[0])

    def root(self) -> Number:
        degree: Number = Fraction(2)
        if self.next() == "[":
            degree = self.group()
        return numbers.root(self.argument(), degree)

    def function(self) -> Number:
        name = self.take().removeprefix("\\")
        base: Number = None
        exponent: Number = Fraction(1)
        if name == "log" and self.skip("_"):
            base = self.argument()
        if self.skip("^"):
            exponent = self.argument()
        argument = self.function_argument()
        if exponent == -1:
            # \sin^{-1} is the inverse, not the reciprocal.
            if name not in _INVERSE:
                raise NoValueError(f"the inverse of {name} is not known")
            return numbers.call(_INVERSE[name], argument)
        if base is not None:
            natural = numbers.call("ln", argument)
            return numbers.power(numbers.divide(natural, numbers.call("ln", base)), exponent)
        return numbers.power(numbers.call(_FUNCTIONS[name], argument), exponent)

    def function_argument(self) -> Number:
        if self.next() in _CLOSING:
            return self.atom()
        value = self.signed(self.power)
        while self.starts_factor() and self.next().removeprefix("\\") not in _FUNCTIONS:
            value = numbers.multiply(value, self.power())
        return value

    def symbol(self) -> Number:
        name = self.take()
        if _ACCENT.fullmatch(name):
            name += self.raw_group()
        elif not _SYMBOL.fullmatch(name):
            raise NoValueError(f"{name} is not known")
        marks = self.marks()
        if not marks and name in _CONSTANTS:
            return numbers.constant(_CONSTANTS[name])
        self.variables = True
        return _variable(name + marks, self.point, self.digits)

    def marks(self) -> str:
        """Return the indices and primes of a letter."""
        marks = ""
        while True:
            if self.skip("_"):
                marks += "_" + self.raw_group()
            elif self.skip("'") or self.skip("^", "\\prime") or self.skip("^", "{", "\\prime", "}"):
                marks += "'"
            else:
                return marks

    def raw_group(self) -> str:
        """Return the tokens of a group in braces, or one token, as a text without braces."""
        depth = 0
        text = ""
        while True:
            token = self.take()
            depth += (token == "{") - (token == "}")
            if token not in ("{", "}", "\\text"):
                text += token
            if depth == 0:
                return text
            if not token:
                raise NoValueError("a brace is missing")
