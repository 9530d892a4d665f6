"""Completions that no trainer asked about, scored as a rollout's would be."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..data.completions import as_completions
from .outcomes import Outcome
from .scored_reward import ScoredReward


def score_texts(
    reward: ScoredReward,
    prompts: Sequence[Any],
    texts: Sequence[str],
    *,
    columns: Mapping[str, Sequence[Any]],
    completion_ids: Sequence[Sequence[int]] | None = None,
    trainer_state: Any = None,
) -> list[Outcome]:
    """Return what a reward says of a text for each prompt.

    Args:
        prompts: texts, or lists of messages; the completions take the same form.
        columns: of the data, an entry per prompt under each name.
        completion_ids: the tokens of the texts, where they are known.
    """
    taken = {
        "prompts": list(prompts),
        "completion_ids": completion_ids or [[] for _ in texts],
        "trainer_state": trainer_state,
        **columns,
    }
    return reward.score(as_completions(texts, prompts), taken)


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
        of_rows = {}
        for name, values in columns.items():
            of_rows[name] = [values[row] for row in rows]
        outcomes = score_texts(
            reward,
            [prompts[row] for row in rows],
            tokenizer.batch_decode(completion_ids, skip_special_tokens=True),
            columns=of_rows,
            completion_ids=completion_ids,
            trainer_state=state,
        )
        return [number(outcome.value) for outcome in outcomes]

    return judge


def number(value: float | None) -> float:
    """Return a reward as a number, NaN for None."""
    return math.nan if value is None else value
