"""Check the options of a reward, and say of a wrong one what came and what was expected."""

import math
import reprlib
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any, NoReturn

from grpo_hf.errors import RewardSpecError, did_you_mean


def check_whole(
    reward: str, option: str, value: Any, *, least: int = 1, most: float = math.inf
) -> None:
    """Refuse what is no whole number, or is not in the range.

    >>> check_whole("overlong", "cache", "128")
    Traceback (most recent call last):
        ...
    grpo_hf.errors.RewardSpecError: overlong: cache is '128', a str; expected a whole number, 1 or \
more.
    """
    # A bool is an int to Python, and a typo for one here.
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or not least <= int(value) <= most:
        up_to = f", up to {most:,}" if most < math.inf else ""
        refuse(reward, option, value, f"a whole number, {least} or more{up_to}")


def check_number(
    reward: str,
    option: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Refuse what is no finite number, or is not in the range.

    >>> check_number("judge", "timeout", float("nan"), above=0)
    Traceback (most recent call last):
        ...
    grpo_hf.errors.RewardSpecError: judge: timeout is nan, a float; expected a number above 0.
    """
    if _is_finite(value) and least <= value <= most and value > above:
        return
    expected = "a finite number"
    if above > -math.inf:
        expected = f"a number above {above:,g}"
    elif least > -math.inf:
        expected = f"a number, {least:,g} or more"
    if most < math.inf:
        expected += f", up to {most:,}"
    refuse(reward, option, value, expected)


def check_flag(reward: str, option: str, value: Any) -> None:
    """Refuse what is neither True nor False: the text "false" would count as true."""
    if not isinstance(value, bool):
        refuse(reward, option, value, "true or false")


def check_text(reward: str, option: str, value: Any, expected: str) -> None:
    """Refuse what is no text, or an empty one.

    Args:
        expected: what the text should be, for the message.
    """
    if not isinstance(value, str) or not value.strip():
        refuse(reward, option, value, expected)


def check_choice(reward: str, option: str, value: Any, choices: Collection[str]) -> None:
    """Refuse what is not one of the choices."""
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        refuse(reward, option, value, f"one of {', '.join(choices)}", hint)


def refuse(reward: str, option: str, value: Any, expected: str, hint: str = "") -> NoReturn:
    """Raise RewardSpecError, with the option, what came and what was expected."""
    kind = type(value).__name__
    came = "None"
    if value is not None:
        came = f"{reprlib.repr(value)}, {'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    raise RewardSpecError(f"{reward}: {option} is {came}; expected {expected}.{hint}")


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    # A whole number may be larger than any float.
    except OverflowError:
        return False
