import itertools
import time

import pytest

from grpo_hf.rewards.answer_format import answer_format

GOOD = [
    "#### 42",
    "reasoning\n#### 42",
    "reasoning\r\n#### 42\r\n",
    "reasoning\n\n  #### 42  \n\n",
    "#### -3",
    "#### \u22123",
    "#### 1,234",
    "#### $1,234.50",
    "#### 50%",
    "#### 1/2",
    r"#### \frac{1}{2}",
]
BAD = [
    "",
    "42",
    "####",
    "#### ",
    "####42",
    "##### 42",
    "#### 42 apples",
    "#### 42 or 43",
    "#### 42 43",
    "#### apples",
    "#### 1,23",
    "#### nan",
    "#### 1e5",
    "#### " + "9" * 5000,
    "so #### 42",
    "#### 42\nDone.",
    "#### 42\n#### 42",
    "#### 42 ####",
    "####\n42",
    "####\n#### 42",
]


@pytest.mark.parametrize(
    ("completion", "reward"),
    [*itertools.product(GOOD, [1.0]), *itertools.product(BAD, [0.0])],
    ids=lambda value: repr(value)[:60],
)
def test_form(completion, reward):
    assert answer_format([completion]) == [reward]
    assert answer_format([[{"role": "assistant", "content": completion}]]) == [reward]


@pytest.mark.parametrize("content", [None, []])
def test_messages_without_text_score_zero(content):
    assert answer_format([[{"role": "assistant", "content": content}]]) == [0.0]


N = 100_000


@pytest.mark.parametrize(
    "text",
    [
        "x" + " " * N + "x",
        " \n" * (N // 2) + "x",
        "#### " * (N // 5),
        "#### 4" + " " * N + "2",
        "\n####" * (N // 5),
    ],
    ids=lambda text: repr(text[:9]),
)
def test_long_completions_are_fast(text):
    start = time.process_time()
    assert answer_format([text]) == [0.0]
    assert time.process_time() - start < 1.0


def test_takes_what_trl_passes():
    assert answer_format(
        prompts=["a", "b"],
        completions=["#### 42", "42"],
        completion_ids=[[1, 2], [1, 3]],
        answer=["42", "42"],
        extra_column=[0, 1],
        trainer_state=None,
        log_extra=None,
        log_metric=None,
    ) == [1.0, 0.0]
