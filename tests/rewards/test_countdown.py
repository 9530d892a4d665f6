import itertools
import random
import time
import warnings
from fractions import Fraction
from operator import add, mul, sub, truediv

import numpy as np
import pytest

from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards.countdown import countdown

SOLVED = 1.1
WRONG = 0.1
FORMLESS = 0.0


def score(completion, numbers=(1, 3, 9), target=24, **options):
    [reward] = countdown([completion], numbers=[list(numbers)], target=[target], **options)
    return reward


def tagged(expression):
    return f"<think>Let us see.</think>\n<answer>{expression}</answer>"


def random_expression(rng, numbers):
    """Build an expression of all `numbers` together with its exact value.

    The value is None if the expression divides by zero.
    """
    if len(numbers) == 1:
        return str(numbers[0]), Fraction(numbers[0])
    cut = rng.randrange(1, len(numbers))
    left, a = random_expression(rng, numbers[:cut])
    right, b = random_expression(rng, numbers[cut:])
    operator = rng.choice("+-*/")
    space = rng.choice(["", " "])
    text = f"({left}{space}{operator}{space}{right})"
    if a is None or b is None or (operator == "/" and b == 0):
        return text, None
    operations = {"+": add, "-": sub, "*": mul, "/": truediv}
    return text, operations[operator](a, b)


def test_problems_built_from_their_solution_are_solved():
    rng = random.Random(0)
    solved = 0
    while solved < 500:
        numbers = [rng.randrange(1, 100) for _ in range(rng.randrange(1, 7))]
        expression, value = random_expression(rng, numbers)
        if value is None or value.denominator != 1:
            continue
        solved += 1
        shown = (
            expression[1:-1] if expression.startswith("(") and rng.random() < 0.5 else expression
        )
        pretty = shown.replace("*", "×").replace("/", "÷").replace("-", "−")
        shuffled = rng.sample(numbers, len(numbers))
        for text in (shown, pretty, f"{shown} = {value}", f"\n{shown}\n"):
            assert score(tagged(text), shuffled, int(value)) == SOLVED, text
        assert score(tagged(shown), shuffled, int(value) + 1) == WRONG
        assert score(tagged(shown), [*shuffled, 7], int(value)) == WRONG, "a number is left"
        assert score(tagged(shown), shuffled[1:] or [100], int(value)) == WRONG, "a number too many"
        assert score(tagged(shown), [shuffled[0] + 1, *shuffled[1:]], int(value)) == WRONG, (
            "another number"
        )


def test_agrees_with_brute_force():
    """Compare every expression of three numbers, in both groupings, with Python's arithmetic."""
    rng = random.Random(1)
    for _ in range(4):
        numbers = [rng.randrange(1, 13) for _ in range(3)]
        values = {}
        for (a, b, c), one, two in itertools.product(
            itertools.permutations(numbers), "+-*/", "+-*/"
        ):
            for text in (f"({a} {one} {b}) {two} {c}", f"{a} {one} ({b} {two} {c})"):
                try:
                    values[text] = eval(text.replace("/", "/ F(1) /"), {"F": Fraction})
                except ZeroDivisionError:
                    values[text] = None
        whole_values = []
        for value in values.values():
            if value is not None and value == int(value):
                whole_values.append(int(value))
        target = rng.choice(whole_values)
        completions = list(map(tagged, values))
        rewards = countdown(completions, [numbers] * len(values), [target] * len(values))
        assert rewards == [SOLVED if value == target else WRONG for value in values.values()]


@pytest.mark.parametrize(
    "completion",
    [
        "<answer>(9 - 1) * 3</answer>",
        "<answer> (9-1)*3 </answer>\n",
        "I think <answer>(9 - 1) × 3</answer>",
        "<think>9 * 3 = 27</think><answer>3 * (9 - 1) = 24</answer>",
        "9 * 3</think>\n<answer>-(1 - 9) * 3</answer>",
        "<answer>(9 − 1)·3</answer>",
        "<answer>((((9 - 1)))) * 3</answer>",
        "<answer>(9\n-\n1) * 3</answer>",
    ],
)
def test_solutions(completion):
    assert score(completion) == SOLVED
    assert score([{"role": "assistant", "content": completion}]) == SOLVED
    assert score(completion, format_reward=0) == 1.0
    assert score(completion, format_reward=0.5) == 1.5


