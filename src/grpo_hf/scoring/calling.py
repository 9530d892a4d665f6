"""How a reward is called: with all completions at once as in TRL, by groups, or one by one.

TRL calls a reward with all completions of a process. Calls of one completion can be spread over
workers, and one that hangs costs nothing else; they give the same only for a reward that judges
each completion by itself. `compare` measures whether it does.

Shapes: B completions of a rollout on this process, by their rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .outcomes import Outcome, call, mean_metrics
from .reward import Reward

# What is found out about a reward.
ALIKE = "it gives each completion the same value by itself"
COMPARES = "it gives a completion another value alone than among others, so it compares them"
VARIES = "it gave the same completions other values the second time, so it counts or is random"
ASYNC = "it is async, and waits for its completions together"
NETWORK = "it talks to a server, which a second call may cost money"
SLOW = "a call took seconds"

# all: one call with all completions. one: a call for each. measure: all, and then one by one to
# compare, if the values tell the completions apart. try: the same, whatever the values. check: one
# by one, and then all to compare.
Way = Literal["all", "one", "measure", "try", "check"]
# Calls the reward once for each list of rows; in parallel, where it can.
CallRows = Callable[[Sequence[list[int]]], list[list[Outcome]]]

# What adding in another order may change of the mean of a metric.
_ROUNDING = 1e-9


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
    """

    reward: int
    columns: bytes
    shared: bytes
    groups: list[list[int]]
    way: Way
    timeout: float
    patience: float

    @property
    def count(self) -> int:
        """How many completions there are, B."""
        return sum(map(len, self.groups))


@dataclass(frozen=True)
class Scored:
    """The outcomes of a rollout's completions, and what was found out about the reward.

    Args:
        outcomes: B of them.
        finding: one of the constants above, or empty.
    """

    outcomes: list[Outcome]
    finding: str = ""


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


def tells_apart(outcomes: Sequence[Outcome]) -> bool:
    """Return whether a call has values that differ, and no failures.

    Equal values prove nothing: whatever compares completions finds them equal now and then.
    """
    return len(set(map(_bits, outcomes))) > 1 and not any(each.failure for each in outcomes)


def is_same(one: Sequence[Outcome], other: Sequence[Outcome]) -> bool:
    """Return whether two calls returned the same, bit for bit."""
    return list(map(_bits, one)) == list(map(_bits, other))


def compare(
    reward: Reward, columns: dict[str, list[Any]], shared: dict[str, Any], whole: list[Outcome]
) -> str:
    """Find out how a reward may be called, by calling it again.

    Beside the completions one by one it is called with every second of them doubled, because many
    rewards that compare look for completions that are alike, and a rollout may have none.

    Args:
        columns: a value per completion, under each name.
        shared: what is the same for all of them.
        whole: what a call with all completions returned.

    Returns:
        `ALIKE`, `COMPARES` or `VARIES`.
    """
    if _is_alike(reward, columns, shared, whole):
        return ALIKE
    again = call(reward, columns | shared, len(whole))
    return COMPARES if is_same(again, whole) else VARIES


def _is_alike(
    reward: Reward, columns: dict[str, list[Any]], shared: dict[str, Any], whole: list[Outcome]
) -> bool:
    alone = []
    for row, outcome in enumerate(whole):
        alone += call(reward, columns_at(columns, [row]) | shared, 1)
        if _bits(alone[-1]) != _bits(outcome):
            return False
    if not _metrics_agree(whole, alone):
        return False
    doubled = [2 * (row // 2) for row in range(len(whole))]
    outcomes = call(reward, columns_at(columns, doubled) | shared, len(doubled))
    return is_same(outcomes, [whole[row] for row in doubled])


def _bits(outcome: Outcome) -> str:
    """Return what is compared of an outcome; Python writes a float so that no bit is lost."""
    return repr((outcome.value, outcome.steps, outcome.failure is None, outcome.extras))


def _metrics_agree(whole: Sequence[Outcome], alone: Sequence[Outcome]) -> bool:
    """Return whether the means of what single calls logged are what the whole call logged."""
    expected = mean_metrics(whole)
    found = mean_metrics(alone)
    if expected.keys() != found.keys():
        return False
    # The order of a sum may change its last bits.
    return all(math.isclose(expected[name], found[name], rel_tol=_ROUNDING) for name in expected)
