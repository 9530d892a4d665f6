"""Advantages against the standard library's statistics, TRL's formula, and groups worked out by hand."""

import math
import statistics

import pytest
import torch
from torch import Tensor
from trl.trainer.utils import nanstd

from grpo_hf.advantages import outcome_advantages
from grpo_hf.errors import ConfigError, RewardOutputError

NAN = float("nan")
SCALES = ("group", "batch", "none")


def random_rewards(groups: int, size: int, *, seed: int, unjudged: float = 0.2) -> Tensor:
    """(groups, size) rewards in float64: continuous, or of few values; a share of them NaN."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(groups, size, generator=generator, dtype=torch.float64)
    rewards[::2] = rewards[::2].round()  # ties, and whole groups of one value
    return rewards.masked_fill(torch.rand(groups, size, generator=generator) < unjudged, NAN)


def oracle(groups: list[list[float]], scale: str, eps: float = 1e-4) -> list[list[float]]:
    """The definition in plain Python, one completion at a time; NaN is a completion that nobody judged."""
    batch_std = statistics.stdev(reward for group in groups for reward in group if not math.isnan(reward))
    advantages = []
    for group in groups:
        judged = [reward for reward in group if not math.isnan(reward)]
        if len(set(judged)) < 2:
            advantages.append([0.0] * len(group))
            continue
        divisor = {"group": statistics.stdev(judged) + eps, "batch": batch_std + eps, "none": 1.0}[scale]
        mean = statistics.fmean(judged)
        advantages.append([0.0 if math.isnan(reward) else (reward - mean) / divisor for reward in group])
    return advantages


def trl_advantages(rewards: Tensor, scale: str) -> Tensor:
    """TRL 1.16's "sum_then_normalize" in `_generate_and_score_completions`, restated, with its own `nanstd`."""
    size = rewards.shape[1]
    flat = rewards.flatten()
    mean = torch.nanmean(rewards, dim=1).repeat_interleave(size)
    std = nanstd(rewards, dim=1).repeat_interleave(size) if scale == "group" else nanstd(flat).expand_as(flat)
    advantages = flat - mean if scale == "none" else (flat - mean) / (std + 1e-4)
    return torch.nan_to_num(advantages, nan=0.0).view_as(rewards)


def test_a_group_worked_out_by_hand():
    # mean 1/2, deviations ±1/2, std = sqrt(4 · 1/4 / 3) = 1/√3
    advantages = outcome_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64))
    expected = 0.5 / (1 / math.sqrt(3) + 1e-4)
    torch.testing.assert_close(advantages, torch.tensor([[1.0, -1.0, -1.0, 1.0]], dtype=torch.float64) * expected)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [2, 5, 8, 64])
def test_a_thousand_random_groups_equal_the_definition(scale: str, size: int):
    rewards = random_rewards(1000, size, seed=size)
    expected = torch.tensor(oracle(rewards.tolist(), scale), dtype=torch.float64)
    torch.testing.assert_close(outcome_advantages(rewards, scale=scale), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_trl(scale: str, dtype: torch.dtype):
    rewards = random_rewards(200, 8, seed=1).to(dtype)
    torch.testing.assert_close(outcome_advantages(rewards, scale=scale), trl_advantages(rewards, scale))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [3, 7, 64])
@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e6 + 0.1, 0.0])
def test_a_constant_group_is_exactly_zero(value: float, size: int, dtype: torch.dtype, scale: str):
    rewards = torch.full((3, size), value, dtype=dtype)
    rewards[1] = torch.arange(size)  # a group with signal, so that the batch has a std
    rewards[2, 0] = NAN
    advantages = outcome_advantages(rewards, scale=scale)
    assert advantages[[0, 2]].count_nonzero() == 0
    assert advantages[1].count_nonzero() >= size - 1


def test_the_formula_alone_leaves_a_constant_group_off_zero():
    """Why equal rewards need a rule of their own: 0.1 + 0.1 + 0.1 > 0.3 in binary."""
    assert trl_advantages(torch.full((1, 3), 0.1, dtype=torch.float64), "none").count_nonzero() == 3


def test_a_batch_of_constant_groups_is_exactly_zero():
    rewards = torch.full((4, 3), 0.1, dtype=torch.float64)
    for scale in SCALES:
        assert outcome_advantages(rewards, scale=scale, eps=0.0).count_nonzero() == 0


@pytest.mark.parametrize("scale", ["group", "none"])
def test_an_unjudged_completion_leaves_the_others_as_if_it_were_not_there(scale: str):
    advantages = outcome_advantages(torch.tensor([[2.0, NAN, 5.0, 3.0, NAN]]), scale=scale)
    without = outcome_advantages(torch.tensor([[2.0, 5.0, 3.0]]), scale=scale)
    torch.testing.assert_close(advantages[:, [0, 2, 3]], without)
    assert advantages[0, [1, 4]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", SCALES)
def test_fewer_than_two_judged_completions_have_advantage_zero(scale: str):
    rewards = torch.tensor([[NAN, NAN, NAN], [NAN, 7.0, NAN], [1.0, 2.0, NAN]])
    advantages = outcome_advantages(rewards, scale=scale)
    assert advantages[:2].count_nonzero() == 0
    assert advantages[2].count_nonzero() == 2
    assert outcome_advantages(rewards[:1], scale=scale).count_nonzero() == 0


def test_keeps_dtype_and_input():
    rewards = random_rewards(4, 8, seed=2).float()
    before = rewards.clone()
    assert outcome_advantages(rewards).dtype == torch.float32
    torch.testing.assert_close(rewards, before, rtol=0, atol=0, equal_nan=True)


def test_eps_is_added_to_the_std():
    rewards = torch.tensor([[0.0, 2.0]], dtype=torch.float64)  # std √2
    expected = 1 / (math.sqrt(2) + 0.5)
    assert outcome_advantages(rewards, eps=0.5)[0].tolist() == pytest.approx([-expected, expected])


@pytest.mark.parametrize(
    ("rewards", "scale", "message"),
    [
        (torch.zeros(8), "group", r"shape \(8,\); expected \(N, G\).*rewards\.view\(-1, G\)"),
        (torch.zeros(2, 2, 2), "group", r"shape \(2, 2, 2\); expected \(N, G\)"),
        (torch.zeros(8, 1), "group", r"G = 1; expected G of at least 2.*Sample more completions"),
        (torch.zeros(2, 4, dtype=torch.int64), "group", r"torch\.int64; expected floating point.*rewards\.float\(\)"),
        (torch.zeros(2, 4), "groups", r"'groups'; expected one of group, batch, none\. Did you mean 'group'\?"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(rewards: Tensor, scale: str, message: str):
    with pytest.raises(ConfigError, match=message):
        outcome_advantages(rewards, scale=scale)


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
def test_an_infinite_reward_is_an_error(infinite: float):
    with pytest.raises(RewardOutputError, match=f"completion 1 in group 2 is {infinite}; expected a finite number"):
        outcome_advantages(torch.tensor([[0.0, 1.0], [NAN, 1.0], [0.0, infinite]]))
