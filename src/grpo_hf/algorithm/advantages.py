"""From rewards to advantages.

With group-relative advantages (`outcome_advantages`, `process_advantages`), each completion or step
is compared with the others of its group. With generalised advantage estimation (`gae`), each token
is compared with what a critic expected.

N groups, G completions each, B = N·G, at most T tokens. A reward of NaN stands for None: the
completion or step could not be judged.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, RewardOutputError, did_you_mean

SCALES = ("group", "batch", "none")
# A sample standard deviation divides by n − 1, and a group of one has nothing to compare with.
_SMALLEST_GROUP = 2


def outcome_advantages(rewards: Tensor, *, scale: str = "group", eps: float = 1e-4) -> Tensor:
    """Return the group-relative advantage of every completion under outcome supervision.

        Â_i = r̃_i = (r_i − mean(r)) / (std(r) + eps)

    All tokens of a completion have this advantage. mean is the mean of the completion's own group.
    std is the sample standard deviation (n−1). Both see judged completions only. The advantage is
    exactly 0

    - where the reward is NaN: a completion that nobody could judge moves neither the policy nor
      the baseline;
    - in a group with fewer than two judged completions: there is nothing to compare with;
    - in a group whose judged rewards are all equal, even if rounding makes their mean differ from
      them.

    Args:
        rewards (N, G): floating point, finite or NaN.
        scale: the rewards whose std divides. `"group"`: the completion's group (the paper);
            `"batch"`: all N·G rewards; `"none"`: no division, Â_i = r_i − mean(r) (Dr. GRPO,
            arXiv 2503.20783).
        eps: keeps a group of nearly equal rewards from dividing by nearly 0. It has the unit of
            the reward; the default is TRL 1.16's.

    Returns:
        (N, G), in the dtype and on the device of `rewards`.

    Raises:
        ConfigError: `rewards` is not a floating-point (N, G) tensor with G ≥ 2, or `scale` is
            unknown.
        RewardOutputError: a reward is infinite.

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.2.

    >>> nan = float("nan")
    >>> rewards = [[1.0, 0.0, 0.0, 1.0], [3.0, nan, 1.0, 2.0], [0.1, 0.1, 0.1, 0.1]]
    >>> outcome_advantages(torch.tensor(rewards))
    tensor([[ 0.8659, -0.8659, -0.8659,  0.8659],
            [ 0.9999,  0.0000, -0.9999,  0.0000],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    _check(rewards, scale)
    judged = ~rewards.isnan()  # (N, G)
    # Equal rewards are found by comparison, not by an advantage of 0: in binary, the mean of
    # 0.1, 0.1 and 0.1 is not 0.1.
    lowest = rewards.masked_fill(~judged, torch.inf).amin(dim=1, keepdim=True)  # (N, 1)
    highest = rewards.masked_fill(~judged, -torch.inf).amax(dim=1, keepdim=True)  # (N, 1)
    # This is never true with fewer than two judged completions.
    comparable = judged & (lowest < highest)  # (N, G)

    advantages = rewards - rewards.nanmean(dim=1, keepdim=True)
    if scale != "none":
        population = rewards if scale == "group" else rewards.reshape(1, -1)
        advantages = advantages / (_sample_std(population) + eps)
    return advantages.where(comparable, 0.0)


def process_advantages(
    step_rewards: Sequence[Sequence[float]],
    step_ends: Sequence[Sequence[int]],
    lengths: Sequence[int],
    num_generations: int,
    *,
    scale: str = "group",
    eps: float = 1e-4,
) -> Tensor:
    """Return the group-relative advantage of every token under process supervision.

        r̃_ij = (r_ij − mean(R)) / (std(R) + eps)
        Â_it = Σ r̃_ij over the steps j of output i that end at token t or later

    R holds the rewards of all steps of all outputs of the group. mean, std, and the rules for NaN
    and for equal rewards are the same as in `outcome_advantages`. With one step at the end of each
    output this is outcome supervision to the last bit.

    - An output without steps has advantage 0 and no part in R.
    - A step that ends after the last token of its output was cut off. It has no part in R either.
    - Tokens that the policy did not write (a tool's) get an advantage by their position, like any
      other token; the loss masks them.

    Args:
        step_rewards: the rewards of the steps of each of the B outputs. The outputs of a group
            stand side by side.
        step_ends: for each step, the index of the token that ends it, counted from 0. The indices
            of an output are ascending; several steps may end at one token.
        lengths (B): tokens of each output.
        num_generations: G.
        scale, eps: as in `outcome_advantages`.

    Returns:
        (B, T) in float64. T is the greatest length; positions after an output's end are 0.

    Raises:
        ConfigError: the lists do not fit each other, or B is no multiple of G.
        RewardOutputError: a reward is infinite.

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.3.

    >>> process_advantages([[1.0, 0.0], [1.0]], [[1, 3], [2]], [4, 3], num_generations=2)
    tensor([[-0.5773, -0.5773, -1.1545, -1.1545],
            [ 0.5773,  0.5773,  0.5773,  0.0000]], dtype=torch.float64)
    """
    _check_steps(step_rewards, step_ends, lengths, num_generations)
    groups = _steps_by_group(step_rewards, step_ends, lengths, num_generations)
    normalised = outcome_advantages(_padded_rewards(groups), scale=scale, eps=eps)
    at_ends = torch.zeros(len(lengths), max(lengths), dtype=torch.float64)  # (B, T)
    for steps, advantages in zip(groups, normalised.tolist(), strict=True):
        # Not strict: the advantages go on with the padding of the group's row.
        for step, advantage in zip(steps, advantages, strict=False):
            # Several steps may end at one token.
            at_ends[step.row, step.end] += advantage
    # The sum from each token to the end of its row.
    return at_ends.flip(1).cumsum(1).flip(1)


class _Step(NamedTuple):
    """One step of output `row`, with the index of the token that ends it."""

    row: int
    end: int
    reward: float


def _steps_by_group(
    step_rewards: Sequence[Sequence[float]],
    step_ends: Sequence[Sequence[int]],
    lengths: Sequence[int],
    num_generations: int,
) -> list[list[_Step]]:
    """Return the steps of each group, without those that were cut off."""
    groups: list[list[_Step]] = []
    for row, length in enumerate(lengths):
        if row % num_generations == 0:
            groups.append([])
        for end, reward in zip(step_ends[row], step_rewards[row], strict=True):
            if end < length:
                groups[-1].append(_Step(row, end, reward))
    return groups


def _padded_rewards(groups: list[list[_Step]]) -> Tensor:
    """Return the rewards of each group's steps, (N, most steps of a group), padded with NaN."""
    # A group may have one step or none; `outcome_advantages` wants rows of at least two rewards.
    most = max(_SMALLEST_GROUP, *map(len, groups))
    population = torch.full((len(groups), most), torch.nan, dtype=torch.float64)
    for index, steps in enumerate(groups):
        rewards = [step.reward for step in steps]
        population[index, : len(steps)] = torch.tensor(rewards, dtype=torch.float64)
    return population


def gae(
    values: Tensor, rewards: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> Tensor:
    """Return the generalised advantage estimate of every token, from a critic's values.

        Â_t = Σ_{l ≥ 0} (γλ)^l δ_{t+l},   δ_t = r_t + γ V_{t+1} − V_t,   V = 0 after the last token

    The next token is the next one that counts: tokens that the policy did not write (a tool's) are
    passed over.

    Args:
        values (B, T): V_t, the reward that the critic expects before token t is written.
        rewards (B, T): r_t, the reward that token t earned.
        mask (B, T): 1 for the tokens that count.
        gamma, lam: γ and λ.

    Returns:
        (B, T), 0 where the mask is 0; λ-returns are these advantages + `values`.

    Source: Schulman et al. (arXiv 1506.02438), equation 16, of a finite episode.

    >>> values = torch.tensor([[0.5, 0.25]])
    >>> gae(values, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2), gamma=1.0, lam=1.0)
    tensor([[0.5000, 0.7500]])
    """
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])  # (B,)
    next_advantage = torch.zeros_like(values[:, 0])  # (B,)
    # Backwards, because Â_t = δ_t + γλ Â_{t+1}: one pass instead of a sum for each token.
    for token in reversed(range(values.shape[1])):
        counts = mask[:, token].bool()
        delta = rewards[:, token] + gamma * next_value - values[:, token]
        # Where a token does not count, both keep the numbers of the token after it.
        next_advantage = torch.where(counts, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(counts, values[:, token], next_value)
        advantages[:, token] = next_advantage.where(counts, 0.0)
    return advantages


def weighted_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of each completion's rewards; NaN where none of them judges.

    Args:
        rewards (B, F): a column per reward, NaN for None.
        weights (F,): of the rewards.

    Returns:
        (B,), in the dtype of `rewards`.
    """
    total = (rewards * weights.to(rewards)).nansum(1)
    return total.masked_fill(rewards.isnan().all(1), torch.nan)


def _sample_std(rewards: Tensor) -> Tensor:
    """Return the sample standard deviation (n−1) of each row, (rows, n) -> (rows, 1).

    Values that are NaN are left out.
    """
    # torch.std does not leave out NaN. A row with one value gives 0/0, which is NaN; `comparable`
    # sets its advantages to 0.
    deviations = rewards - rewards.nanmean(dim=1, keepdim=True)
    count = (~rewards.isnan()).sum(dim=1, keepdim=True)
    return (deviations.square().nansum(dim=1, keepdim=True) / (count - 1)).sqrt()


def _check(rewards: Tensor, scale: str) -> None:
    if scale not in SCALES:
        raise ConfigError(
            f"scale is {scale!r}; expected one of {', '.join(SCALES)}.{did_you_mean(scale, SCALES)}"
        )
    if rewards.dim() != 2:
        raise ConfigError(
            f"rewards have shape {tuple(rewards.shape)}; expected (N, G), a row per group. Rewards "
            "in the order of the completions become that with rewards.view(-1, G)."
        )
    if rewards.shape[1] < _SMALLEST_GROUP:
        raise ConfigError(
            f"rewards have shape {tuple(rewards.shape)}, G = {rewards.shape[1]}; expected G of at "
            f"least {_SMALLEST_GROUP}, because an advantage compares a completion with the others "
            "of its group. Sample more completions per prompt."
        )
    if not rewards.is_floating_point():
        raise ConfigError(
            f"rewards are {rewards.dtype}; expected floating point, where NaN can stand for a "
            "completion that could not be judged. Convert them with rewards.float()."
        )
    if rewards.isinf().any():
        group, index = rewards.isinf().nonzero()[0].tolist()
        raise RewardOutputError(
            f"the reward of completion {index} in group {group} is {rewards[group, index].item()}; "
            "expected a finite number, or NaN where it could not be judged: an infinite one leaves "
            "its group no mean. Clip it."
        )


def _check_steps(
    step_rewards: Sequence[Sequence[float]],
    step_ends: Sequence[Sequence[int]],
    lengths: Sequence[int],
    num_generations: int,
) -> None:
    outputs = len(lengths)
    if not outputs or len(step_rewards) != outputs or len(step_ends) != outputs:
        raise ConfigError(
            f"{len(step_rewards)} lists of step rewards, {len(step_ends)} of step ends and "
            f"{outputs} lengths; expected one of each for every output."
        )
    if num_generations < _SMALLEST_GROUP or outputs % num_generations:
        raise ConfigError(
            f"{outputs} outputs, num_generations {num_generations}; expected whole groups of at "
            f"least {_SMALLEST_GROUP}."
        )
    for index, (rewards, ends) in enumerate(zip(step_rewards, step_ends, strict=True)):
        ascending = list(ends) == sorted(ends) and min(ends, default=0) >= 0
        if len(rewards) != len(ends) or not ascending:
            raise ConfigError(
                f"output {index} has {len(rewards)} step rewards and the step ends {list(ends)}; "
                "expected one reward for each end, and indices of tokens, ascending from 0."
            )
