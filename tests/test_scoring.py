"""Rewards as the trainer calls them: every answer is a list of floats and None, or an error that names the reward."""

import asyncio
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl.trainer.utils import get_callable_name, is_async_callable

from grpo_hf.errors import RewardNotFound, RewardOutputError
from grpo_hf.plugins import load_reward
from grpo_hf.scoring import CheckedReward, checked_rewards, checked_values, score

NAN, INF = float("nan"), float("inf")
LARGEST_FLOAT32 = torch.finfo(torch.float32).max


def vowels(completions, *, scale=1.0, **columns):
    return [scale * sum(text.count(letter) for letter in "aeiou") for text in completions]


async def awaited_vowels(completions, **columns):
    await asyncio.sleep(0)
    return [float(len(text)) if text else None for text in completions]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ([1, 0.5, -2], [1.0, 0.5, -2.0]),
        ((1, 2), [1.0, 2.0]),
        (range(3), [0.0, 1.0, 2.0]),
        ([True, False], [1.0, 0.0]),
        ([None, 1.0], [None, 1.0]),
        ([NAN, 1.0], [None, 1.0]),
        ([Fraction(1, 4), Fraction(-3)], [0.25, -3.0]),
        ([Decimal("0.25")], [0.25]),
        ([np.bool_(True), np.float32(0.5), np.int64(3), np.array(2.0)], [1.0, 0.5, 3.0, 2.0]),
        ([np.float32(NAN)], [None]),
        (np.array([0.5, NAN]), [0.5, None]),
        (np.array([True, False]), [1.0, 0.0]),
        (np.array([None, 1.0], dtype=object), [None, 1.0]),
        (torch.tensor([0.5, NAN]), [0.5, None]),
        (torch.tensor([1, 2], dtype=torch.int64), [1.0, 2.0]),
        (torch.tensor([0.5, 0.25], dtype=torch.bfloat16), [0.5, 0.25]),
        (torch.tensor([0.5, 0.25], requires_grad=True), [0.5, 0.25]),
        (torch.tensor([True, False]), [1.0, 0.0]),
        ([torch.tensor(0.5), torch.tensor(True), torch.tensor(NAN)], [0.5, 1.0, None]),
        ([LARGEST_FLOAT32], [LARGEST_FLOAT32]),
        ([], []),
    ],
    ids=repr,
)
def test_numbers_of_every_kind_have_a_defined_value(returned: Any, expected: list[float | None]):
    values = checked_values("demo", returned, len(expected))
    assert values == expected
    assert all(value is None or type(value) is float for value in values)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0] * 3, "returned 3 values for 2 completions"),
        (torch.ones(3), "returned 3 values for 2 completions"),
        ([], "returned 0 values for 2 completions"),
        (None, "returned NoneType"),
        (0.5, "returned float"),
        (np.float64(0.5), "returned float"),
        (torch.tensor(0.5), "returned float"),
        ("11", "returned str"),
        (b"11", "returned bytes"),
        ({0: 1.0, 1: 0.0}, "returned dict"),
        ({0.0, 1.0}, "returned set"),
        ((value for value in (1.0, 0.0)), "returned generator"),
        (map(float, (1, 0)), "returned map"),
        (["1", "0"], "returned '1' (str) for completion 0"),
        ([1.0, [0.5]], "returned [0.5] (list) for completion 1"),
        ([1.0, {"score": 1}], "returned {'score': 1} (dict) for completion 1"),
        ([1.0, 1j], "returned 1j (complex) for completion 1"),
        ([1.0, np.str_("a")], "returned 'a' (str) for completion 1"),
        (torch.ones(2, 1), "returned [1.0] (list) for completion 0"),
        (np.ones((2, 2)), "returned [1.0, 1.0] (list) for completion 0"),
        ([1.0, torch.ones(2)], "(Tensor) for completion 1"),
        ([1.0, torch.ones(1)], "(Tensor) for completion 1"),
        ([1.0, INF], "returned inf for completion 1"),
        ([-INF, 0.0], "returned -inf for completion 0"),
        ([1.0, np.float32(INF)], "returned inf for completion 1"),
        ([1.0, 1e39], "returned 1e+39 for completion 1"),
        ([1.0, 10**400], "for completion 1"),
        ([1.0, Fraction(-(10**400))], "for completion 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_is_an_error_that_names_the_reward(returned: Any, said: str):
    with pytest.raises(RewardOutputError) as caught:
        checked_values("my_reward", returned, 2)
    message = str(caught.value)
    assert message.startswith("reward 'my_reward' returned ")
    assert said in message
    assert len(message) < 400


def test_what_passes_is_finite_in_the_trainer_s_float32():
    # TRL 1.16 puts rewards into a float32 tensor, where 1e39 would become infinite without a word.
    assert math.isinf(torch.tensor(1e39, dtype=torch.float32))
    assert torch.tensor(checked_values("demo", [LARGEST_FLOAT32], 1), dtype=torch.float32).isfinite().all()


def test_a_reward_is_called_with_its_columns_and_checked():
    (reward,) = checked_rewards(vowels)
    assert reward(prompts=["?", "?"], completions=["aeb", "b"], completion_ids=[[1], [2]], answer=[1, 2]) == [2.0, 0.0]
    (wrong,) = checked_rewards(lambda completions, **columns: [0.0])
    with pytest.raises(RewardOutputError, match=r"<lambda>.*returned 1 values for 2 completions"):
        wrong(prompts=["?", "?"], completions=["a", "b"], completion_ids=[[1], [2]])


def test_an_async_reward_is_awaited_and_checked():
    async def broken(completions, **columns):
        return INF

    reward, wrong = checked_rewards([awaited_vowels, broken])
    arguments = {"prompts": ["?"] * 2, "completions": ["abc", ""], "completion_ids": [[1], []]}
    assert asyncio.run(reward(**arguments)) == [3.0, None]
    with pytest.raises(RewardOutputError, match="'broken' returned float"):
        asyncio.run(wrong(**arguments))


def test_trl_sees_the_reward_s_own_name_and_kind():
    rewards = checked_rewards([vowels, awaited_vowels, "gsm8k", "overlong(cache=4)"])
    assert [get_callable_name(reward) for reward in rewards] == ["vowels", "awaited_vowels", "gsm8k", "overlong"]
    assert [is_async_callable(reward) for reward in rewards] == [False, True, False, False]


def test_the_caller_s_list_is_left_alone():
    given = [vowels, "gsm8k"]
    checked_rewards(given)
    assert given == [vowels, "gsm8k"]
    assert checked_rewards(None) is None
    assert checked_rewards([]) == []


def test_reward_models_pass_through(tmp_path: Path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for model in (torch.nn.Linear(2, 1), "org/reward-model_v1.5", str(tmp_path / "model"), "model", "./model"):
        assert checked_rewards(model) == [model]


def test_a_reward_s_name_is_not_taken_for_a_folder_of_the_same_name(tmp_path: Path, monkeypatch):
    (tmp_path / "gsm8k").mkdir()  # GSM8K's own data, say
    monkeypatch.chdir(tmp_path)
    (reward,) = checked_rewards("gsm8k")
    assert get_callable_name(reward) == "gsm8k"


def test_files_and_long_options_are_not_taken_for_models(tmp_path: Path, monkeypatch):
    (tmp_path / "mine.py").write_text("def fixed(completions, *, text='', **columns):\n    return [len(text)]\n")
    monkeypatch.chdir(tmp_path)
    for spec in ("./mine.py:fixed", "mine.py:fixed", f"mine.py:fixed(text={'x' * 5000!r})"):
        (reward,) = checked_rewards(spec)
        assert get_callable_name(reward) == "fixed"
    with pytest.raises(RewardNotFound, match=r"other\.py"):
        checked_rewards("./other.py:fixed")


@pytest.mark.parametrize("is_async", [False, True])
def test_an_exception_says_whose_it_is(is_async: bool):
    def broken(completions):
        raise KeyError("x")

    async def broken_later(completions):
        raise KeyError("x")

    reward = CheckedReward.of(load_reward(broken_later if is_async else broken))
    with pytest.raises(KeyError) as caught:
        score(reward, completions=["a"])
    assert caught.value.__notes__ == [f"This was raised by the reward {reward.__name__!r}."]
