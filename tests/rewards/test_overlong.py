import pytest

from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards.overlong import overlong


def score(length, **options):
    [reward] = overlong(["text"], [[7] * length], **options)
    return reward


def dapo_equation_13(length, max_length, cache):
    """Return the reward case by case, as the paper prints it."""
    if length <= max_length - cache:
        return 0.0
    if length <= max_length:
        return ((max_length - cache) - length) / cache
    return -1.0


@pytest.mark.parametrize(("max_length", "cache"), [(512, 128), (20, 10), (7, 3), (5, 5), (1, 1)])
def test_is_the_papers_equation(max_length, cache):
    for length in range(2 * max_length + 3):
        expected = dapo_equation_13(length, max_length, cache)
        assert score(length, max_length=max_length, cache=cache) == expected


def test_the_corners_in_the_papers_own_setting():
    # DAPO: 16,384 expected tokens and a cache of 4,096.
    lengths = [0, 16_384, 16_385, 18_432, 20_480, 20_481, 30_000]
    rewards = [score(length, max_length=20_480, cache=4_096) for length in lengths]
    assert rewards == [0.0, 0.0, -1 / 4096, -0.5, -1.0, -1.0, -1.0]


def test_defaults():
    assert [score(384), score(448), score(512), score(513)] == [0.0, -0.5, -1.0, -1.0]


@pytest.mark.parametrize(
    "options", [{"cache": 0}, {"cache": -1}, {"cache": 513}, {"max_length": 127}, {"max_length": 0}]
)
def test_impossible_options_say_what_came(options):
    expected = "expected a whole number, 1 or more|expected at most max_length, which is"
    with pytest.raises(RewardSpecError, match=f"overlong: .* is .*; ({expected})"):
        score(10, **options)


def test_reads_tokens_not_text():
    message = [{"role": "assistant", "content": "x" * 999}]
    assert overlong(["x" * 999, message], [[1], [1] * 20], max_length=20, cache=10) == [0.0, -1.0]


def test_takes_what_trl_passes():
    assert overlong(
        prompts=["a", "b"],
        completions=["#### 42", "42"],
        completion_ids=[[1] * 100, [1] * 600],
        answer=["42", "42"],
        extra_column=[0, 1],
        trainer_state=None,
        log_extra=None,
        log_metric=None,
    ) == [0.0, -1.0]
