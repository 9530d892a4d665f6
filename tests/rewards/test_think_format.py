import itertools
import time

import pytest

from grpo_hf.rewards.think_format import think_format

WITH_TAGS = [
    "<think>a</think><answer>b</answer>",
    "\n <think>\na\nb\n</think>\n\n<answer>\n42\n</answer> \n",
    "<think>1 < 2 </b></think> <answer>#### 42</answer>",
    "<think>思考</think><answer>\U0001f600</answer>",
]
WITHOUT_TAGS = [
    "<think>a</think>b",
    "<think>a</think>\n\nThe answer is 42.\n",
    "<think>a</think><b>42</b>",
]
NEITHER = [
    "",
    " \n ",
    "42",
    "<think>",
    "<think>a",
    "<think>a</think>",
    "<think>a</think> \n ",
    "<think> \n </think>b",
    "<think></think><answer>b</answer>",
    "<think>a</think></think>b",
    "<think><think>a</think>b",
    "<think>a</think>b<think>c</think>d",
    "</think>a<think>b",
    "so <think>a</think><answer>b</answer>",
    "<THINK>a</THINK><ANSWER>b</ANSWER>",
    "< think>a</ think>b",
    "<think>a</think><think>a</think><answer>b</answer>",
]
WRONG_ANSWER_TAGS = [
    *WITHOUT_TAGS,
    "<think>a</think><answer>b",
    "<think>a</think>b</answer>",
    "<think>a</think><answer> \n </answer>",
    "<think>a</think>so<answer>b</answer>",
    "<think>a</think><answer>b</answer> so",
    "<think>a</think><answer>b</answer><answer>c</answer>",
    "<think>a<answer>b</answer></think>",
    "<think>a <answer>b</answer></think><answer>b</answer>",
    "<answer>b</answer><think>a</think>",
    "<answer>b</answer>",
]
NEITHER_WITHOUT_TAGS = [text for text in NEITHER if "<answer>b</answer>" not in text]
CASES = [
    *itertools.product(WITH_TAGS, [True], [1.0]),
    *itertools.product(WRONG_ANSWER_TAGS + NEITHER, [True], [0.0]),
    *itertools.product(WITHOUT_TAGS + WITH_TAGS, [False], [1.0]),
    *itertools.product(NEITHER_WITHOUT_TAGS, [False], [0.0]),
]


@pytest.mark.parametrize(
    ("text", "answer_tags", "reward"), CASES, ids=lambda value: repr(value)[:60]
)
def test_form(text, answer_tags, reward):
    assert think_format([text], answer_tags=answer_tags) == [reward]
    assert think_format([[{"role": "assistant", "content": text}]], answer_tags=answer_tags) == [
        reward
    ]


@pytest.mark.parametrize(
    ("text", "answer_tags", "reward"), CASES, ids=lambda value: repr(value)[:60]
)
def test_an_opened_prompt_needs_the_rest_only(text, answer_tags, reward):
    """A completion of the prompt's `<think>` scores like the whole text.

    A second `<think>` is one too many.
    """
    options = {"answer_tags": answer_tags, "opened": True}
    assert think_format([text], **options) == [0.0] or "<think>" not in text
    head, tag, rest = text.partition("<think>")
    if tag and not head.strip():
        assert think_format([rest], **options) == [reward]


def test_answer_tags_are_the_default():
    assert think_format(["<think>a</think><answer>b</answer>", "<think>a</think>b"]) == [1.0, 0.0]


@pytest.mark.parametrize("content", [None, [], [{"type": "image"}]])
def test_messages_without_text_score_zero(content):
    assert think_format([[{"role": "assistant", "content": content}]]) == [0.0]


N = 100_000


@pytest.mark.parametrize("options", [{}, {"answer_tags": False}, {"opened": True}], ids=repr)
@pytest.mark.parametrize(
    "text",
    [
        "x" * N,
        " " * N + "x",
        "<think>" * (N // 7),
        "</think>" * (N // 8),
        "<think>a</think>" * (N // 16),
        "<answer>" * (N // 8),
        "<think>a" + " </think>" * (N // 9),
    ],
    ids=lambda text: repr(text[:9]),
)
def test_long_completions_are_fast(options, text):
    start = time.process_time()
    assert think_format([text], **options) == [0.0]
    assert time.process_time() - start < 1.0


def test_long_thoughts_are_thoughts():
    text = "<think>" + "6 * 7 = 42. " * 10_000 + "</think>" + " " * N + "<answer>42</answer>"
    assert think_format([text]) == [1.0]


def test_runs_in_the_trainers_process():
    assert think_format.reward_settings.in_process and not think_format.reward_settings.batched


def test_takes_what_trl_passes():
    assert think_format(
        prompts=["a", "b"],
        completions=["<think>a</think><answer>b</answer>", "42"],
        completion_ids=[[1, 2], [1, 3]],
        answer=["42", "42"],
        trainer_state=None,
        log_extra=None,
        log_metric=None,
    ) == [1.0, 0.0]
