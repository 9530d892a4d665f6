"""Settings of a reward: how long a run waits for it, and its own check of its options."""

import time
from typing import Any

import pytest

from grpo_hf import reward_settings
from grpo_hf.errors import RewardSpecError
from grpo_hf.scoring.run_rewards import isolate, scored_rewards
from grpo_hf.scoring.signature import checked_reward


@pytest.mark.parametrize(
    ("declared", "own_default", "given", "run_timeout", "limit"),
    [
        # No option of its own: what the recipe says, what the function says, what the run says.
        (None, None, None, 10, 10),
        (60, None, None, 10, 60),
        (60, None, 7, 10, 7),
        # An option of its own: the run waits for it, and longer.
        (None, 3, None, 10, 10),
        (None, 3, 30, 10, 35),
        (None, 30, None, 10, 35),
        (60, 5, None, 10, 60),
        (60, 5, 300, 10, 355),
        (60, 5, 1, 10, 56),
        (60, 58, 100, 10, 105),
        # Neither None nor a text is a number of seconds.
        (60, 5, "soon", 10, 60),
        (None, 3, "soon", 10, 10),
    ],
)
def test_the_limit_of_a_run_stays_behind_a_timeout_of_the_reward(
    declared: float | None, own_default: float | None, given: Any, run_timeout: float, limit: float
):
    if own_default is None:

        def reward(completions, **columns):
            return [0.0 for _ in completions]
    else:

        def reward(completions, *, timeout=own_default, **columns):
            return [0.0 for _ in completions]

    function = reward_settings(timeout=declared)(reward)
    options = {} if given is None else {"timeout": given}
    checked = checked_reward(function, "patient", "patient", options, "here")
    assert checked.time_limit(run_timeout) == limit


@pytest.mark.long
def test_a_process_waits_as_long_as_the_reward_s_own_timeout_says():
    @reward_settings(timeout=0.3)
    def patient(completions, *, timeout=0.1, **columns):
        time.sleep(timeout)
        return [timeout for _ in completions]

    (entry,) = scored_rewards(checked_reward(patient, "patient", "patient", {"timeout": 0.6}, ""))
    process = isolate([entry], workers=1, timeout=0.2)
    try:
        assert entry(completions=["a"]) == [0.6]
    finally:
        process.close()


def test_options_are_checked_before_a_row_is_scored():
    def check(*, depth):
        if depth > 3:
            raise RewardSpecError("depth is too large")

    @reward_settings(check=check)
    def deep(completions, *, depth=1, **columns):
        raise AssertionError("never called")

    scored_rewards(deep)
    with pytest.raises(RewardSpecError, match="depth is too large"):
        scored_rewards(checked_reward(deep, "deep", "deep", {"depth": 4}, "here"))
