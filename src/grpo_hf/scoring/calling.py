"""How a reward is called: with all completions at once, as in TRL, or one by one.

TRL calls a reward with all completions of a process. A reward may compare them, count or keep a
state, now or after a thousand batches, and no measurement shows that it never will. So this is how
a reward is called unless its author says that it judges each completion by itself. A call that came
to nothing is made again by groups.

Shapes: B completions of a rollout on this process, by their rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .outcomes import Outcome

# all: one call with all completions. one: a call for each.
Way = Literal["all", "one"]
# Calls the reward once for each list of rows; in parallel, where it can.
CallRows = Callable[[Sequence[list[int]]], list[list[Outcome]]]


@dataclass(frozen=True)
class Job:
    """Score the completions of a rollout by one reward, in the process that scores.

    Args:
        reward: the index of the reward.
        columns, shared: pickled: a value per completion under each name, and what is the same for
            all of them.
        groups: the rows of each group of completions, 0 to B - 1 in all.
        way: how the reward is called.
        timeout: seconds for a call with one completion.
        patience: seconds for a call with several.
        patience_by_groups: seconds for each completion of a group that is called by itself because
            a call with all came to nothing, where that is more than `patience`.
    """

    reward: int
    columns: bytes
    shared: bytes
    groups: list[list[int]]
    way: Way
    timeout: float
    patience: float
    patience_by_groups: float
    is_trial: bool

    @property
    def count(self) -> int:
        """How many completions there are, B."""
        return sum(map(len, self.groups))

    def limit(self, rows: int) -> float:
        """Return the seconds for a call with some of the completions."""
        if rows == 1:
            return self.timeout
        return max(self.patience, self.patience_by_groups * rows)


@dataclass(frozen=True)
class Scored:
    """The outcomes of a rollout's completions.

    Args:
        outcomes: B of them.
        changed: whether a call has changed what it was called with.
    """

    outcomes: list[Outcome]
    changed: bool = False


def columns_at(columns: dict[str, list[Any]], rows: Sequence[int]) -> dict[str, list[Any]]:
    """Return the columns of some rows."""
    return {name: [values[row] for row in rows] for name, values in columns.items()}


def runs_of(prompts: Sequence[Any]) -> list[list[int]]:
    """Return the rows of equal prompts that stand side by side, for calls outside of a rollout."""
    runs: list[list[int]] = []
    for row, prompt in enumerate(prompts):
        if runs and prompts[row - 1] == prompt:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def is_lost(outcomes: Sequence[Outcome]) -> bool:
    """Return whether a call as a whole came to nothing, and not single values of it."""
    if not outcomes:
        return False
    # A call that fails gives all its completions the very same failure. A wrong setting fails again
    # however it is called.
    first = outcomes[0].failure
    if first is None or first.reason == "settings":
        return False
    return all(outcome.failure == first for outcome in outcomes)


def narrowed(
    lost: list[Outcome], groups: Sequence[list[int]], call_rows: CallRows
) -> list[Outcome]:
    """Call a reward by groups, after a call with all completions was lost.

    The value of a reward that compares needs its group and no more. Where a group is lost, each of
    its completions is called alone to find those at fault, and the others once more together: they
    are the group that is left when failures are left out.

    Args:
        lost: what the call with all completions came to.
        groups: the rows of each group; together they are rows 0 to B - 1.

    Returns:
        B outcomes.
    """
    found: dict[int, Outcome] = {}
    # A single group has just been called.
    by_group = call_rows(groups) if len(groups) > 1 else [lost]
    for group, outcomes in zip(groups, by_group, strict=True):
        if is_lost(outcomes) and len(group) > 1:
            outcomes = _without_culprits(group, outcomes, call_rows)
        found.update(zip(group, outcomes, strict=True))
    # A number of values that is wrong may fit calls of one completion by chance, and is nobody's
    # fault then but the reward's.
    is_length = lost[0].failure is not None and lost[0].failure.reason == "wrong length"
    if is_length and all(outcome.failure is None for outcome in found.values()):
        return lost
    return [found[row] for row in range(len(found))]


def _without_culprits(group: list[int], lost: list[Outcome], call_rows: CallRows) -> list[Outcome]:
    """Return the outcomes of a group of which some completions make the call fail."""
    alone = call_rows([[row] for row in group])
    rest = [row for row, (outcome,) in zip(group, alone, strict=True) if outcome.failure is None]
    # All of them, or none by itself: nobody can say whose fault it is.
    if len(rest) in (0, len(group)):
        return [outcome for (outcome,) in alone] if not rest else lost
    (of_rest,) = call_rows([rest])
    found = dict(zip(rest, of_rest, strict=True))
    outcomes = []
    for row, (outcome,) in zip(group, alone, strict=True):
        outcomes.append(found.get(row, outcome))
    return outcomes
