"""Calls of a reward in the trainer's process, where it sees and changes what the trainer does.

Shapes: B completions of a rollout on this process.
"""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from .calling import Way, columns_at, is_lost, narrowed
from .outcomes import Failure, Outcome, call, call_async, call_awaiting
from .reward import Reward


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a reward.

    Args:
        columns: under each name a value per completion.
        shared: what is the same for all completions.
        groups: the rows of each group, 0 to B - 1 in all.
    """

    columns: dict[str, Any]
    shared: dict[str, Any]
    groups: list[list[int]]

    @property
    def count(self) -> int:
        """How many completions there are, B."""
        return sum(map(len, self.groups))


def run_here(
    reward: Reward, call_: Call, *, way: Way, timeout: float, narrow: bool = True
) -> list[Outcome]:
    """Call a reward in this process; nothing but an interrupt escapes.

    Args:
        narrow: whether a call with all completions that came to nothing is made again by groups.
        way: `"one"` for a call with each completion, anything else for one with all of them.
        timeout: seconds for each completion of an `async def` reward in the first case.
    """
    try:
        if way == "one":
            return _one_by_one(reward, call_, timeout)
        (outcomes,) = _called(reward, call_, [list(range(call_.count))])
        # A reward that works together with other processes has to be called as often as there.
        if not narrow or reward.settings.early is False or not is_lost(outcomes):
            return outcomes
        return narrowed(outcomes, call_.groups, lambda rows: _called(reward, call_, rows))
    # A reward that asks for too much memory is one that failed; the trainer goes on.
    except MemoryError as error:
        failure = Failure("memory", f"MemoryError: {error}")
        return [Outcome(None, failure)] * call_.count


def _called(reward: Reward, call_: Call, row_lists: Sequence[list[int]]) -> list[list[Outcome]]:
    """Call the reward once for each list of rows."""
    results = []
    for rows in row_lists:
        is_whole = len(rows) == call_.count
        columns = call_.columns if is_whole else columns_at(call_.columns, rows)
        columns = columns | call_.shared
        if reward.is_async:
            work = call_awaiting(reward, columns, len(rows))
            results.append(asyncio.run_coroutine_threadsafe(work, _loop()).result())
        else:
            results.append(call(reward, columns, len(rows)))
    return results


def _one_by_one(reward: Reward, call_: Call, timeout: float) -> list[Outcome]:
    rows = [[row] for row in range(call_.count)]
    if not reward.is_async:
        return [outcome for (outcome,) in _called(reward, call_, rows)]
    samples = [columns_at(call_.columns, row) | call_.shared for row in rows]
    concurrency = reward.settings.concurrency
    work = call_async(reward, samples, timeout=timeout, concurrency=concurrency)
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of `async def` rewards in this process.

    There is one for all calls, because the sessions that such rewards open belong to a loop.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop
