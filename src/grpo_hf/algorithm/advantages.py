"""From rewards to advantages: each completion, or each step, against those of its group; for PPO, against a critic.

N groups, G completions each, B = N·G, at most T tokens. A reward of NaN stands for None: it could not be judged.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError, RewardOutputError, did_you_mean

SCALES = ("group", "batch", "none")


def outcome_advantages(rewards: Tensor, *, scale: str = "group", eps: float = 1e-4) -> Tensor:
    """The group-relative advantage of every completion under outcome supervision, one number for all of its tokens.

        Â_i = r̃_i = (r_i − mean(r)) / (std(r) + eps)

    mean is that of the completion's own group. std is the sample standard deviation (n−1). Both see judged completions
    only. The advantage is exactly 0

    - where the reward is NaN: what nobody could judge moves neither the policy nor the baseline;
    - in a group with fewer than two judged completions: there is nothing to compare with;
    - in a group whose judged rewards are all equal, even where rounding puts their mean beside them.

    Args:
        rewards (N, G): floating point, finite or NaN.
        scale: whose std divides: that of the `"group"` (the paper), that of the whole `"batch"` of N·G rewards, or
            `"none"`, where Â_i = r_i − mean(r) (Dr. GRPO, arXiv 2503.20783).
        eps: keeps a group of nearly equal rewards from dividing by nearly 0; in units of the reward, TRL 1.16's value.

    Returns:
        (N, G), in the dtype and on the device of `rewards`.

    Raises:
        ConfigError: `rewards` is not a floating-point (N, G) tensor with G ≥ 2, or `scale` is unknown.
        RewardOutputError: a reward is infinite.

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.2.

    >>> outcome_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, float("nan"), 1.0, 2.0], [0.1, 0.1, 0.1, 0.1]]))
    tensor([[ 0.8659, -0.8659, -0.8659,  0.8659],
            [ 0.9999,  0.0000, -0.9999,  0.0000],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    _check(rewards, scale)
    judged = ~rewards.isnan()  # (N, G)
    lowest = rewards.masked_fill(~judged, torch.inf).amin(dim=1, keepdim=True)  # (N, 1)
    highest = rewards.masked_fill(~judged, -torch.inf).amax(dim=1, keepdim=True)
    comparable = judged & (lowest < highest)  # never true with fewer than two judged completions

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
    """The group-relative advantage of every token under process supervision.

        r̃_ij = (r_ij − mean(R)) / (std(R) + eps)
        Â_it = Σ r̃_ij over the steps j of output i that end at token t or later

    R holds the rewards of all steps of all outputs of the group; mean and std are those of `outcome_advantages`, and so
    are a reward of NaN and a group of equal rewards: 0. With one step at the end of each output this is outcome
    supervision to the last bit. An output without steps has advantage 0 and no part in R. A step that ends past its
    output's length was cut off: it has no part in R either. Tokens that the policy did not write (a tool's) are given
    what their place is due; the loss masks them.

    Args:
        step_rewards: for each of B outputs, groups side by side, the rewards of its steps.
        step_ends: as many 0-based indices of the tokens that end them, ascending; steps may end together.
        lengths (B): tokens of each output.
        num_generations: G.
        scale, eps: as in `outcome_advantages`.

    Returns:
        (B, T) in float64; T is the greatest length, and what lies past an output's end is 0.

    Raises:
        ConfigError: the lists do not fit each other, or B is no multiple of G.
        RewardOutputError: a reward is infinite.

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.3.

    >>> process_advantages([[1.0, 0.0], [1.0]], [[1, 3], [2]], [4, 3], num_generations=2)
    tensor([[-0.5773, -0.5773, -1.1545, -1.1545],
            [ 0.5773,  0.5773,  0.5773,  0.0000]], dtype=torch.float64)
    """
    _check_steps(step_rewards, step_ends, lengths, num_generations)
    groups: list[list[tuple[int, int, float]]] = [
        [] for _ in range(len(lengths) // num_generations)
    ]
    for row, (ends, rewards, length) in enumerate(
        zip(step_ends, step_rewards, lengths, strict=True)
    ):
        steps = zip(ends, rewards, strict=True)
        groups[row // num_generations] += [
            (row, end, reward) for end, reward in steps if end < length
        ]
    population = torch.full(
        (len(groups), max(2, *map(len, groups))), torch.nan, dtype=torch.float64
    )
    for of_group, steps_of in zip(population, groups, strict=True):
        of_group[: len(steps_of)] = torch.tensor(
            [reward for _, _, reward in steps_of], dtype=torch.float64
        )
    normalised = outcome_advantages(population, scale=scale, eps=eps)  # (N, most steps of a group)

    at_ends = torch.zeros(len(lengths), max(lengths), dtype=torch.float64)  # (B, T)
    for values, steps_of in zip(normalised.tolist(), groups, strict=True):
        for value, (row, end, _) in zip(values, steps_of, strict=False):
            at_ends[row, end] += value
    return at_ends.flip(1).cumsum(1).flip(1)


def gae(
    values: Tensor, rewards: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> Tensor:
    """Generalised advantage estimation: the advantage of every token, from a critic's values.

        Â_t = Σ_{l ≥ 0} (γλ)^l δ_{t+l},    δ_t = r_t + γ V_{t+1} − V_t,    V = 0 after the last token

    The next token is the next one that counts: tokens that the policy did not write (a tool's) are passed over.

    Args:
        values (B, T): V_t, what the critic expects before token t is written.
        rewards (B, T): r_t, what token t earned.
        mask (B, T): 1 for the tokens that count.
        gamma, lam: γ and λ.

    Returns:
        (B, T), 0 where the mask is; λ-returns are these advantages + `values`.

    Source: Schulman et al. (arXiv 1506.02438), equation 16, of a finite episode.

    >>> gae(torch.tensor([[0.5, 0.25]]), torch.tensor([[0.0, 1.0]]), torch.ones(1, 2), gamma=1.0, lam=1.0)
    tensor([[0.5000, 0.7500]])
    """
    advantages = torch.zeros_like(values)
    following, later = (
        torch.zeros_like(values[:, 0]),
        torch.zeros_like(values[:, 0]),
    )  # V and Â of the next token, (B,)
    for token in reversed(range(values.shape[1])):
        counts = mask[:, token].bool()
        delta = rewards[:, token] + gamma * following - values[:, token]
        later = torch.where(counts, delta + gamma * lam * later, later)
        following = torch.where(counts, values[:, token], following)
        advantages[:, token] = later.where(counts, 0.0)
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
    """Sample standard deviation (n−1) of each row's values that are not NaN; (rows, n) -> (rows, 1)."""
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
            f"rewards have shape {tuple(rewards.shape)}; expected (N, G), a row per group. Rewards in the order of the "
            "completions become that with rewards.view(-1, G)."
        )
    if rewards.shape[1] < 2:
        raise ConfigError(
            f"rewards have shape {tuple(rewards.shape)}, G = {rewards.shape[1]}; expected G of at least 2, because an "
            "advantage compares a completion with the others of its group. Sample more completions per prompt."
        )
    if not rewards.is_floating_point():
        raise ConfigError(
            f"rewards are {rewards.dtype}; expected floating point, where NaN can stand for a completion that could "
            "not be judged. Convert them with rewards.float()."
        )
    if rewards.isinf().any():
        group, index = rewards.isinf().nonzero()[0].tolist()
        raise RewardOutputError(
            f"the reward of completion {index} in group {group} is {rewards[group, index].item()}; expected a finite "
            "number, or NaN where it could not be judged: an infinite one leaves its group no mean. Clip it."
        )


def _check_steps(
    step_rewards: Sequence[Sequence[float]],
    step_ends: Sequence[Sequence[int]],
    lengths: Sequence[int],
    num_generations: int,
) -> None:
    outputs = len(lengths)
    if not len(step_rewards) == len(step_ends) == outputs or not outputs:
        raise ConfigError(
            f"{len(step_rewards)} lists of step rewards, {len(step_ends)} of step ends and {outputs} lengths; expected "
            "as many of each, one per output."
        )
    if num_generations < 2 or outputs % num_generations:
        raise ConfigError(
            f"{outputs} outputs, num_generations {num_generations}; expected whole groups of at least 2."
        )
    for index, (rewards, ends) in enumerate(zip(step_rewards, step_ends, strict=True)):
        if len(rewards) != len(ends) or list(ends) != sorted(ends) or any(end < 0 for end in ends):
            raise ConfigError(
                f"output {index} has {len(rewards)} step rewards and the step ends {list(ends)}; expected as many of "
                "each, and indices of tokens, ascending from 0."
            )
