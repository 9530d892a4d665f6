import json
import os
import random
import time
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest

from grpo_hf.rewards.math import math

FRAMES = [
    r"We get \boxed{{{}}}.",
    r"<think>Is it \boxed{{0}}?</think> $\boxed{{{}}}$",
    "#### {}",
    "The answer is ${}$.",
]

# Answers in the styles of the MATH dataset, with right and wrong ways to write each. What each is
# worth is plain to see.
ROWS = [
    (
        r"\frac{1}{2}",
        [r"\frac12", r"\dfrac{1}{2}", r"\tfrac 12", "0.5", "1/2", r"\frac{2}{4}", r"2^{-1}"],
        ["2", "-0.5"],
    ),
    (
        "42",
        ["42.0", "042", "+42", r"42\text{ apples}", r"\$42", r"42^\circ", "x=42", "84/2", "6 * 7"],
        ["4 2", "24"],
    ),
    ("-3", ["-3.0", r"-\frac{6}{2}", r"x = -3"], ["3", "--3", "(-3,3)"]),
    (r"10,\!080", ["10080", "10,080", r"10{,}080", r"10,\! 080"], ["10", "80", "10,80", "1080"]),
    (
        r"\sqrt{8}",
        [r"2\sqrt{2}", r"2 \sqrt 2", r"\sqrt{4}\cdot\sqrt{2}", r"8^{1/2}"],
        [r"4\sqrt2", "8", "2.8"],
    ),
    (
        r"\text{Evelyn}",
        ["Evelyn", r"\mathrm{Evelyn}", r"\textbf{Evelyn}"],
        [r"\text{Angela}", "E", r"\text{Evelyn or Angela}"],
    ),
    (r"\text{(C)}", ["(C)", r"\text{C}", "C"], [r"\text{(B)}", "A, C", "c/d"]),
    (
        r"\left( 3, \frac{\pi}{2} \right)",
        [r"(3,\frac{\pi}{2})", r"(3, \pi/2)"],
        [r"(\frac{\pi}{2}, 3)", "3", r"[3, 4]"],
    ),
    ("(3,4]", [r"\left(3,4\right]", r"(3, 4]"], ["(3,4)", "[3,4]", "3,4"]),
    ("1,-2", ["-2,1", "-2, 1", r"1\text{ and }-2", r"\{1, -2\}"], ["1", "-2", "1,2", "1,-2,3"]),
    ("x^2+2x+1", ["1+2x+x^2", "(x+1)^2"], ["x^2+2x-1", "y^2+2y+1", "x^2"]),
    ("52_8", ["52_{8}", "52"], ["52_9", "42", "52_{10}"]),
    (
        "(-\\infty,2)\\cup(3,\\infty)",
        [r"(-\infty, 2) \cup (3, \infty)"],
        [r"(-\infty,2)", r"(2,3)", r"(-\infty,2]\cup(3,\infty)"],
    ),
    (
        r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}",
        [
            r"\begin{pmatrix}1\\-2\end{pmatrix}",
            r"\begin{pmatrix} 2/2 \\ -2 \end{pmatrix}",
        ],
        [r"\begin{pmatrix} -2 \\ 1 \end{pmatrix}", "1"],
    ),
]


def score(completion, gold):
    [reward] = math([completion], answer=[gold])
    return reward


def message(content):
    return [{"role": "assistant", "content": content}]


@pytest.mark.parametrize(("gold", "right", "wrong"), ROWS, ids=[row[0] for row in ROWS])
def test_what_equals_an_answer(gold, right, wrong):
    for frame in FRAMES:
        for given in (gold, *right):
            assert score(frame.format(given), gold) == 1.0, given
        for given in wrong:
            assert score(frame.format(given), gold) == 0.0, given


def test_every_own_row_differs_from_the_others():
    for gold, *_ in ROWS:
        for other, *_ in ROWS:
            if other != gold:
                assert score(rf"\boxed{{{other}}}", gold) == 0.0


@pytest.fixture(scope="module")
def math500():
    folder = Path(os.environ.get("GRPO_HF_DATA", ""), "math500")
    if "GRPO_HF_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("GRPO_HF_DATA does not name a folder with math500/test.jsonl")
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = list(map(json.loads, lines))
    assert len(rows) == 500
    return rows


