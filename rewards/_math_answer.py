r"""Say whether two answers of competition problems are the same.

An answer is a number, an expression, a list, a tuple, a set of real numbers, an equation or an
inequality, a matrix, a time of day, or words. Units are not compared. What cannot be read is
compared as text.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

from grpo_hf.rewards import _bounded_numbers as numbers
from grpo_hf.rewards._bounded_numbers import NoValueError
from grpo_hf.rewards._math_expression import constant_value, ratio
from grpo_hf.rewards._math_numbers import same_number
from grpo_hf.rewards._math_text import bracketed, listed, matrix, spelled, split, squeezed
from grpo_hf.rewards._real_sets import real_set, relation, same_set

_CACHE_SIZE = 4096
# Every item of a list is compared with every other.
_MAX_ITEMS = 40
_MAX_DEPTH = 8

_EQUALITIES = frozenset(["=", "\\approx", "\\in", "\\equiv"])
_FLIPPED = {">": "<", "\\ge": "\\le", "=": "="}
# A name, such as x, f(x) or \angle ABC, is no expression.
_OPERATOR = re.compile(r"^[0-9]|[-+*/^]|\\frac(?!\{?d)")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_BAR = re.compile(r"[|:]")

_TIME = re.compile(
    r"(?P<hour>[0-9]{1,2})(?::(?P<minute>[0-9]{2}))?(?P<half>[ap])\.?m\.?"
    r"|(?P<hour_>[0-9]{1,2}):(?P<minute_>[0-9]{2})",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"^(?:\\approx|=|(?:\\text\{)?\s*(?:about|approximately|roughly)\s*\}?)\s*", re.IGNORECASE
)
# \text{17 apples}
_TEXT_WITH_NUMBER = re.compile(r"\\text\{\s*(-?[0-9][^{}]*)\}")
# \textbf{(C) }12, but not \text{(C) or (D)}
_CHOICE = re.compile(
    r"\\text\{\s*\((?P<letter>[A-Z])\)(?!.*(?:\([A-Z]\)|\b(?:or|and|not)\b))\s*"
    r"(?:\}\s*(?P<behind>.+)|(?P<inside>[^{}]+)\})"
)
_LETTERS = re.compile(r"[A-Za-z][A-Za-z \-.']*")


def same_answer(gold: str, answer: str) -> bool:
    r"""Say whether the answer means the same as the gold answer.

    >>> same_answer(r"\frac{1}{2}", "0.5"), same_answer("4", "4t"), same_answer("5", "x = 5")
    (True, False, True)
    >>> same_answer(r"\{x \mid x < 0\}", r"(-\infty, 0)"), same_answer("4:30 p.m.", "4:30 a.m.")
    (True, False)
    """
    try:
        return _same(_unwrapped(spelled(gold)), _unwrapped(spelled(answer)))
    except NoValueError:
        # An exact number may be too large to be compared with one that is not exact.
        return False


@lru_cache(maxsize=_CACHE_SIZE)
def _same(gold: str, answer: str, depth: int = 0) -> bool:
    if squeezed(gold) == squeezed(answer):
        return bool(answer)
    if depth > _MAX_DEPTH or not answer:
        return False
    for compare in _COMPARISONS:
        same = compare(gold, answer, depth + 1)
        if same is not None:
            return same
    return _same_words(gold, answer) or same_number(gold, answer)


def _unwrapped(text: str) -> str:
    r"""Return the answer without needless brackets and without "about"; `x < 0` of {x | x < 0}."""
    for _ in range(_MAX_DEPTH):
        text = _ABOUT.sub("", text).strip()
        words = _TEXT_WITH_NUMBER.fullmatch(text)
        if words:
            return words[1].strip()
        brackets = bracketed(text)
        if brackets is None:
            return text
        opening, content, closing = brackets
        bar = split(content, _BAR)
        if opening == "\\{" and len(bar) == 2:
            text = bar[1]
        elif opening + closing in ("{}", "()") and len(listed(content)) == 1:
            text = content
        else:
            return text
    return text


def _same_times(gold: str, answer: str, depth: int) -> bool | None:
    """Compare times of day; None if one of them is none, or they may be ratios."""
    gold_time = _TIME.fullmatch(squeezed(gold))
    time = _TIME.fullmatch(squeezed(answer))
    if gold_time is None or time is None:
        # 4:30 p.m. is neither 4/30 nor 4.
        halves = [match and match["half"] for match in (gold_time, time)]
        return False if any(halves) else None
    if not gold_time["half"] and not time["half"]:
        # 0:30 is 00:30; other pairs may be ratios.
        same_hour = int(gold_time["hour_"]) == int(time["hour_"])
        return True if same_hour and gold_time["minute_"] == time["minute_"] else None
    return bool(_clocks(gold_time) & _clocks(time))


def _clocks(time: re.Match[str]) -> set[tuple[int, int]]:
    """Return the hours, from 0 to 23, and the minutes that a time may mean."""
    hour = int(time["hour"] or time["hour_"])
    minute = int(time["minute"] or time["minute_"] or 0)
    half = (time["half"] or "").lower()
    if not 1 <= hour <= 12:
        # 0:30 and 16:30 are times of 24 hours.
        written = half in ("", "p" if 12 < hour < 24 else "a") and hour <= 24
        return {(hour % 24, minute)} if written else set()
    morning = (hour % 12, minute)
    evening = (hour % 12 + 12, minute)
    return {"a": {morning}, "p": {evening}}.get(half, {morning, evening})


def _same_choices(gold: str, answer: str, depth: int) -> bool | None:
    r"""Compare \textbf{(C) }12 with C or with 12; None if neither is a choice with its text."""
    gold_choice = _CHOICE.fullmatch(gold)
    choice = _CHOICE.fullmatch(answer)
    if gold_choice and choice:
        same_letter = gold_choice["letter"] == choice["letter"]
        return same_letter and _same(_chosen(gold_choice), _chosen(choice), depth)
    if gold_choice:
        return _is_letter(answer, gold_choice) or same_number(_chosen(gold_choice), answer)
    if choice:
        return _is_letter(gold, choice) or same_number(gold, _chosen(choice))
    return None


def _chosen(choice: re.Match[str]) -> str:
    return _unwrapped(choice["behind"] or choice["inside"])


def _is_letter(text: str, choice: re.Match[str]) -> bool:
    return squeezed(text).strip("().") == choice["letter"]


def _same_sets(gold: str, answer: str, depth: int) -> bool | None:
    gold_set = real_set(gold)
    answer_set = real_set(answer)
    if gold_set is None or answer_set is None:
        return None
    return same_set(gold_set, answer_set)


def _same_lists(gold: str, answer: str, depth: int) -> bool | None:
    """Compare lists and tuples; None if neither is one."""
    if relation(gold) is None:
        answer = _without_name(answer)
    elif relation(answer) is None:
        gold = _without_name(gold)
    gold_bracket, gold_items = _items(gold)
    bracket, items = _items(answer)
    if not gold_bracket and not bracket and len(gold_items) == len(items) == 1:
        return None
    if max(len(gold_items), len(items)) > _MAX_ITEMS or not items or not gold_items:
        return False
    # (1, 2) may be written without parentheses, but [1, 2] may not.
    if bracket != gold_bracket and not {bracket, gold_bracket} <= {"", "()"}:
        return False
    named = all(map(_assigns, gold_items))
    if gold_bracket or (named and not all(map(_assigns, items))):
        gold_items = _by_name(gold_items)
        items = _by_name(items)
        pairs = zip(gold_items, items, strict=False)
        return len(gold_items) == len(items) and all(
            _same(_unwrapped(left), _unwrapped(right), depth) for left, right in pairs
        )
    return _cover(gold_items, items, depth) and _cover(
        items, gold_items, depth, lambda left, right: (right, left)
    )


def _without_name(text: str) -> str:
    r"""Return \{1, 2\} of x \in \{1, 2\}, and (1, 2) of (x, y) = (1, 2)."""
    sides, signs = relation(text) or ([], [])
    if signs not in (["="], ["\\in"]) or not _is_name(sides[0]):
        return text
    value = _unwrapped(sides[1])
    # Behind \in, (1, 2) is an interval.
    is_list = value.startswith("\\{") if signs == ["\\in"] else bool(bracketed(value))
    return value if is_list or len(listed(value)) > 1 else text


def _is_name(text: str) -> bool:
    """Say whether the text is a name, or a tuple of names; an expression is none."""
    _, names = _items(text)
    return bool(names) and not any(_OPERATOR.search(squeezed(name)) for name in names)


def _by_name(items: list[str]) -> list[str]:
    """Return y = 2, x = 1 in the order of the names; other items as they are."""
    if all(map(_assigns, items)):
        return sorted(items, key=squeezed)
    return items


def _cover(
    needed: Sequence[str],
    given: Sequence[str],
    depth: int,
    order: Callable[[str, str], tuple[str, str]] = lambda left, right: (left, right),
) -> bool:
    """Say whether each needed item is among the given ones; `order` puts the gold item first."""
    for item in needed:
        pairs = [order(_unwrapped(item), _unwrapped(other)) for other in given]
        if not any(_same(*pair, depth) for pair in pairs):
            return False
    return True


def _items(text: str) -> tuple[str, list[str]]:
    """Return the brackets of a tuple ("" for a list) and the items of either."""
    brackets = bracketed(text)
    if brackets is None:
        items = []
        for item in listed(text):
            items += _plus_and_minus(item)
        return "", items
    opening, content, closing = brackets
    return "" if opening == "\\{" else opening + closing, listed(content)


def _plus_and_minus(text: str) -> list[str]:
    r"""Return the two values of 1 \pm 2."""
    if not _PLUS_MINUS.search(text):
        return [text]
    upper = text.replace("\\pm", "+").replace("\\mp", "-")
    lower = text.replace("\\pm", "-").replace("\\mp", "+")
    return [upper, lower]


def _same_relations(gold: str, answer: str, depth: int) -> bool | None:
    """Compare equations and inequalities; None if neither is one."""
    gold_chain = relation(gold)
    chain = relation(answer)
    if chain is None and gold_chain is None:
        return None
    if chain is None:
        return _assigns(gold) and _same(_unwrapped(gold_chain[0][-1]), answer, depth)
    if gold_chain is None:
        return _ends_in(gold, *chain, depth)
    sides, signs = _shortened(*chain)
    gold_sides, gold_signs = _shortened(*gold_chain)
    if len(sides) != len(gold_sides):
        return False
    if signs == gold_signs and _same_sides(gold_sides, sides, depth):
        return True
    if len(sides) > 2:
        return False
    return _same_equation(gold_sides, sides, gold_signs[0], signs[0])


def _same_sides(gold_sides: list[str], sides: list[str], depth: int) -> bool:
    pairs = zip(gold_sides, sides, strict=True)
    return all(_same(_unwrapped(left), _unwrapped(right), depth) for left, right in pairs)


def _same_equation(gold: list[str], answer: list[str], gold_sign: str, sign: str) -> bool:
    """Say whether one relation is a multiple of the other."""
    factor = ratio(f"({gold[0]})-({gold[1]})", f"({answer[0]})-({answer[1]})")
    if factor is None:
        return False
    if gold_sign == sign and sign in ("=", "\\ne"):
        return True
    # Only a positive factor keeps the direction; _shortened lets every relation point one way.
    real_factor = numbers.real(factor)
    return gold_sign == sign and sign in ("<", "\\le") and bool(real_factor and real_factor > 0)


def _assigns(text: str) -> bool:
    """Say whether the text gives a name a value: x = 5."""
    chain = relation(text)
    if chain is None or not set(chain[1]) <= _EQUALITIES:
        return False
    name = squeezed(chain[0][0])
    return bool(name) and not _OPERATOR.search(name)


def _shortened(sides: list[str], signs: list[str]) -> tuple[list[str], list[str]]:
    """Return the chain with its inequalities pointing to the right, and x = 1 for x = 2 / 2 = 1."""
    if set(signs) <= _EQUALITIES:
        return [sides[0], sides[-1]], ["="]
    if set(signs) <= _FLIPPED.keys() and signs:
        return sides[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
    return sides, signs


def _ends_in(gold: str, sides: list[str], signs: list[str], depth: int) -> bool:
    """Say whether a chain of equations has the gold value, and no constant with another one."""
    if not set(signs) <= _EQUALITIES:
        return False
    exact = _same(gold, _unwrapped(sides[-1]), depth)
    for side, sign in zip(sides, signs, strict=False):
        value = constant_value(side)
        if value is None or _same(gold, _unwrapped(side), depth):
            continue
        if sign != "\\approx" or not _rounds_to(value, sides[-1]):
            return False
    if exact or "\\approx" not in signs:
        return exact
    # The exact value stands before its rounding.
    before = sides[len(signs) - 1 - signs[::-1].index("\\approx")]
    value = constant_value(before)
    return value is not None and _rounds_to(value, sides[-1]) and _same(gold, before, depth)


def _rounds_to(value: numbers.Number, text: str) -> bool:
    end = constant_value(text)
    if end is None:
        return False
    half_unit = Fraction(1, 2 * 10 ** len(text.partition(".")[2]))
    difference = numbers.absolute(numbers.add(value, -end))
    return numbers.at_most(difference, half_unit + Fraction(1, 10**12))


def _same_matrices(gold: str, answer: str, depth: int) -> bool | None:
    """Compare matrices cell by cell; None if they are not both matrices."""
    gold_matrix = matrix(gold)
    other = matrix(answer)
    if gold_matrix is None or other is None:
        return None
    if gold_matrix[0] != other[0]:
        return False
    if list(map(len, gold_matrix[2])) != list(map(len, other[2])):
        return False
    for gold_row, row in zip(gold_matrix[2], other[2], strict=True):
        for gold_cell, cell in zip(gold_row, row, strict=True):
            gold_value = f"{gold_matrix[1]}({gold_cell})"
            if not _same(_unwrapped(gold_value), _unwrapped(f"{other[1]}({cell})"), depth):
                return False
    return True


def _same_words(gold: str, answer: str) -> bool:
    if "\\text" not in gold + answer and not re.search(r"(?<!\\)[A-Za-z]{4}", gold + answer):
        return False
    gold_words = squeezed(gold).strip("().")
    words = squeezed(answer).strip("().")
    if not _LETTERS.fullmatch(gold_words):
        return False
    return gold_words == words or (len(words) > 1 and gold_words.lower() == words.lower())


_COMPARISONS = (
    _same_times,
    _same_matrices,
    _same_choices,
    _same_sets,
    _same_lists,
    _same_relations,
)
