"""Advantages are compared with Python's statistics, TRL's formula, and groups done by hand."""

import itertools
import math
import random
import statistics

import numpy
import pytest
import torch
from torch import Tensor
from trl.trainer.utils import nanstd

from grpo_hf.algorithm.advantages import outcome_advantages, process_advantages
from grpo_hf.errors import ConfigError, RewardOutputError

NAN = float("nan")
SCALES = ("group", "batch", "none")


def random_rewards(groups: int, size: int, *, seed: int, unjudged: float = 0.2) -> Tensor:
    """Return (groups, size) rewards in float64: continuous ones, some rounded, some NaN."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(groups, size, generator=generator, dtype=torch.float64)
    rewards[::2] = rewards[::2].round()  # ties, and whole groups of one value
    return rewards.masked_fill(torch.rand(groups, size, generator=generator) < unjudged, NAN)


def oracle(groups: list[list[float]], scale: str, eps: float = 1e-4) -> list[list[float]]:
    """Return the advantages by the definition, in plain Python, one completion at a time.

    NaN stands for a completion that nobody could judge.
    """
    judged_groups = []
    for group in groups:
        judged_groups.append([reward for reward in group if not math.isnan(reward)])
    batch_std = statistics.stdev(itertools.chain.from_iterable(judged_groups))
    advantages = []
    for group, judged in zip(groups, judged_groups, strict=True):
        if len(set(judged)) < 2:
            advantages.append([0.0] * len(group))
            continue
        divisors = {"group": statistics.stdev(judged) + eps, "batch": batch_std + eps, "none": 1.0}
        mean = statistics.fmean(judged)
        of_group = []
        for reward in group:
            of_group.append(0.0 if math.isnan(reward) else (reward - mean) / divisors[scale])
        advantages.append(of_group)
    return advantages


def trl_advantages(rewards: Tensor, scale: str) -> Tensor:
    """Return TRL 1.16's advantages, with its own `nanstd`.

    This repeats "sum_then_normalize" in `_generate_and_score_completions`.
    """
    size = rewards.shape[1]
    flat = rewards.flatten()
    mean = torch.nanmean(rewards, dim=1).repeat_interleave(size)
    if scale == "group":
        std = nanstd(rewards, dim=1).repeat_interleave(size)
    else:
        std = nanstd(flat).expand_as(flat)
    advantages = flat - mean
    if scale != "none":
        advantages = advantages / (std + 1e-4)
    return torch.nan_to_num(advantages, nan=0.0).view_as(rewards)


def test_a_group_worked_out_by_hand():
    # mean 1/2, deviations ±1/2, std = sqrt(4 · 1/4 / 3) = 1/√3
    advantages = outcome_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64))
    expected = 0.5 / (1 / math.sqrt(3) + 1e-4)
    torch.testing.assert_close(
        advantages, torch.tensor([[1.0, -1.0, -1.0, 1.0]], dtype=torch.float64) * expected
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [2, 5, 8, 64])
def test_a_thousand_random_groups_equal_the_definition(scale: str, size: int):
    rewards = random_rewards(1000, size, seed=size)
    expected = torch.tensor(oracle(rewards.tolist(), scale), dtype=torch.float64)
    torch.testing.assert_close(
        outcome_advantages(rewards, scale=scale), expected, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_trl(scale: str, dtype: torch.dtype):
    rewards = random_rewards(200, 8, seed=1).to(dtype)
    torch.testing.assert_close(
        outcome_advantages(rewards, scale=scale), trl_advantages(rewards, scale)
    )


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
    """Equal rewards need a rule of their own, because 0.1 + 0.1 + 0.1 > 0.3 in binary."""
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
        (
            torch.zeros(2, 4, dtype=torch.int64),
            "group",
            r"torch\.int64; expected floating point.*rewards\.float\(\)",
        ),
        (
            torch.zeros(2, 4),
            "groups",
            r"'groups'; expected one of group, batch, none\. Did you mean 'group'\?",
        ),
    ],
)
def test_errors_say_what_came_and_what_was_expected(rewards: Tensor, scale: str, message: str):
    with pytest.raises(ConfigError, match=message):
        outcome_advantages(rewards, scale=scale)


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
def test_an_infinite_reward_is_an_error(infinite: float):
    with pytest.raises(
        RewardOutputError, match=f"completion 1 in group 2 is {infinite}; expected a finite number"
    ):
        outcome_advantages(torch.tensor([[0.0, 1.0], [NAN, 1.0], [0.0, infinite]]))


def process_oracle(rewards, ends, lengths, size):
    """Return the advantages as section 4.1.3 prints them, in float64.

    R, its mean and its deviation come first, then a sum over steps for every token.
    """
    advantages = numpy.zeros((len(lengths), max(lengths)))
    for first in range(0, len(lengths), size):
        steps = []
        for row in range(first, first + size):
            for end, reward in zip(ends[row], rewards[row], strict=True):
                if end < lengths[row]:
                    steps.append((row, end, reward))
        R = numpy.array([r for _, _, r in steps])
        if len(R) < 2 or (R[0] == R).all():
            continue
        for i, end, reward in steps:
            advantages[i, : end + 1] += (reward - R.mean()) / (R.std(ddof=1) + 1e-4)
    return torch.from_numpy(advantages)


def random_steps(chance, size):
    """Return outputs of two groups: some without steps, some cut off, some groups constant."""
    lengths = [chance.randint(1, 30) for _ in range(2 * size)]
    counts = [chance.randint(0, 6) for _ in lengths]
    ends = []
    for length, count in zip(lengths, counts, strict=True):
        ends.append(sorted(chance.choices(range(length + 3), k=count)))
    values = chance.choice([(0.5,), (0.0, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0), None])
    rewards = []
    for count in counts:
        if values:
            rewards.append([chance.choice(values) for _ in range(count)])
        else:
            rewards.append([chance.gauss(0, 1) for _ in range(count)])
    return rewards, ends, lengths


def test_process_advantages_are_the_paper_s():
    chance, compared = random.Random(0), 0
    for _ in range(1000):
        size = chance.randint(2, 8)
        rewards, ends, lengths = random_steps(chance, size)
        found = process_advantages(rewards, ends, lengths, size)
        torch.testing.assert_close(
            found, process_oracle(rewards, ends, lengths, size), rtol=1e-13, atol=1e-13
        )
        compared += int(found.any())
    assert compared > 600


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_one_step_an_output_is_outcome_supervision(scale):
    chance = random.Random(1)
    for _ in range(300):
        size = chance.randint(2, 8)
        lengths = [chance.randint(1, 9) for _ in range(3 * size)]
        rewards = [chance.choice([0.0, 1.0, chance.random()]) for _ in lengths]
        found = process_advantages(
            [[r] for r in rewards], [[n - 1] for n in lengths], lengths, size, scale=scale
        )
        outcome = outcome_advantages(
            torch.tensor(rewards, dtype=torch.float64).view(3, size), scale=scale
        ).flatten()
        written = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        assert torch.equal(found, outcome[:, None] * written)


def test_what_cannot_be_judged_is_no_part_of_a_group():
    nan = float("nan")
    found = process_advantages([[1.0, nan, 0.0], [nan]], [[0, 1, 2], [0]], [3, 2], 2)
    without = process_advantages([[1.0, 0.0], []], [[0, 2], []], [3, 2], 2)
    assert torch.equal(found, without)
    assert found[0, 0] == 0
    assert found[0, 1] < 0


def test_a_group_without_steps_has_no_advantage():
    assert not process_advantages([[], [], [1.0], [0.0]], [[], [], [5], [7]], [3, 2, 4, 4], 2).any()


@pytest.mark.parametrize(
    ("rewards", "ends", "lengths", "size"),
    [
        ([[1.0]], [[0], [1]], [1, 2], 2),
        ([[1.0], [0.0]], [[0], [1]], [2], 2),
        ([], [], [], 2),
        ([[1.0], [0.0]], [[0], [1]], [1, 2], 1),
        ([[1.0], [0.0], [1.0]], [[0], [0], [0]], [1, 2, 1], 2),
        ([[1.0, 2.0], [0.0]], [[0], [1]], [1, 2], 2),
        ([[1.0, 2.0], [0.0]], [[1, 0], [1]], [2, 2], 2),
        ([[1.0], [0.0]], [[-1], [1]], [2, 2], 2),
    ],
)
def test_steps_that_do_not_fit_are_refused(rewards, ends, lengths, size):
    with pytest.raises(ConfigError, match="expected"):
        process_advantages(rewards, ends, lengths, size)
    with pytest.raises(RewardOutputError):
        process_advantages([[float("inf")], [0.0]], [[0], [0]], [1, 1], 2)