def test_real_solutions_are_right(math500):
    solutions = list(map(itemgetter("solution"), math500))
    answers = list(map(itemgetter("answer"), math500))
    assert math(solutions, answers) == [1.0] * 500
    # One solution boxes the same length as a mixed number and as a fraction, so it has two right
    # boxes.
    assert math(solutions, solutions) == [1.0] * 500
    assert math([rf"\boxed{{{answer}}}" for answer in answers], answers) == [1.0] * 500


# Every pair of MATH-500's 301 different answers was judged once. These are all the pairs that count
# as equal and do not look equal; each was checked by hand. Units, degrees, a currency and a base
# may be left out.
SAME_VALUE = [
    {"90", r"90^\circ"},
    {"120", r"120^\circ"},
    {"30", r"30^\circ"},
    {"36", r"36^\circ", r"\$36"},
    {"5", "x=5"},
    {"40", "40_9"},
    {"1,-2", "-2,1", "(-2,1)"},
    {"15", r"15\mbox{ cm}^2"},
    {r"\frac{1}{4}", r"\frac14"},
    {"0", "5x - 7y + 11z + 4 = 0"},
]


def plain(text):
    return "".join(text.replace(r"\!", "").replace("dfrac", "frac").split())


def test_solutions_of_other_problems_are_right_by_coincidence_only(math500):
    solutions = list(map(itemgetter("solution"), math500))
    answers = list(map(itemgetter("answer"), math500))
    rng = random.Random(0)
    wrong = []
    for _ in range(3):
        golds = rng.sample(answers, 500)
        for reward, solution, given, gold in zip(
            math(solutions, golds), solutions, answers, golds, strict=True
        ):
            same = plain(given) == plain(gold)
            same = same or any({given, gold} <= values for values in SAME_VALUE)
            if reward != float(same):
                wrong.append((reward, given, gold, solution))
    assert wrong == []