@pytest.mark.parametrize(
    "expression",
    [
        "9 * 3 - 3",
        "9 - 1 * 3",
        "24",
        "nothing",
        "(9 - 1) * 3 = 25",
        "(9 - 1) * 3 =",
        "(9 - 1) * 3 = 24 = 24",
        "24 = (9 - 1) * 3",
        "(9 - 1) * 3 or 9 + 1 + 3",
        "(9 - 1) * 3, 13",
        "(9 - 1) * 3; 13",
        "(9 - 1) * 3 # 9",
        "(9 - 1) * +3",
        "(9 - 1)(3)",
        "(9 - 1) * 3)",
        "((9 - 1) * 3",
        "(9 - 1) ** 3",
        "(9 - 1) // 3",
        "(9 - 1) % 3",
        "(9 - 1) @ 3",
        "(9 - 1) * 3.0",
        "(9 - 1) * 3e0",
        "(9 - 1) * 3j",
        "(9 - 1) * 0x3",
        "(9 - 1) * 03",
        "(9 - 1) * 3_",
        "(9 - True) * 3",
        "(9 - 1) * ３",
        "(9 - 1) * ٣",
        "(9 - 1) * 3²",
        "(9 - 1) * (3 if 1 else 9)",
        "(9 - 1) * (x := 3)",
        "(lambda: (9 - 1) * 3)()",
        "(9).__class__(24)",
        "[9, 1, 3][0]",
        "f'{9 - 1}' * 3",
        "'9' + '1' + '3'",
        "__import__('os').system('echo 9 1 3')",
        "exec('9 - 1 * 3')",
        "24 + 0 * (1 + 3 + 9)",
        "9 / (3 - 3) + 1",
        "~9 - 1 * 3",
        "9 < 1 < 3",
        "not 9",
        "*9, 1, 3",
        "9 1 3",
        "()",
        "",
        "\x00",
        "\ud800",
        "9" * 150,
        "9" * 5000,
        "9**9**9",
        "9**9**9**9**9",
        "(" * 10_000 + "9" + ")" * 10_000,
        "(" * 99 + "9" + ")" * 99,
        "-" * 199 + "9",
        "-" * 10_000 + "9",
        "9" + "+9" * 10_000,
        "1" + "*9" * 99,
        "(9 - 1) * 3" + " " * 10_000 + "+ 0",
    ],
    ids=lambda expression: repr(expression[:40]),
)
def test_other_expressions_pay_for_the_form_only(expression):
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score(tagged(expression)) == (WRONG if expression.strip() else FORMLESS)
    assert time.process_time() - start < 0.5


def test_digits_are_not_joined():
    assert score(tagged("12"), [1, 2], 12) == WRONG
    assert score(tagged("1 2"), [1, 2], 12) == WRONG
    assert score(tagged("1_2"), [12], 12) == WRONG
    assert score(tagged("012"), [12], 12) == WRONG
    assert score(tagged("12"), [12], 12) == SOLVED


def test_each_number_as_often_as_it_is_given():
    assert score(tagged("5 + 5"), [5], 10) == WRONG
    assert score(tagged("5 + 5"), [5, 5], 10) == SOLVED
    assert score(tagged("5 + 5"), [5, 5, 5], 10) == WRONG
    assert score(tagged("5 + 0"), [5, 0], 5) == SOLVED


