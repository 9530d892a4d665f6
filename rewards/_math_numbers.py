r"""Compare numbers and expressions as answers write them.

They may have units, a currency, a percent sign, a base or a modulus.
"""

import re
from math import gcd

from grpo_hf.rewards._math_expression import same_value
from grpo_hf.rewards._math_text import squeezed

_RATIO = re.compile(r"([0-9]+):([0-9]+)")
# What an answer may leave out and not change: the base of 52_8, the modulus of 3 \pmod{7}. It may
# add a modulus, and the base ten.
_BASE = re.compile(r"([0-9A-F]+)_\{?\(?([0-9]+|\\text\{[a-z]+\})\)?\}?")
_MODULUS = re.compile(r"(.*?)\(?\s*\\(?:pmod|bmod|mod)\s*\{?\s*(\w+)\s*\}?\)?")
# A calculator's 0.2, or Euler's 2e - 1.
_AMBIGUOUS = re.compile(r"(-?[0-9]+)e([-+]?)0*([0-9]+)")

_CURRENCY = re.compile(r"^(-?)\s*(?:\\\$|\\text\{\s*\\?\$\s*\}|\\pounds|[£€¥₹])\s*")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"(?:\\text\{{)?\s*({'|'.join(_SCALES)})s?\b\s*\}}?", re.IGNORECASE)
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*(?:percent|per cent|%)\s*\}|(?:percent|per cent)\b)")
# These words change the number before them.
_SCALING = (
    "or|and|not|to|plus|minus|times|point|choose|over|mod|divided|multiplied|squared|cubed|factorial|root|sqrt"
    "|dozens?|gross|score|lakhs?|crores?|quadrillions?|quintillions?|sextillions?|googols?|infinity"
    "|hal(?:f|ves)|thirds?|quarters?|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|twentie|hundred"
    "|thousand|million|billion)ths?|sinh?|cosh?|tanh?|cot|arc(?:sin|cos|tan)|log|ln|lg|exp|[xyz]"
)
_NAMES = (
    "pi|tau|phi|alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma"
    "|upsilon|chi|psi|omega"
)
_WORD = rf"(?!(?i:{_SCALING}|{_NAMES})\b)[A-Za-z][A-Za-z.']*+"
_FUNCTION = "sin|cos|tan|log|ln|exp|sqrt|arc(?:sin|cos|tan)"
_POWER = r"(?:\s*\^\s*\{?-?[0-9]\}?)?"
_TEXT_UNIT = rf"\\text\{{[\s(]*(?:{_WORD}{_POWER}(?:[\s/()-]|\\cdot)*)+\}}{_POWER}"
_SHORT = (
    "cm|mm|km|nm|dm|ft|in|yd|mi|kg|mg|lbs?|oz|hrs?|min|sec|ms|mph|kmh|kph|mL|ml|sq|cu|rad|deg|per"
)
# Letters alone are variables: 4t is no time, and 4 m no length unless m is upright.
_UNITS = [
    re.compile(rf"(?:\\cdot|/)?\s*{_TEXT_UNIT}\s*$"),
    re.compile(rf"\\frac\s*\{{\s*{_TEXT_UNIT}\s*\}}\s*\{{\s*{_TEXT_UNIT}\s*\}}\s*$"),
    re.compile(rf"(?<![A-Za-z\\])(?:{_SHORT})(?:/(?:h|s|hr|{_SHORT}))?(?![A-Za-z]){_POWER}\s*$"),
    re.compile(rf"(?<![A-Za-z\\{{])(?=[A-Za-z]{{4}})(?!{_FUNCTION}){_WORD}{_POWER}\s*$"),
]
_MAX_UNITS = 6
_OHM = re.compile(r"\\text\{([kMm]?)ohm\}")
_DEGREES = re.compile(r"\^\\circ\s*(?:[CF](?![A-Za-z]))?")
_TRIGONOMETRY = re.compile(r"(?:sin|cos|tan|cot|sec|csc)")


def same_number(gold: str, answer: str) -> bool:
    r"""Say whether two numbers or expressions are the same, units aside.

    >>> same_number("12", r"12\text{ cm}^2"), same_number("52_8", "52"), same_number("52", "52_8")
    (True, True, False)
    >>> same_number("2e-1", "0.2"), same_number("2e-1", "2e - 1")
    (True, True)
    """
    gold_text, gold_base = _without_base(gold)
    text, base = _without_base(answer)
    adds = not gold_base and (base == "10" or base.startswith("mod "))
    if base and base != gold_base and not adds:
        return False
    gold_number, gold_percent = _measured(gold_text)
    number, percent = _measured(text)
    if _same_reading(_fraction(gold_number), _fraction(number)):
        return True
    # 5\,\Omega is 5, and 5\Omega.
    if _OHM.search(gold + answer) and same_value(_with_symbol(gold), _with_symbol(answer)):
        return True
    if gold_percent == percent:
        return False
    # 50% may be written as 50 or as 0.5.
    if gold_percent:
        gold_number = f"({gold_number})/100"
    else:
        number = f"({number})/100"
    return same_value(gold_number, number)


def _same_reading(gold: str, answer: str) -> bool:
    """Say whether the texts have the same value in one of the ways to read them."""
    for gold_reading in _readings(gold):
        for reading in _readings(answer):
            if same_value(gold_reading, reading):
                return True
    return False


def _with_symbol(text: str) -> str:
    return _OHM.sub(r"\1\\Omega ", text)


def _readings(text: str) -> list[str]:
    match = _AMBIGUOUS.fullmatch(text)
    return [text, rf"{match[1]} \cdot 10^{{{match[2]}{match[3]}}}"] if match else [text]


def _without_base(text: str) -> tuple[str, str]:
    match = _BASE.fullmatch(text)
    if match:
        return match[1], squeezed(match[2])
    match = _MODULUS.fullmatch(text)
    return (match[1].strip(), f"mod {match[2]}") if match else (text, "")


def _fraction(text: str) -> str:
    """Return the ratio 2:3 as a fraction; a ratio that is not in lowest terms is none."""
    match = _RATIO.fullmatch(squeezed(text))
    if match is None or gcd(int(match[1]), int(match[2])) != 1:
        return text
    return rf"\frac{{{match[1]}}}{{{match[2]}}}"


def _measured(text: str) -> tuple[str, bool]:
    """Return a number without its currency and units, and whether it is a percentage."""
    text = _CURRENCY.sub(r"\1", text)
    if not _TRIGONOMETRY.search(text):
        text = _DEGREES.sub(" ", text)
    scale = 0
    for _ in range(_MAX_UNITS):
        text = text.strip()
        shorter = text
        for unit in _UNITS:
            shorter = unit.sub("", shorter)
        match = _SCALE.search(text)
        if match and match.end() == len(text):
            scale += _SCALES[match[1].lower()]
            shorter = text[: match.start()]
        if shorter == text or not shorter.strip():
            break
        text = shorter
    bare = _PERCENT.sub("", text)
    if scale:
        bare = rf"({bare})\cdot 10^{{{scale}}}"
    return bare, bare != text and not scale
