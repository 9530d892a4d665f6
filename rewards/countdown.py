"""Pays for solving Countdown: reach the target with each of the numbers once. The task of TinyZero and GRPO-Zero.

As in GRPO-Zero the reward is a sum: 0.1 for the form `<answer>...</answer>`, and 1 for the expression in it, so 1.1 for
a solution, 0.1 for a wrong one in the right form, 0.0 for everything else. Nothing that the model wrote is evaluated by
Python: the expression is parsed, every node is checked against a list of what is allowed, and the arithmetic is exact.
"""

import ast
import re
from collections.abc import Callable
from fractions import Fraction
from numbers import Real
from operator import add, index, mul, neg, sub, truediv
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.errors import RewardSpecError
from grpo_hf.scoring.reward import reward_settings

# Six numbers of six digits with all their operators and parentheses fit in 100. It bounds the depth and the digits too.
_MAX_CHARACTERS = 200

_SPELLINGS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-"})
_EXPRESSION = re.compile(r"[0-9+\-*/()\s]+(?:=\s*(?P<result>-?[0-9]+)\s*)?", re.ASCII)
_OPERATIONS: dict[type, Callable[..., Fraction]] = {
    ast.Add: add,
    ast.Sub: sub,
    ast.Mult: mul,
    ast.Div: truediv,
    ast.USub: neg,
}
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, *_OPERATIONS)


@reward_settings(in_process=True)
def countdown(
    completions: list[Completion],
    numbers: list[Any],
    target: list[Any],
    *,
    format_reward: float = 0.1,
    **columns: Any,
) -> list[float | None]:
    """`format_reward` for the form, plus 1.0 for an expression that uses each number exactly once and hits the target.

    The form: each of `<answer>` and `</answer>` occurs once, with something between them and nothing but whitespace
    after them; any reasoning may stand before. Without the form there is no answer, and the reward is 0.0.

    The expression: whole numbers, `+ - * /` (or `× ÷`), parentheses and a minus sign before a term, at most 200
    characters; `= n` may follow it if n is the target.

    Args:
        completions: texts, or lists of messages.
        numbers: lists of whole numbers, none negative.
        target: whole numbers.
        format_reward: what the form alone pays.

    Returns:
        One reward per completion; None where the row's numbers or its target are not of this kind.

    Raises:
        RewardSpecError: `format_reward` is negative or not finite.

    >>> answers = ["so <answer>(9 - 1) * 3</answer>", "<answer>9 + 1 + 3 = 13</answer>", "9 * 3 - 3"]
    >>> countdown(answers, numbers=[[1, 3, 9]] * 3, target=[24] * 3)
    [1.1, 0.1, 0.0]
    """
    if not (isinstance(format_reward, Real) and 0 <= format_reward < float("inf")):
        raise RewardSpecError(
            f"countdown: format_reward={format_reward!r}; expected a finite number that is not negative. Leave it out "
            "for GRPO-Zero's 0.1, or set it to 0 to pay for solutions only."
        )
    rewards: list[float | None] = []
    for completion, row_numbers, row_target in zip(completions, numbers, target, strict=True):
        gold = _gold(row_numbers, row_target)
        answer = _tagged_answer(completion_text(completion))
        if gold is None:
            rewards.append(None)
        else:
            rewards.append(
                0.0 if answer is None else float(format_reward) + float(_solves(answer, *gold))
            )
    return rewards


def _gold(numbers: Any, target: Any) -> tuple[list[int], int] | None:
    try:
        whole = [index(number) for number in numbers if not isinstance(number, bool)]
        goal = index(target)
    except TypeError:  # no list, or something in it that is no whole number
        return None
    usable = (
        whole and len(whole) == len(numbers) and min(whole) >= 0 and not isinstance(target, bool)
    )
    return (sorted(whole), goal) if usable else None


def _tagged_answer(text: str) -> str | None:
    """What stands between the tags, or None if the completion does not have the form."""
    before, opening, rest = text.strip().partition("<answer>")
    answer, closing, after = rest.partition("</answer>")
    well_formed = (
        opening and closing and not after and "<answer>" not in answer and "</answer>" not in before
    )
    return answer if well_formed and answer.strip() else None


def _solves(answer: str, numbers: list[int], target: int) -> bool:
    answer = answer.translate(_SPELLINGS).strip()
    match = _EXPRESSION.fullmatch(answer) if len(answer) <= _MAX_CHARACTERS else None
    if match is None or (match["result"] is not None and int(match["result"]) != target):
        return False
    expression = " ".join(answer.partition("=")[0].split())
    try:
        tree = ast.parse(expression, mode="eval")
    except (
        SyntaxError,
        ValueError,
        MemoryError,
        RecursionError,
    ):  # the last two: too many parentheses for the parser
        return False
    nodes = list(ast.walk(tree))
    if not all(isinstance(node, _NODES) for node in nodes):
        return False
    used = [node.value for node in nodes if isinstance(node, ast.Constant)]
    # Before any arithmetic: afterwards only small numbers can come of it.
    if any(type(value) is not int for value in used) or sorted(used) != numbers:
        return False
    try:
        return _value(tree.body) == target
    except ZeroDivisionError:
        return False


def _value(node: Any) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    operation = _OPERATIONS[type(node.op)]
    if isinstance(node, ast.UnaryOp):
        return operation(_value(node.operand))
    return operation(_value(node.left), _value(node.right))
