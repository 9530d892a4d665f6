"""Scores completions that are not of a trainer's rollout, in the way a rollout is scored."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..data.completions import Completion, as_completions
from .outcomes import Outcome
from .scored_reward import ScoredReward


def score_completions(
    reward: ScoredReward,
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    columns: Mapping[str, Sequence[Any]],
    completion_ids: Sequence[Sequence[int]] | None = None,
    trainer_state: Any = None,
    is_trial: bool = False,
) -> list[Outcome]:
    """Return the outcome of a reward for one completion per prompt.

    Args:
        prompts: texts, or lists of messages; completions that are texts take the same form.
        columns: of the data, an entry per prompt under each name.
        completion_ids: the tokens of the completions, where they are known.
        is_trial: whether no model wrote the completions.
    """
    if not completion_ids:
        # A reward that reads the ids finds a list per completion, as in a rollout.
        completion_ids = [[] for _ in completions]
    arguments = {
        "prompts": list(prompts),
        "completion_ids": completion_ids,
        "trainer_state": trainer_state,
        # Last, so that a column of the data wins, as the caller has named it.
        **columns,
    }
    return reward.score(as_completions(completions, prompts), arguments, is_trial=is_trial)


def judge_by(
    reward: ScoredReward,
    tokenizer: Any,
    prompts: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
    state: Any = None,
) -> Callable[[list[list[int]], Sequence[int]], list[float]]:
    """Return a function from tokens of completions, and the rows that they answer, to rewards.

    Rewards are NaN where the reward cannot judge.

    Args:
        prompts: of the rows.
        columns: of the data, an entry per row under each name.
    """

    def judge(completion_ids: list[list[int]], rows: Sequence[int]) -> list[float]:
        # Several completions may answer one row, which then counts several times.
        columns_of_rows = {}
        for name, values in columns.items():
            columns_of_rows[name] = _entries(values, rows)
        outcomes = score_completions(
            reward,
            _entries(prompts, rows),
            tokenizer.batch_decode(completion_ids, skip_special_tokens=True),
            columns=columns_of_rows,
            completion_ids=completion_ids,
            trainer_state=state,
        )
        rewards = []
        for outcome in outcomes:
            rewards.append(number(outcome.value))
        return rewards

    return judge


def _entries(values: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    """Return the entries of some rows, in the order of the rows."""
    return [values[row] for row in rows]


def number(value: float | None) -> float:
    """Return a reward as a number, NaN for None."""
    return math.nan if value is None else value