def test_division_is_exact():
    assert score(tagged("8 / (3 - 8 / 3)"), [3, 3, 8, 8], 24) == SOLVED
    assert score(tagged("7 / 2"), [7, 2], 3) == WRONG
    assert (
        score(tagged("10000000000000001 / 1"), [1, 10000000000000001], 10000000000000000) == WRONG
    )
    assert score(tagged("1 / 0"), [0, 1], 0) == WRONG
    assert score(tagged("1 - 3"), [1, 3], -2) == SOLVED
    assert score(tagged("1 - 3 = -2"), [1, 3], -2) == SOLVED


@pytest.mark.parametrize(
    "completion",
    [
        "",
        " \n ",
        "(9 - 1) * 3",
        "<answer>(9 - 1) * 3",
        "(9 - 1) * 3</answer>",
        "</answer>(9 - 1) * 3<answer>",
        "<answer></answer>",
        "<answer> \n </answer>",
        "<answer>(9 - 1) * 3</answer> I am sure.",
        "<answer>(9 - 1) * 3</answer></answer>",
        "<answer><answer>(9 - 1) * 3</answer>",
        "</answer><answer>(9 - 1) * 3</answer>",
        "<answer>9 + 1 + 3</answer><answer>(9 - 1) * 3</answer>",
        "<answer>(9 - 1) * 3</answer><answer>(9 - 1) * 3</answer>",
        "<ANSWER>(9 - 1) * 3</ANSWER>",
        "<answer>" * 10_000,
        "<answer>1</answer>" * 10_000,
        "1 + " * 10_000,
    ],
    ids=lambda completion: repr(completion[:40]),
)
def test_without_the_form_nothing_is_paid(completion):
    assert score(completion) == FORMLESS
    assert score([{"role": "assistant", "content": completion}]) == FORMLESS


@pytest.mark.parametrize("content", [None, []])
def test_messages_without_text_score_zero(content):
    assert score([{"role": "assistant", "content": content}]) == FORMLESS


def test_long_reasoning_before_the_answer():
    assert (
        score("<think>" + "9 * 3 = 27. " * 10_000 + "</think><answer>(9 - 1) * 3</answer>")
        == SOLVED
    )


@pytest.mark.parametrize(
    ("numbers", "target"),
    [
        (None, 24),
        ([], 24),
        (5, 24),
        ("139", 24),
        (["1", "3", "9"], 24),
        ([1, 3, None], 24),
        ([1.0, 3, 9], 24),
        ([True, 3, 9], 24),
        ([-1, 3, 9], 24),
        ([1, 3, 9], None),
        ([1, 3, 9], "24"),
        ([1, 3, 9], 24.5),
        ([1, 3, 9], float("nan")),
        ([1, 3, 9], True),
    ],
)
def test_bad_row_is_none(numbers, target):
    assert countdown([tagged("(9 - 1) * 3"), ""], [numbers] * 2, [target] * 2) == [None, None]


@pytest.mark.parametrize("kind", [tuple, np.array, lambda numbers: list(map(np.int32, numbers))])
def test_rows_of_other_integer_types(kind):
    assert countdown([tagged("(9 - 1) * 3")], [kind([1, 3, 9])], [np.int64(24)]) == [SOLVED]


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.1", None])
def test_impossible_format_reward_says_what_came(value):
    with pytest.raises(RewardSpecError, match=f"format_reward is {value!r}.*; expected a number"):
        score("", format_reward=value)


def test_runs_in_the_trainers_process():
    assert countdown.reward_settings.in_process and not countdown.reward_settings.batched


def test_takes_what_trl_passes():
    assert countdown(
        prompts=["a", "b"],
        completions=[tagged("1 + 2"), "3"],
        completion_ids=[[1, 2], [1, 3]],
        numbers=[[1, 2], [1, 2]],
        target=[3, 3],
        trainer_state=None,
        log_extra=None,
        log_metric=None,
    ) == [SOLVED, FORMLESS]


def test_columns_of_different_length_are_a_bug():
    with pytest.raises(ValueError):
        countdown(["", ""], numbers=[[1]], target=[1])
