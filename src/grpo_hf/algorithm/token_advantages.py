"""The advantage of every token, where it is another than TRL's.

TRL 1.16 gives a completion one advantage, (B,); its loss takes one per token, (B, C), as well.
Outcome and process supervision are added: the advantage of a token is the advantage of its
completion, from the rewards that are numbers, plus for each step reward the advantage of the
token's place, times the weight of that reward. The weights of the rewards that are numbers act
inside the sum that is normalised, as in TRL. So the weight of a step reward says how much its steps
count beside the outcome.

Two other estimators use neither groups nor steps: with `advantage_estimator="reward"` the advantage
is the weighted sum of rewards itself, and with "gae" a critic's values are subtracted.

Shapes: B completions of at most C tokens on each of W processes, groups of G, F rewards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import option
from ..errors import ConfigError
from ..run_context import RunContext
from ..trl_seam import Batch
from .advantages import outcome_advantages, process_advantages, weighted_sum
from .critic import Critic

# The token indices at which the steps of one completion end, and what each step earned.
Steps = tuple[list[int], list[float]]


@dataclass(frozen=True)
class AdvantageSettings:
    """How rewards become advantages.

    Args:
        estimator: `"group"`, `"reward"` or `"gae"`.
        scale: whose deviation divides: `"group"`, `"batch"` or `"none"`.
        aggregation: TRL's `multi_objective_aggregation`.
        weights (F,): of the rewards.
        exact_zeros: whether a group of equal rewards has to have advantages of exactly 0, because
            something leaves out, or replaces, what has no signal.
    """

    estimator: str
    scale: str
    aggregation: str
    weights: Tensor
    exact_zeros: bool


def settings_of(args: Any, weights: Tensor, *, packs: bool) -> AdvantageSettings:
    """Return how a run's rewards become advantages.

    Args:
        args: of the run.
        weights (F,): of the rewards at this step.
        packs: whether updates run on packed rows.
    """
    return AdvantageSettings(
        estimator=option(args, "advantage_estimator"),
        scale=args.scale_rewards,
        aggregation=args.multi_objective_aggregation,
        weights=weights,
        exact_zeros=packs or option(args, "dynamic_sampling"),
    )


@dataclass(frozen=True)
class Credit:
    """The advantages of a rollout, and what is shown and logged about them.

    Args:
        advantages: (B,), one per completion, or (B, C), one per token.
        shown (B,): advantages for the table of completions; `None` where TRL's are right already.
        metrics: to log.
    """

    advantages: Tensor
    shown: Tensor | None
    metrics: dict[str, float]


def credit_tokens(
    batch: Batch,
    rewards: Tensor,
    steps: Mapping[int, Sequence[Steps]],
    settings: AdvantageSettings,
    run: RunContext,
    critic: Critic | None,
) -> Credit:
    """Return the advantages of a rollout; with groups and no step reward they stay TRL's.

    Args:
        batch: the rollout with TRL's advantages, B rows.
        rewards (W·B, F): of all processes, NaN for None and for what is left out.
        steps: by the column of each step reward, the steps of all W·B completions.
        critic: what `"gae"` asks for the value of a token.

    Raises:
        ConfigError: step rewards with a setting that allows one advantage per completion only.
    """
    mask = batch["completion_mask"]
    # Steps first: which other settings go with them is checked there.
    if steps:
        check_step_rewards(settings)
        advantages = step_advantages(batch, rewards, steps, settings, run)
        return Credit(advantages, mean_over_tokens(advantages, mask), {})
    if settings.estimator == "group":
        advantages = batch["advantages"]
        # With `normalize_then_sum` a completion is compared with those of all groups.
        if settings.exact_zeros and settings.aggregation == "sum_then_normalize":
            advantages = zero_in_constant_groups(advantages, rewards, run)
        return Credit(advantages, None, {})
    totals = weighted_sum(rewards, settings.weights)[run.mine(len(mask))]  # (B,)
    if critic is None:
        # NaN is a completion that nobody could judge; it must not move the policy.
        advantages = totals.nan_to_num(0.0)
        return Credit(advantages, advantages, {})
    advantages, loss = critic.advantages(batch, totals, run.step)  # (B, C)
    return Credit(advantages, mean_over_tokens(advantages, mask), {"critic/loss": loss})


def check_step_rewards(settings: AdvantageSettings) -> None:
    """Check that settings allow a token an advantage of its own.

    Raises:
        ConfigError: one of them takes a single reward per completion.
    """
    # Both alternatives reduce all rewards of a completion to one number before they are normalised.
    needed_values = {
        "multi_objective_aggregation": (settings.aggregation, "sum_then_normalize"),
        "advantage_estimator": (settings.estimator, "group"),
    }
    for name, (value, needed) in needed_values.items():
        if value != needed:
            raise ConfigError(
                f"{name} is {value!r}, which takes one reward per completion, and a reward speaks "
                f"of its steps. Use {name}={needed!r}, or rewards that are numbers."
            )


def zero_in_constant_groups(advantages: Tensor, rewards: Tensor, run: RunContext) -> Tensor:
    """Set the advantages of groups with equal rewards to exactly 0.

    In float32 r - mean(r) is not exactly 0 for a mean of six equal numbers.

    Args:
        advantages (B,): of this process.
        rewards (W·B, F): of all processes, NaN for None.
    """
    groups = rewards.view(-1, run.group_size, rewards.shape[1])  # (N, G, F)
    low = groups.nan_to_num(nan=torch.inf).amin(1)  # (N, F)
    high = groups.nan_to_num(nan=-torch.inf).amax(1)
    # A reward that judged no completion of a group has low > high, and makes no difference. But
    # a reward that judges only some completions of a group makes a difference between them.
    whole = ~groups.isnan().any(1) | groups.isnan().all(1)
    equal = ((low >= high) & whole).all(1)  # (N,)
    equal_rows = equal.repeat_interleave(run.group_size)  # (W·B,)
    return advantages.masked_fill(equal_rows[run.mine(len(advantages))], 0.0)


def step_advantages(
    batch: Batch,
    rewards: Tensor,
    steps: Mapping[int, Sequence[Steps]],
    settings: AdvantageSettings,
    run: RunContext,
) -> Tensor:
    """Return the advantages of a rollout's tokens under outcome and process supervision, (B, C).

    A completion that TRL masks because it was cut off counts in its group, as under outcome
    supervision.

    Args:
        batch: the rollout, B rows.
        rewards (W·B, F): of all processes, NaN for None and for what is left out.
        steps: by the column of each step reward, the steps of all W·B completions.
    """
    weights = settings.weights
    mask = batch["completion_mask"]
    mine = run.mine(len(mask))
    # A group may span processes, and is normalised as one.
    lengths = run.gather_list(completion_lengths(mask))
    # Step rewards are left out of the outcome, which would count them a second time.
    numbers = [column for column in range(rewards.shape[1]) if column not in steps]
    total = weighted_sum(rewards[:, numbers], weights[numbers])
    outcome = outcome_advantages(total.view(-1, run.group_size), scale=settings.scale).flatten()
    advantages = outcome[mine, None].expand(mask.shape).clone()  # (B, C)
    for column, of_completions in steps.items():
        step_ends, step_rewards = zip(*of_completions, strict=True)
        process = process_advantages(
            step_rewards, step_ends, lengths, run.group_size, scale=settings.scale
        )
        # The longest completion of another process may be longer or shorter than this block.
        width = min(mask.shape[1], process.shape[1])
        advantages[:, :width] += weights[column].item() * process[mine, :width].to(advantages)
    return advantages * mask


def mean_over_tokens(advantages: Tensor, mask: Tensor) -> Tensor:
    """Return the mean advantage of each completion's tokens, (B, C) -> (B,)."""
    return (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)


def completion_lengths(mask: Tensor) -> list[int]:
    """Return the tokens of each completion.

    TRL 1.16's `mask_truncated_completions` leaves no mask of a completion that was cut off; such a
    completion is as long as a row.
    """
    return mask.sum(1).where(mask.any(1), mask.shape[1]).tolist()
