import time

import pytest

from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards.answer_format import answer_format

HASH_GOOD = [
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
HASH_BAD = [
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
THINK_GOOD = [
    "<think>a</think><answer>b</answer>",
    "\n <think>\na\nb\n</think>\n\n<answer>\n42\n</answer> \n",
    "<think>1 < 2 </b></think> <answer>#### 42</answer>",
]
THINK_BAD = [
    "",
    "42",
    "<think>a</think>",
    "<answer>b</answer>",
    "a</think><answer>b</answer>",
    "<answer>b</answer><think>a</think>",
    "<think>a<answer>b</answer></think>",
    "<think></think><answer>b</answer>",
    "<think>a</think><answer> \n </answer>",
    "<think>a</think>so<answer>b</answer>",
    "so <think>a</think><answer>b</answer>",
    "<think>a</think><answer>b</answer> so",
    "<think>a</think><answer>b",
    "<think>a</think><think>a</think><answer>b</answer>",
    "<think>a</think><answer>b</answer><answer>c</answer>",
    "<think>a</think></think><answer>b</answer>",
    "<think>a <answer>b</answer></think><answer>b</answer>",
    "<THINK>a</THINK><ANSWER>b</ANSWER>",
]


@pytest.mark.parametrize(
    ("style", "completion", "reward"),
    [("hash", text, 1.0) for text in HASH_GOOD]
    + [("hash", text, 0.0) for text in HASH_BAD]
    + [("think", text, 1.0) for text in THINK_GOOD]
    + [("think", text, 0.0) for text in THINK_BAD],
    ids=lambda value: repr(value)[:60],
)
def test_form(style, completion, reward):
    assert answer_format([completion], style=style) == [reward]
    assert answer_format([[{"role": "assistant", "content": completion}]], style=style) == [reward]


def test_hash_is_the_default():
    assert answer_format(["#### 42", "<think>a</think><answer>b</answer>"]) == [1.0, 0.0]


def test_unknown_style_names_the_known_ones():
    with pytest.raises(RewardSpecError, match=r"'thnik' is not known. Did you mean 'think'\?.*hash, think"):
        answer_format(["#### 42"], style="thnik")


@pytest.mark.parametrize("content", [None, []])
def test_messages_without_text_score_zero(content):
    assert answer_format([[{"role": "assistant", "content": content}]]) == [0.0]


N = 100_000


@pytest.mark.parametrize("style", ["hash", "think"])
@pytest.mark.parametrize(
    "text",
    [
        "x" + " " * N + "x",
        " \n" * (N // 2) + "x",
        "#### " * (N // 5),
        "#### 4" + " " * N + "2",
        "\n####" * (N // 5),
        "<think>" * (N // 7),
        "<think>a</think>" * (N // 16),
        "<think>a</think>" + " " * N + "b</answer>",
    ],
    ids=lambda text: repr(text[:9]),
)
def test_long_completions_are_fast(style, text):
    start = time.process_time()
    assert answer_format([text], style=style) == [0.0]
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
