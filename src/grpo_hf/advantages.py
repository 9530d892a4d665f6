"""From rewards to advantages: each completion against the other completions of its group.

N groups, G completions each. A reward of NaN stands for None: the completion could not be judged.
"""

import torch
from torch import Tensor

from .errors import ConfigError, RewardOutputError, did_you_mean

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


def _sample_std(rewards: Tensor) -> Tensor:
    """Sample standard deviation (n−1) of each row's values that are not NaN; (rows, n) -> (rows, 1)."""
    deviations = rewards - rewards.nanmean(dim=1, keepdim=True)
    count = (~rewards.isnan()).sum(dim=1, keepdim=True)
    return (deviations.square().nansum(dim=1, keepdim=True) / (count - 1)).sqrt()


def _check(rewards: Tensor, scale: str) -> None:
    if scale not in SCALES:
        raise ConfigError(f"scale is {scale!r}; expected one of {', '.join(SCALES)}.{did_you_mean(scale, SCALES)}")
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
