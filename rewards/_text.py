r"""Read the numbers in the text that a model wrote.

The rule is that doubt means "no number". Whatever could give the digits another value (an operator,
an exponent, a malformed thousands separator, a second number beside them, "million") belongs to the
number as written. A number as written is read only if the whole of it has one of the known forms.
Nothing is evaluated and nothing is a float. Every pattern runs in linear time.
"""

import re
from fractions import Fraction

# GSM8K's longest answer has 11 characters. Converting digits takes quadratic time, and int()
# refuses more than 4,300.
_MAX_NUMBER_CHARACTERS = 200

_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"))
_SPACES = re.compile(r"[^\S\r\n]+")
# A space, not nothing: "1$2" must not become 12.
_CURRENCY_OR_PERCENT = re.compile(r"\\?[$€£¥₹%]")
_LATEX_COMMA = re.compile(r"\{,\}|,\\!|\\,")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac ?\{ ?(-?[0-9,]+) ?\} ?\{ ?([0-9,]+) ?\}")

# Superscripts and vulgar fractions change a number that they follow (5², 4½), but they are not
# numbers on their own (m²).
_DIGITS = r"\d[\d²³¹⁰-₉¼-¾⅐-⅟]*+"
_ATOM = rf"(?:(?<![\w.])\.)?{_DIGITS}(?:(?:[.,:'’_]++|e[-+]?){_DIGITS})*+"
_PREFIX = r"\b(?:minus|negative) |(?:(?<!\w)-|[+±√/^÷×]) ?(?:[-+±√/^÷×({*] ?){0,4}+"
_OPERATOR = r"(?:[-+*/^×÷·⋅∙x]|\\(?:times|cdot|div))"
_SUFFIX = r" ?(?:(?:k|hundred|thousand|million|billion|trillion)s?\b|\^)"
_AS_WRITTEN = re.compile(
    # LaTeX that _LATEX_FRACTION did not read has no known value.
    r"\\(?:[dt]?frac|sqrt)\S*+"
    rf"|(?:{_PREFIX})?{_ATOM}(?:(?:(?: ?{_OPERATOR}){{1,3}} ?| ){_ATOM})*+(?:{_SUFFIX})?",
    re.IGNORECASE,
)

# A group of thousands does not start with 0: "0,123" is the decimal comma of another country.
_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(
    rf"([-+]?) ?(?:(?P<decimal>{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)"
    rf"|(?:(?P<whole>{_INTEGER}) )?(?P<numerator>{_INTEGER}) ?/ ?(?P<denominator>{_INTEGER}))"
)


def numbers_as_written(text: str) -> list[str]:
    r"""Return every number of `text`, in order, each with all that could change its value.

    `parse_number` reads them.

    >>> numbers_as_written(r"She pays $1,234.50 for 3 \times 4 boxes, 2 million grains and 42 m².")
    ['1,234.50', '3 \\times 4', '2 million', '42']
    """
    return _AS_WRITTEN.findall(_plain(text))


def parse_number(text: str) -> Fraction | None:
    r"""Return the exact value of `text` if the whole of it is one number, else None.

    These forms are numbers: 42, 1,234, 3.50, .5, 1/2, 3 1/2, \frac{1}{2}. Each may have a sign, a
    currency or a percent sign (which is dropped, so 50% is 50), and LaTeX's `1{,}234` and `\$`.
    Digits are ASCII. Exponents are not read.

    >>> parse_number("-$1,234.50"), parse_number("3 1/2")
    (Fraction(-2469, 2), Fraction(7, 2))
    >>> set(map(parse_number, ["1,23", "1e5", "3 - 1", "42 apples", "1/0"]))
    {None}
    """
    if len(text) > _MAX_NUMBER_CHARACTERS:
        return None
    match = _NUMBER.fullmatch(_plain(text).strip())
    if match is None:
        return None
    value = _value(match)
    if value is None or match[1] != "-":
        return value
    return -value


def _value(match: re.Match[str]) -> Fraction | None:
    """Return the value without the sign; None if the form says no value."""
    if match["decimal"]:
        return _digits_value(match["decimal"])
    numerator = _digits_value(match["numerator"])
    denominator = _digits_value(match["denominator"])
    if denominator == 0:
        return None
    if match["whole"] is None:
        return numerator / denominator
    # "1 234/5" is no mixed number: somebody grouped thousands with a space.
    if numerator >= denominator:
        return None
    return _digits_value(match["whole"]) + numerator / denominator


def _digits_value(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _plain(text: str) -> str:
    """Return the text with one spelling for dashes, spaces, thousands separators and fractions.

    Currency and percent signs are removed.
    """
    text = _CURRENCY_OR_PERCENT.sub(" ", text.translate(_DASHES))
    text = _SPACES.sub(" ", text)
    text = _LATEX_COMMA.sub(",", text)
    text = _LATEX_FRACTION.sub(r" \1/\2 ", text)
    return _SPACES.sub(" ", text)