@pytest.mark.parametrize(
    "completion",
    [
        r"\boxed{42}",
        r"\boxed {42}",
        r"\fbox{42}",
        r"$$\boxed{\boxed{42}}$$",
        r"\boxed{ 42. }",
        r"\boxed{$42$}",
        r"\boxed{\(42\)}",
        "\\boxed{\n42\n}",
        r"\boxed{41} is what I thought first.</think> It is \boxed{42}.",
        r"Fill in \boxed{}, \boxed{\phantom{00}}, \boxed{\ \,}, \fbox{?}: \boxed{42}",
        r"\boxed{} is to be filled. The answer is 42.",
        r"\boxed{42} fills \boxed{\hspace{1cm}} and \boxed{\text{ }}.",
        r"\boxed{42}, again \boxed{42}, as a fraction \boxed{\frac{84}{2}}",
        "<answer>42</answer>",
        "<answer>The answer is 42.</answer>",
        "<answer>\nWe add 40 and 2.\n**Answer:** $42$\n</answer>",
        r"<answer>So it is \boxed{42}</answer>",
        "#### 42",
        "The answer is 42.",
        "**Answer:** 42",
        "Answer: $x = 42$ apples",
        "Final answer: **42**",
        r"the answer is \(42\)",
        "The answer is 41. No, the answer is 42.",
    ],
)
def test_where_the_answer_is_found(completion):
    assert (
        score(completion, "42")
        == score(completion, "#### 42")
        == score(completion, r"So \boxed{42}.")
        == 1.0
    )
    assert score(message(completion), "42") == 1.0
    assert score(completion, "43") == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        r"\boxed 5",
        r"It is $\boxed5$.",
        r"It is \boxed 5.",
        r"Thus $x = \boxed 5$, and we are done.",
        r"\(\boxed 5\)",
        "so\n\\boxed 5\n",
        r"<think>\boxed 6</think>**\boxed 5**",
        r"\fbox 5",
        r"\boxed{\boxed 5}",
        r"first \boxed 5, then \boxed{5}",
    ],
)
def test_a_box_without_braces_holds_one_character(completion):
    assert score(completion, "5") == score(completion, completion) == 1.0
    assert score(r"\boxed{5}", completion) == 1.0
    assert score(completion, "6") == score(r"\boxed{6}", completion) == 0.0
    assert score(completion + r" or \boxed 6", "5") == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        r"\boxed 52",
        r"\boxed 5 2",
        r"\boxed 5.2",
        r"\boxed 5,000",
        r"\boxed 5x",
        r"\boxed 5^2",
        r"\boxed 5!",
        r"\boxed 5/2",
        r"\boxed 5 + 1",
        r"\boxed 5\pi",
        r"\boxed 5 or 6",
        r"\boxed 5, 6",
        r"\boxed 5\%",
        r"\boxed -5",
        r"\boxed\frac 5 1",
        r"\boxedx 5",
        r"use \boxed. 5",
    ],
)
def test_what_may_go_on_behind_a_box_without_braces_is_no_answer(completion):
    assert score(completion, "5") == 0.0
    assert score(completion + r" and \boxed{5}", "5") == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        r"\boxed{42} or \boxed{43}",
        r"\boxed{43} or \boxed{42}",
        r"\boxed{42}\boxed{43}",
        r"\boxed{42 or 43}",
        r"\boxed{42, 43}",
        r"\boxed{42 \text{ or } 43}",
        r"\boxed{42 \text{ and } 43}",
        r"\boxed{\{42, 43\}}",
        r"\boxed{[42, 43]}",
        r"\boxed{42;43}",
        r"\boxed{42 \quad 43}",
        r"\boxed{42 43}",
        r"\boxed{42 \pm 1}",
        r"\boxed{42.5 \pm 0.5}",
        r"\boxed{x = 42, x = 43}",
        r"\boxed{x = 42 \text{ or } x = 43}",
        r"\boxed{x > 41}",
        r"\boxed{x}",
        "<answer>42</answer> <answer>43</answer>",
        "<answer>42 or 43</answer>",
        "<answer>The answer is 42.</answer> <answer>The answer is 43.</answer>",
        "<answer>The answer is 42 or 43.</answer>",
        "#### 42 or 43",
        "The answer is $42$ or $43$.",
    ],
)
def test_a_hedge_is_wrong_whichever_is_meant(completion):
    assert score(completion, "42") == score(completion, "43") == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        " \n ",
        "42",
        "I think 42, or $42$",
        r"\boxed{}",
        r"\boxed{ }",
        r"\boxed 42",
        r"\boxed{42",
        r"\boxed{42} \boxed{",
        r"\boxed{42} \boxed{42",
        r"<think>\boxed{42}</think>",
        r"\boxed{41}",
        r"\boxed{\frac{42}{0}}",
        r"\boxed{42/}",
        r"\boxed{\text{forty-two}}",
        r"\boxed{nan}",
        r"\boxed{\infty}",
        r"\boxed{\frac{}{}}",
        r"\boxed{\undefined{42}{}",
        r"\boxed{__import__('os').getpid()}",
        r"\boxed{4" + "\u0662}",
        "\\boxed{\x00}",
        "\\boxed{\ud800}",
        "\\boxed{😀}",
        "####",
        "#### \n42",
        "Answer:",
        "<answer></answer>",
        "<answer>",
        "<answer>42",
        "The answer is <answer>42",
    ],
    ids=repr,
)
def test_rejects(completion):
    assert score(completion, "42") == 0.0
    assert score(message(completion), "42") == 0.0
    assert score(completion, "") is None


@pytest.mark.parametrize(
    ("gold", "right"),
    [
        (42, "42"),
        (42.0, "42"),
        (np.int64(42), "42"),
        (0.5, r"\frac12"),
        (1e22, "1" + "0" * 22),
        (-7, "-7"),
        ("$\\frac{3}{4}$", "0.75"),
        (r"\(\frac{3}{4}\)", "0.75"),
        ("5 + 5 = <<5+5=10>>10\n#### 10", "10"),
        ("#### 1,234", "1234"),
        (r"First \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\text{yes}}", "yes"),
        (r"Thus the answer is \boxed 2.", "2"),
        (r"Then $\boxed 1$ is a root, and so is $\boxed2$", "2"),
    ],
)
def test_gold_forms(gold, right):
    assert score(rf"\boxed{{{right}}}", gold) == 1.0
    assert score(r"\boxed{8}", gold) == 0.0


@pytest.mark.parametrize(
    "gold",
    [
        None,
        "",
        " \n",
        "$$",
        "####",
        "5 ####",
        r"\boxed{}",
        r"\boxed{42",
        "x" * 2000,
        True,
        [42],
        float("nan"),
        10**5000,
    ],
    ids=lambda gold: repr(type(gold)),
)
def test_gold_that_cannot_be_read_is_none(gold):
    assert score(r"\boxed{42}", gold) is None


