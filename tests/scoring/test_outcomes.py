"""What a reward returns, as outcomes: numbers of every kind, and a reason for everything else."""

import asyncio
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from grpo_hf.errors import RewardSpecError
from grpo_hf.scoring.outcomes import call, call_async, outcomes_of, replay
from grpo_hf.scoring.registry import load_reward

NAN, INF = float("nan"), float("inf")
LARGEST_FLOAT32 = torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ([1, 0.5, -2], [1.0, 0.5, -2.0]),
        ((1, 2), [1.0, 2.0]),
        (range(3), [0.0, 1.0, 2.0]),
        ([True, False], [1.0, 0.0]),
        ([None, 1.0], [None, 1.0]),
        ([Fraction(1, 4), Fraction(-3)], [0.25, -3.0]),
        ([Decimal("0.25")], [0.25]),
        ([np.bool_(True), np.float32(0.5), np.int64(3), np.array(2.0)], [1.0, 0.5, 3.0, 2.0]),
        (np.array([0.5, 2.0]), [0.5, 2.0]),
        (np.array([True, False]), [1.0, 0.0]),
        (np.array([None, 1.0], dtype=object), [None, 1.0]),
        (torch.tensor([0.5, 2.0]), [0.5, 2.0]),
        (torch.tensor([1, 2], dtype=torch.int64), [1.0, 2.0]),
        (torch.tensor([0.5, 0.25], dtype=torch.bfloat16), [0.5, 0.25]),
        (torch.tensor([0.5, 0.25], requires_grad=True), [0.5, 0.25]),
        (torch.tensor([True, False]), [1.0, 0.0]),
        ([torch.tensor(0.5), torch.tensor(True)], [0.5, 1.0]),
        ([LARGEST_FLOAT32], [LARGEST_FLOAT32]),
        ([], []),
    ],
    ids=repr,
)
def test_numbers_of_every_kind_have_a_defined_value(returned: Any, expected: list[float | None]):
    outcomes = outcomes_of(returned, len(expected))
    values = [outcome.value for outcome in outcomes]
    assert values == expected
    assert not any(outcome.failure for outcome in outcomes)
    assert all(value is None or type(value) is float for value in values)


@pytest.mark.parametrize(
    ("returned", "reason", "at"),
    [
        ([1.0], "wrong length", 0),
        ([1.0] * 3, "wrong length", 0),
        (torch.ones(3), "wrong length", 0),
        ([], "wrong length", 0),
        (None, "wrong type", 0),
        (0.5, "wrong type", 0),
        (np.float64(0.5), "wrong type", 0),
        (torch.tensor(0.5), "wrong type", 0),
        ("11", "wrong type", 0),
        (b"11", "wrong type", 0),
        ({0: 1.0, 1: 0.0}, "wrong type", 0),
        ({0.0, 1.0}, "wrong type", 0),
        (["1", "0"], "wrong type", 0),
        ([1.0, [0.5]], "wrong type", 1),
        ([1.0, {"score": 1}], "wrong type", 1),
        ([1.0, 1j], "wrong type", 1),
        ([1.0, np.str_("a")], "wrong type", 1),
        (np.ones((2, 2)), "wrong type", 0),
        ([1.0, torch.ones(2)], "wrong type", 1),
        ([1.0, INF], "not finite", 1),
        ([-INF, 0.0], "not finite", 0),
        ([1.0, np.float32(INF)], "not finite", 1),
        ([1.0, 1e39], "not finite", 1),
        ([1.0, 10**400], "not finite", 1),
        ([1.0, Fraction(-(10**400))], "not finite", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_else_is_a_failure_with_its_reason(returned: Any, reason: str, at: int):
    outcomes = outcomes_of(returned, 2)
    assert len(outcomes) == 2
    assert all(outcome.value is None for outcome in outcomes if outcome.failure)
    assert outcomes[at].failure.reason == reason
    assert len(outcomes[at].failure.detail) < 200
    if isinstance(returned, list) and len(returned) == 2 and isinstance(returned[1 - at], float):
        assert outcomes[1 - at].failure is None or math.isinf(
            returned[1 - at]
        )  # one entry's fault is its own


def test_what_passes_is_finite_in_the_trainer_s_float32():
    # TRL 1.16 puts rewards into a float32 tensor, where 1e39 would become infinite without a word.
    assert math.isinf(torch.tensor(1e39, dtype=torch.float32))
    (outcome,) = outcomes_of([LARGEST_FLOAT32], 1)
    assert torch.tensor(outcome.value, dtype=torch.float32).isfinite()


def test_an_exception_is_kept_with_its_traceback():
    def broken(completions):
        raise KeyError("x")

    (outcome,) = call(load_reward(broken), {"completions": ["a"]}, 1)
    assert outcome.failure.reason == "exception"
    assert "in broken" in outcome.failure.detail and outcome.failure.summary == "KeyError: 'x'"


def test_a_wrong_setting_is_a_reason_of_its_own():
    def unset(completions):
        raise RewardSpecError("unset: give it a model.")

    (outcome,) = call(load_reward(unset), {"completions": ["a"]}, 1)
    assert (outcome.failure.reason, outcome.failure.detail) == (
        "settings",
        "unset: give it a model.",
    )


def test_a_call_that_exits_is_a_failure_and_one_out_of_memory_is_for_the_caller():
    def leaves(completions):
        raise SystemExit(3)

    def swells(completions):
        raise MemoryError

    assert call(load_reward(leaves), {"completions": ["a"]}, 1)[0].failure.reason == "exception"
    with pytest.raises(MemoryError):
        call(load_reward(swells), {"completions": ["a"]}, 1)


def test_async_rewards_run_together_and_a_late_one_is_late_alone():
    under_way = most = 0

    async def waits(completions):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(30 if completions == ["slow"] else 0.02)
        under_way -= 1
        return [float(len(completions[0]))]

    samples = [{"completions": [text]} for text in ("a", "bb", "slow", "dddd", "eeeee")]
    outcomes = asyncio.run(call_async(load_reward(waits), samples, timeout=0.3, concurrency=3))
    assert [outcome.value for outcome in outcomes] == [1.0, 2.0, None, 4.0, 5.0]
    assert outcomes[2].failure.reason == "timeout" and most == 3


def test_a_time_out_inside_a_reward_is_its_own_exception():
    async def impatient(completions):
        await asyncio.wait_for(asyncio.sleep(1), 0.01)

    (outcome,) = asyncio.run(
        call_async(load_reward(impatient), [{"completions": ["a"]}], timeout=5, concurrency=1)
    )
    assert outcome.failure.reason == "exception"


def test_what_is_logged_completion_by_completion_is_logged_as_trl_wants_it():
    def talks(completions, log_extra, log_metric):
        log_extra("length", [len(text) for text in completions])
        log_metric("mean", len(completions[0]))
        return [1.0]

    outcomes = [call(load_reward(talks), {"completions": [text]}, 1)[0] for text in ("a", "bbb")]
    columns, metrics = {}, {}
    replay(outcomes, columns.__setitem__, metrics.__setitem__)
    assert (columns, metrics) == ({"length": [1, 3]}, {"mean": 2.0})
