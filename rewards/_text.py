r"""The numbers in the text that a model wrote.

Numbers are read by the rule that doubt means "no number": whatever could make another value of the digits (an operator,
an exponent, a malformed thousands separator, a second number beside them, "million") belongs to the number as written,
and what is written is either one of the known forms as a whole or it is not read at all. Nothing is evaluated and
nothing is a float. Every pattern runs in linear time.
"""

import re
from fractions import Fraction

# GSM8K's longest answer has 11 characters. Converting digits takes quadratic time, and int() refuses more than 4,300.
_MAX_NUMBER_CHARACTERS = 200

_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"))
_SPACES = re.compile(r"[^\S\r\n]+")
# A space, not nothing: "1$2" must not become 12.
_CURRENCY_OR_PERCENT = re.compile(r"\\?[$€£¥₹%]")
_LATEX_COMMA = re.compile(r"\{,\}|,\\!|\\,")
_LATEX_FRACTION = re.compile(r"\\[dt]?frac ?\{ ?(-?[0-9,]+) ?\} ?\{ ?([0-9,]+) ?\}")

# Superscripts and vulgar fractions change a number that they follow (5², 4½) but are none on their own (m²).
_DIGITS = r"\d[\d²³¹⁰-₉¼-¾⅐-⅟]*+"
_ATOM = rf"(?:(?<![\w.])\.)?{_DIGITS}(?:(?:[.,:'’_]++|e[-+]?){_DIGITS})*+"
_PREFIX = r"\b(?:minus|negative) |(?:(?<!\w)-|[+±√/^÷×]) ?(?:[-+±√/^÷×({*] ?){0,4}+"
_OPERATOR = r"(?:[-+*/^×÷·⋅∙x]|\\(?:times|cdot|div))"
_SUFFIX = r" ?(?:(?:k|hundred|thousand|million|billion|trillion)s?\b|\^)"
_AS_WRITTEN = re.compile(
    rf"\\(?:[dt]?frac|sqrt)\S*+|(?:{_PREFIX})?{_ATOM}(?:(?:(?: ?{_OPERATOR}){{1,3}} ?| ){_ATOM})*+(?:{_SUFFIX})?",
    re.IGNORECASE,
)

# A group of thousands does not start with 0: "0,123" is the decimal comma of another country.
_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(
    rf"([-+]?) ?(?:(?P<decimal>{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)"
    rf"|(?:(?P<whole>{_INTEGER}) )?(?P<numerator>{_INTEGER}) ?/ ?(?P<denominator>{_INTEGER}))"
)


def numbers_as_written(text: str) -> list[str]:
    r"""Every number of `text`, in order, each with all that could change its value; give them to `parse_number`.

    >>> numbers_as_written(r"She pays $1,234.50 for 3 \times 4 boxes, 2 million grains and 42 m².")
    ['1,234.50', '3 \\times 4', '2 million', '42']
    """
    return _AS_WRITTEN.findall(_plain(text))


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of `text` if the whole of it is one number, else None.

    Forms: 42, 1,234, 3.50, .5, 1/2, 3 1/2, \frac{1}{2}; with a sign, a currency or a percent sign (dropped, so 50% is
    50), and LaTeX's `1{,}234` and `\$`. Digits are ASCII. No exponents.

    >>> parse_number("-$1,234.50"), parse_number("3 1/2")
    (Fraction(-2469, 2), Fraction(7, 2))
    >>> [parse_number(text) for text in ("1,23", "1e5", "3 - 1", "42 apples", "1/0")]
    [None, None, None, None, None]
    """
    if len(text) > _MAX_NUMBER_CHARACTERS:
        return None
    match = _NUMBER.fullmatch(_plain(text).strip())
    if match is None:
        return None
    parts = {
        name: Fraction(digits.replace(",", ""))
        for name, digits in match.groupdict().items()
        if digits
    }
    if "decimal" in parts:
        value = parts["decimal"]
    # "1 234/5" is no mixed number: somebody grouped thousands with a space.
    elif parts["denominator"] == 0 or (
        "whole" in parts and parts["numerator"] >= parts["denominator"]
    ):
        return None
    else:
        value = parts.get("whole", 0) + parts["numerator"] / parts["denominator"]
    return -value if match[1] == "-" else value


def _plain(text: str) -> str:
    """One spelling for dashes, spaces, thousands separators and fractions; no currency and no percent signs."""
    text = _SPACES.sub(" ", _CURRENCY_OR_PERCENT.sub(" ", text.translate(_DASHES)))
    return _SPACES.sub(" ", _LATEX_FRACTION.sub(r" \1/\2 ", _LATEX_COMMA.sub(",", text)))
