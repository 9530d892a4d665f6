"""Pay for solving Countdown: reach the target with each of the numbers once.

This is the task of TinyZero and GRPO-Zero. As in GRPO-Zero the reward is a sum: 0.1 for the form
`<answer>...</answer>`, and 1 for the expression in it. So a solution earns 1.1, a wrong expression
in the right form 0.1, and everything else 0.0. Python evaluates nothing that the model wrote: the
expression is parsed, every node is checked against a list of what is allowed, and the arithmetic is
exact.
"""

import ast
import re
from collections.abc import Callable
from fractions import Fraction
from operator import add, index, mul, neg, sub, truediv
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.rewards._options import check_number
from grpo_hf.scoring.reward import reward_settings

# Six numbers of six digits with all their operators and parentheses fit in 100 characters. The
# limit bounds the depth of the expression and the digits of its numbers too.
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
# The nodes that an expression may consist of.
_NODES = (ast.BinOp, ast.UnaryOp, ast.Constant, *_OPERATIONS)


def _check_options(format_reward: float) -> None:
    check_number("countdown", "format_reward", format_reward, least=0)


def final_expressions(texts: list[str]) -> list[str | None]:
    """Return the expression of each text without spaces; None where there is no answer.

    >>> final_expressions(["<answer>(9 - 1) * 3 = 24</answer>", "24"])
    ['(9-1)*3', None]
    """
    expressions: list[str | None] = []
    for text in texts:
        answer = _tagged_answer(text)
        written = (answer or "").translate(_SPELLINGS).partition("=")[0]
        expressions.append("".join(written.split()) or None)
    return expressions


@reward_settings(in_process=True, check=_check_options, answers=final_expressions, gold="target")
def countdown(
    completions: list[Completion],
    numbers: list[Any],
    target: list[Any],
    *,
    format_reward: float = 0.1,
    **columns: Any,
) -> list[float | None]:
    """Return `format_reward` for the form, plus 1.0 for a solution.

    The form: each of `<answer>` and `</answer>` occurs once, with something between them and
    nothing but whitespace after them; any reasoning may stand before. Without the form there is no
    answer, and the reward is 0.0.

    A solution is an expression that uses each number exactly once and equals the target. It
    consists of whole numbers, `+ - * /` (or `× ÷`), parentheses and a minus sign before a term, and
    has at most 200 characters. `= n` may follow it if n is the target.

    Args:
        completions: texts, or lists of messages.
        numbers: lists of whole numbers, none negative.
        target: whole numbers.
        format_reward: what the form alone pays; 0 pays for solutions only.

    Returns:
        One reward per completion; None where the row's numbers or its target are not as described.

    Raises:
        RewardSpecError: `format_reward` is negative or not finite.

    >>> right = "so <answer>(9 - 1) * 3</answer>"
    >>> wrong = "<answer>9 + 1 + 3 = 13</answer>"
    >>> countdown([right, wrong, "9 * 3 - 3"], numbers=[[1, 3, 9]] * 3, target=[24] * 3)
    [1.1, 0.1, 0.0]
    """
    _check_options(format_reward)
    rewards: list[float | None] = []
    for completion, row_numbers, row_target in zip(completions, numbers, target, strict=True):
        gold = _gold(row_numbers, row_target)
        answer = _tagged_answer(completion_text(completion))
        if gold is None:
            rewards.append(None)
        elif answer is None:
            rewards.append(0.0)
        else:
            rewards.append(float(format_reward) + float(_solves(answer, *gold)))
    return rewards


def _gold(numbers: Any, target: Any) -> tuple[list[int], int] | None:
    """Return the sorted numbers and the target; None if they are not whole numbers."""
    whole_numbers = []
    try:
        for number in numbers:
            # A bool is an int to Python.
            if isinstance(number, bool):
                return None
            whole_numbers.append(index(number))
        whole_target = index(target)
    # It is no list, or it contains something that is no whole number.
    except TypeError:
        return None
    if not whole_numbers or min(whole_numbers) < 0 or isinstance(target, bool):
        return None
    return sorted(whole_numbers), whole_target


def _tagged_answer(text: str) -> str | None:
    """Return what stands between the tags, or None if the completion does not have the form."""
    before, opening, rest = text.strip().partition("<answer>")
    answer, closing, after = rest.partition("</answer>")
    if not opening or not closing or after:
        return None
    # Each tag occurs once.
    if "</answer>" in before or "<answer>" in answer:
        return None
    return answer if answer.strip() else None


def _solves(answer: str, numbers: list[int], target: int) -> bool:
    answer = answer.translate(_SPELLINGS).strip()
    if len(answer) > _MAX_CHARACTERS:
        return False
    match = _EXPRESSION.fullmatch(answer)
    if match is None:
        return False
    if match["result"] is not None and int(match["result"]) != target:
        return False
    body = _parsed(answer.partition("=")[0])
    # The numbers are compared before any arithmetic: from these numbers only small ones can result.
    if body is None or _constants(body) != numbers:
        return False
    try:
        return _value(body) == target
    except ZeroDivisionError:
        return False


def _parsed(expression: str) -> ast.expr | None:
    """Return the tree of the expression; None if it is no expression."""
    try:
        # One line, because a line break ends an expression for Python.
        return ast.parse(" ".join(expression.split()), mode="eval").body
    # The last two: there are too many parentheses for the parser.
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _constants(body: ast.expr) -> list[int] | None:
    """Return the numbers of the expression, sorted; None if a node is not allowed."""
    constants = []
    for node in ast.walk(body):
        if not isinstance(node, _NODES):
            return None
        if isinstance(node, ast.Constant):
            # No float: the pattern has no point, but this check does not rely on it.
            if type(node.value) is not int:
                return None
            constants.append(node.value)
    return sorted(constants)


def _value(node: Any) -> Fraction:
    """Return the exact value of an expression whose nodes are all allowed."""
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    operation = _OPERATIONS[type(node.op)]
    if isinstance(node, ast.UnaryOp):
        return operation(_value(node.operand))
    return operation(_value(node.left), _value(node.right))