@pytest.mark.parametrize(
    "content", [None, [], [{"type": "image"}], [{"type": "text", "text": None}]]
)
def test_messages_without_text_score_zero(content):
    assert score(message(content), "42") == 0.0


N = 100_000


@pytest.mark.parametrize(
    "text",
    [
        *("9" * N, "{" * N, "}" * N, "\\" * N, "$" * N, "\n" * N, "#" * N, " " * N, "**" * N),
        *(
            "\\boxed{" * (N // 7),
            "\\boxed{41}" * (N // 9),
            "\\boxed" + " " * N,
            "\\boxed{" + "9" * N + "}",
        ),
        *(
            "<answer>" * (N // 8),
            "<answer>41</answer>" * (N // 19),
            "</think>" * (N // 8),
            "answer is " * (N // 10),
        ),
        *(
            "answer is " + "$a" * N,
            "answer is " + "\\(" * N,
            "#### " + "4" + " " * N + "2",
            "step 6 * 7 = 42. " * 6000,
        ),
    ],
    ids=lambda text: repr(text[:9]),
)
def test_long_completions_are_fast(text):
    # The import of mpmath is not part of the time.
    score(r"\boxed{41}", "42")
    start = time.process_time()
    assert score(text, "42") == 0.0
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "(" * 240 + ")" * 240,
        "\\frac{" * 80,
        "{" * 240 + "}" * 240,
        "9" * 490,
        "x_" * 240,
        "1," * 240,
        "-" * 490,
    ],
)
def test_odd_answers_of_tolerable_length_are_fast(answer):
    score(r"\boxed{41}", "42")
    start = time.process_time()
    assert score(rf"\boxed{{{answer}}}", "42") == 0.0
    assert time.process_time() - start < 1.0


def test_an_answer_of_absurd_length_is_wrong():
    assert score(r"\boxed{42" + "+0" * 200 + "}", "42") == 1.0
    assert score(r"\boxed{42" + "+0" * 250 + "}", "42") == 0.0


def test_a_box_of_the_problem_is_no_answer():
    problem = r"What is \boxed{17} times 2, plus \boxed{8}? Put it into \boxed{}."
    completion = r"We have \boxed{17} and \boxed{8}, so it is \boxed{42}."
    user = [{"role": "user", "content": problem}]
    assert score(completion, "42") == 0.0
    assert math([completion], ["42"], prompts=[problem]) == [1.0]
    assert math([message(completion)], ["42"], prompts=[user]) == [1.0]
    # A right answer may be what the problem boxes, and another box stays a hedge.
    assert math([r"It is \boxed{17}."], ["17"], prompts=[problem]) == [1.0]
    assert math([completion + r" Or \boxed{43}."], ["42"], prompts=[problem]) == [0.0]
    assert math([r"\boxed{42} \boxed{"], ["42"], prompts=[r"Use \boxed{"]) == [0.0]


@pytest.mark.parametrize(
    ("gold", "parts"),
    [
        ("1,2", r"$x=\boxed{1}$ or $x=\boxed{2}$"),
        ("1,2", r"\boxed{2}, \boxed{1}, so the roots are \boxed{1,2}"),
        (r"(3, \frac{1}{2})", r"$p = \boxed{3}$ and $q = \boxed{0.5}$"),
        ("x=1,y=2", r"\boxed{x=1}, \boxed{y=2}"),
    ],
)
def test_parts_count_together(gold, parts):
    assert score(parts, gold) == 1.0
    assert score(parts + r" or \boxed{7}", gold) == 0.0
    assert score(r"\boxed{1}", gold) == 0.0


def test_long_reasoning_before_the_answer():
    assert score("6 * 7 = $42$. " * 10_000 + r"\boxed{42}", "42") == 1.0


def test_works_in_a_thread():
    from concurrent.futures import ThreadPoolExecutor

    # Signals, and time limits that need them, do not work in a thread.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(score, r"\boxed{\frac{17}{34}}", "0.5").result() == 1.0


def test_takes_what_trl_passes():
    assert math(
        prompts=["a", "b"],
        completions=[r"\boxed{42}", r"\boxed{41}"],
        completion_ids=[[1, 2], [1, 3]],
        answer=["42", "42"],
        extra_column=[0, 1],
        trainer_state=None,
        log_extra=None,
        log_metric=None,
    ) == [1.0, 0.0]


def test_columns_of_different_length_are_a_bug():
    with pytest.raises(ValueError):
        math([r"\boxed{42}"] * 2, answer=["42"])
