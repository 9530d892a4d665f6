"""The advantage of every token, where TRL's is not it: under process supervision, and for other estimators.

TRL 1.16 gives a completion one advantage, (B,), and its loss takes one per token, (B, C), as well. Outcome and process
supervision add: the advantage of a token is that of its completion, from the rewards that are numbers, plus that of its
place, from each step reward, times that reward's weight. Numbers are weighed among each other, inside the sum that is
normalised, as in TRL; so it is the weights of step rewards that say how much steps count beside the outcome.

With `advantage_estimator="reward"` the advantage is the weighted sum of rewards itself, and with "gae" the critic's
(algorithm/critic.py): neither knows groups, or steps.

Shapes: B completions of at most C tokens on each of W processes, groups of G, F rewards.
"""

import logging
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ..config import option
from ..errors import ConfigError, DataError
from ..scoring.scorer import ScoredReward
from ..scoring.steps import step_end_tokens
from .advantages import outcome_advantages, process_advantages

logger = logging.getLogger(__name__)

Steps = tuple[
    list[int], list[float]
]  # tokens at which the steps of a completion end, and what they earned


def of_tokens(trainer: Any, batch: dict[str, Any], rewards: Tensor) -> dict[str, Any]:
    """Give the tokens of a rollout their advantages; with group advantages and no step reward it stays as it is.

    A step reward that returns a number for a completion means one step, the whole of it. A completion that failures
    left out has no steps, and neither has one whose steps are not found among its tokens. A truncated one that TRL
    masks counts in its group, as under outcome supervision. `rewards/R/steps` logs how many a completion has under the
    reward R. The logged `reward`, and the table of completions, count a step reward with the mean of its steps, and
    show a completion's mean advantage.

    Args:
        batch: what TRL 1.16 keeps of a rollout, B rows.
        rewards (`Tensor` of shape (W·B, F)): of all processes, NaN for None and for what is left out.

    Raises:
        ConfigError: step rewards together with a setting that allows one advantage per completion only.
    """
    columns, estimator = _step_columns(trainer), option(trainer.args, "advantage_estimator")
    if columns:
        _check(trainer)
    mask = batch["completion_mask"]
    first = trainer.accelerator.process_index * len(mask)
    mine = slice(first, first + len(mask))
    if estimator != "group":
        return _without_groups(
            trainer, batch, _weighted_sum(trainer, rewards, list(range(rewards.shape[1])))[mine]
        )
    if not columns:
        return batch
    lengths = _lengths(mask)
    everywhere = gather_object(lengths)
    advantages = (
        _outcome(trainer, rewards, columns)[mine, None].expand(mask.shape).clone()
    )  # (B, C)
    for column in columns:
        steps = _steps(
            trainer, trainer.reward_funcs[column], batch, lengths, ~rewards[mine].isnan().all(1)
        )
        step_ends, step_rewards = zip(*gather_object(steps), strict=True)
        process = process_advantages(
            step_rewards,
            step_ends,
            everywhere,
            trainer.num_generations,
            scale=trainer.scale_rewards,
        )
        width = min(mask.shape[1], process.shape[1])
        advantages[:, :width] += trainer.reward_weights[column].item() * process[mine, :width].to(
            advantages
        )
        count = sum(map(len, step_ends)) / len(step_ends)
        trainer._metrics["train"][f"rewards/{trainer.reward_func_names[column]}/steps"].append(
            count
        )
    advantages *= mask
    _show(trainer, advantages.sum(1) / mask.sum(1).clamp(min=1))
    return {**batch, "advantages": advantages}


def _step_columns(trainer: Any) -> list[int]:
    """The rewards that have spoken of steps, now or before, on any process."""
    scored = {
        column: entry
        for column, entry in enumerate(trainer.reward_funcs)
        if isinstance(entry, ScoredReward)
    }
    mine = [
        column
        for column, entry in scored.items()
        if entry.of_steps or any(o.steps for o in entry.outcomes)
    ]
    columns = sorted(set(gather_object(mine))) if scored else []
    for column in columns:
        scored[column].of_steps = True
    return columns


def _check(trainer: Any) -> None:
    settings = {"multi_objective_aggregation": "sum_then_normalize", "advantage_estimator": "group"}
    for setting, needed in settings.items():
        if (value := option(trainer.args, setting)) != needed:
            raise ConfigError(
                f"{setting} is {value!r}, which takes one reward per completion, and a reward speaks of its steps. "
                f"Use {setting}={needed!r}, or rewards that are numbers."
            )


def _without_groups(trainer: Any, batch: dict[str, Any], totals: Tensor) -> dict[str, Any]:
    """Advantages from each completion's own reward, (B,): that reward, or what a critic makes of it."""
    mask = batch["completion_mask"]
    if trainer.critic is None:
        advantages = shown = totals.nan_to_num(0.0)  # (B,)
    else:
        advantages = trainer.critic.advantages(batch, totals)  # (B, C)
        shown = advantages.sum(1) / mask.sum(1).clamp(min=1)
    _show(trainer, shown)
    return {**batch, "advantages": advantages}


def _outcome(trainer: Any, rewards: Tensor, columns: list[int]) -> Tensor:
    """What the rewards that are numbers make of each completion, (W·B,), as TRL does."""
    numbers = [column for column in range(rewards.shape[1]) if column not in columns]
    total = _weighted_sum(trainer, rewards, numbers)
    return outcome_advantages(
        total.view(-1, trainer.num_generations), scale=trainer.scale_rewards
    ).flatten()


def _weighted_sum(trainer: Any, rewards: Tensor, columns: list[int]) -> Tensor:
    """The weighted sum of those rewards, (W·B,); NaN where none of them judges."""
    found = rewards[:, columns]
    total = (found * trainer.reward_weights.to(rewards)[columns]).nansum(1)
    return total.masked_fill(found.isnan().all(1), torch.nan)


def _lengths(mask: Tensor) -> list[int]:
    """Tokens of each completion. TRL 1.16's `mask_truncated_completions` leaves no mask; such a row is full."""
    return mask.sum(1).where(mask.any(1), mask.shape[1]).tolist()


def _steps(
    trainer: Any, entry: ScoredReward, batch: dict[str, Any], lengths: list[int], kept: Tensor
) -> list[Steps]:
    """Token ends and rewards of the steps of this process's completions."""
    found: list[Steps] = []
    rows = zip(batch["completion_ids"].tolist(), lengths, kept.tolist(), strict=True)
    for (ids, length, keep), outcome, completion in zip(
        rows, entry.outcomes, entry.completions, strict=True
    ):
        if not keep or outcome.value is None:
            found.append(([], []))
        elif outcome.steps is None:
            found.append(([length - 1], [outcome.value]))
        else:
            try:
                ends = step_end_tokens(
                    trainer._tokenizer, completion, ids[:length], outcome.steps.ends
                )
                found.append((ends, list(outcome.steps.rewards)))
            except DataError as error:
                found.append(([], []))
                if "steps" not in entry.said:
                    entry.said.add("steps")
                    logger.warning(
                        f"A completion is credited with no steps of the reward {entry.__name__!r}: {error}"
                    )
    return found


def _show(trainer: Any, means: Tensor) -> None:
    """Correct the advantages in TRL 1.16's table of completions: the last entries are those of this rollout."""
    table, everywhere = trainer._logs["advantages"], trainer.accelerator.gather(means).tolist()
    for _ in range(min(len(everywhere), len(table))):
        table.pop()
    table.extend(everywhere)
