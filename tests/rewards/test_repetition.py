import random
import time

import pytest

from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards.repetition import repetition


def score(text, **options):
    [reward] = repetition([text], **options)
    return reward


def repeated_share(words, n):
    """Return the share as the paper describes it: the n-grams that occurred before."""
    ngrams = []
    repeated = 0
    for start in range(len(words) - n + 1):
        ngram = words[start : start + n]
        repeated += ngram in ngrams
        ngrams.append(ngram)
    return repeated / len(ngrams) if ngrams else 0.0


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("separator", [" ", "\n", " \t "])
def test_is_the_share_of_ngrams_that_occurred_before(n, separator):
    rng = random.Random(n)
    for _ in range(40):
        words = rng.choices(
            ["one", "two", "three", "vier", "пять"][: rng.randrange(1, 6)], k=rng.randrange(60)
        )
        expected = -0.5 * repeated_share(words, n)
        assert score(separator.join(words), n=n, max_penalty=0.5) == pytest.approx(expected)


@pytest.mark.parametrize("alphabet", ["中文字符", "ひらがな", "カタカナ", "กขคง"])
def test_characters_count_where_words_have_no_spaces(alphabet):
    rng = random.Random(0)
    for _ in range(40):
        text = "".join(rng.choices(alphabet, k=rng.randrange(40)))
        assert score(text, n=3) == pytest.approx(-repeated_share(text, 3))


def test_no_repetition_costs_nothing():
    assert str(score("the quick brown fox jumps over the lazy dog")) == "0.0"
    assert score("我们先计算总数然后除以二") == 0.0
    assert score("a b c d " * 2, max_penalty=0) == 0.0


@pytest.mark.parametrize("text", ["", " \n", "one", "one two three", "中文字", "\ud800", "\x00"])
def test_less_than_one_ngram_costs_nothing(text):
    assert score(text) == 0.0


def test_case_and_line_breaks_hide_nothing():
    assert score("I am sure.\nI AM SURE.", n=3) == score("i am sure. i am sure.", n=3) < 0


@pytest.mark.parametrize(
    "text", ["!" * 1000, "= " * 1000, "\U0001f600" * 1000, "so " * 1000, "中" * 1000]
)
def test_endless_text_loses_nearly_everything(text):
    assert -1.0 < score(text) < -0.99
    assert score(text, max_penalty=2.0) == 2 * score(text)


def test_messages_score_like_their_text():
    text = "I am sure. I am sure."
    assert repetition(
        [[{"role": "assistant", "content": text}], [{"role": "assistant", "content": None}]]
    ) == [
        score(text),
        0.0,
    ]


@pytest.mark.parametrize(
    "text",
    ["x " * 10_000, "中" * 10_000, " ".join(map(str, range(10_000)))],
    ids=["x", "中", "0 1"],
)
@pytest.mark.parametrize("n", [1, 4, 40])
def test_time_is_linear(text, n):
    start = time.process_time()
    score(text * 10, n=n)
    # Linear code needs about 0.1 s; comparing all pairs would need hours.
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
    "options",
    [
        {"n": 0},
        {"n": -1},
        {"n": 2.5},
        {"n": True},
        {"max_penalty": -1},
        {"max_penalty": float("inf")},
    ],
)
def test_impossible_options_say_what_came(options):
    [(name, value)] = options.items()
    with pytest.raises(RewardSpecError, match=f"repetition: {name} is {value!r}, an? .*; expected"):
        score("a b", **options)


def test_runs_in_the_trainers_process():
    assert repetition.reward_settings.in_process and not repetition.reward_settings.batched


def test_takes_what_trl_passes():
    assert repetition(
        prompts=["a", "b"],
        completions=["a a a", "a b c"],
        completion_ids=[[1, 2], [1, 3]],
        n=1,
        answer=["42", "42"],
        trainer_state=None,
        log_extra=None,
        log_metric=None,
    ) == pytest.approx([-2 / 3, 0.0])
