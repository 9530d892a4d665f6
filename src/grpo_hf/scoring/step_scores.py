"""Step rewards of a rollout: from characters of a completion to the tokens that are credited.

Shapes: B completions of this process, at most C tokens each, W processes, F rewards.
"""

import logging
from typing import Any

from torch import Tensor

from ..algorithm.token_advantages import Steps, completion_lengths
from ..errors import DataError
from ..run_context import RunContext
from ..trl_seam import Batch
from .outcomes import Outcome
from .scored_reward import ScoredReward
from .scorer import Scores
from .steps import step_end_tokens

logger = logging.getLogger(__name__)


def of_rollout(
    scores: Scores, batch: Batch, rewards: Tensor, tokenizer: Any, run: RunContext
) -> dict[int, list[Steps]]:
    """Return the steps of all completions, by the column of each reward that speaks of steps.

    A step reward that returns a number for a completion means one step, the whole of it. A
    completion that failures left out has no steps, and neither has one whose steps are not found
    among its tokens.

    Args:
        scores: what the reward functions said of this process's completions.
        batch: the rollout, B rows.
        rewards (W·B, F): of all processes, NaN for None and for what is left out.

    Returns:
        For each such column W·B entries, in the order of all processes; empty where no reward
        speaks of steps.
    """
    # The completions that TRL masks because they were cut off have their steps all the same.
    lengths = completion_lengths(batch["completion_mask"])
    # Failures leave a row without any number; see `leave_out_failures`.
    kept = ~rewards[run.mine(len(lengths))].isnan().all(1)
    token_ids = batch["completion_ids"].tolist()
    steps = {}
    for column in _step_columns(scores, run):
        of_rows: list[Steps] = []
        for row, outcome in enumerate(scores.outcomes[column]):
            # A failed completion has no part in the statistics of its group either.
            if kept[row]:
                ids = token_ids[row][: lengths[row]]
                completion = scores.completions[row]
                of_rows.append(
                    _steps_of(scores.entries[column], outcome, completion, ids, tokenizer)
                )
            else:
                of_rows.append(([], []))
        steps[column] = run.gather_list(of_rows)
    return steps


def metrics(scores: Scores, steps: dict[int, list[Steps]]) -> dict[str, float]:
    """Return what to log: `rewards/R/steps`, how many steps a completion has under reward R."""
    values = {}
    for column, of_rows in steps.items():
        count = 0
        for ends, _ in of_rows:
            count += len(ends)
        values[f"rewards/{scores.entries[column].__name__}/steps"] = count / len(of_rows)
    return values


def _step_columns(scores: Scores, run: RunContext) -> list[int]:
    """Return the columns of rewards that have spoken of steps, now or before, on any process.

    A reward that did once is a step reward, also where it has only numbers for this rollout.
    """
    # All processes have the same rewards, so all of them skip the exchange or none does.
    if not scores.entries:
        return []
    spoken = []
    for column, entry in scores.entries.items():
        # Read here, of a training rollout: a trial or a Monte Carlo continuation decides nothing.
        speaks_now = any(outcome.steps for outcome in scores.outcomes[column])
        if entry.speaks_of_steps or speaks_now:
            spoken.append(column)
    # Sorted, because every process has to go through the columns in one order.
    columns = sorted(set(run.gather_list(spoken)))
    # A process whose own completions had no steps has to treat the reward alike.
    for column in columns:
        scores.entries[column].speaks_of_steps = True
    return columns


def _steps_of(
    entry: ScoredReward, outcome: Outcome, completion: Any, ids: list[int], tokenizer: Any
) -> Steps:
    if outcome.value is None:
        return [], []
    if outcome.steps is None:
        return [len(ids) - 1], [outcome.value]
    try:
        ends = step_end_tokens(tokenizer, completion, ids, outcome.steps.ends)
    # A chat template that rewrites messages leaves a text that is not what the tokens say.
    except DataError as error:
        entry.warn_once(
            logger,
            "steps",
            f"A completion is credited with no steps of the reward {entry.__name__!r}: {error}",
        )
        return [], []
    return ends, list(outcome.steps.rewards)
