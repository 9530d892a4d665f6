"""The scoring of one rollout by one reward, in the server: which calls workers are given.

Whatever becomes of a call or its worker is an outcome here.
"""

import ctypes
import dis
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from types import CodeType
from typing import Any

import cloudpickle
import psutil
from pebble import ProcessExpired, ProcessPool

from . import worker_calls
from .calling import Job, Scored, columns_at, is_lost, narrowed
from .outcomes import Failure, Outcome, timed_out
from .worker_calls import OUT_OF_MEMORY

# Seconds that a call of several completions has beyond the time of its own.
_GRACE = 5.0
# Seconds to wait for an orphan that was killed.
_ORPHAN_TIMEOUT = 1
# An option of prctl(2), from <linux/prctl.h>.
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Pools:
    """The workers for calls of one completion or a group, how many, and each reward's own.

    A reward's own worker makes all its calls with all completions, so that what the reward
    remembers is there in the next one, as in TRL.
    """

    of_one: ProcessPool
    of_all: list[ProcessPool]
    workers: int


class Scoring:
    """One job under way: its calls, and what they come to."""

    def __init__(
        self, job: Job, columns: dict[str, list[Any]], shared: bytes | str, pools: Pools
    ) -> None:
        reward = worker_calls.rewards[job.reward]
        # The trainer was told which rewards could not be loaded.
        assert reward is not None
        self._reward = reward
        self._job = job
        self._columns = columns
        self._shared = shared
        self._pools = pools

    def scored(self) -> Scored:
        """Return the outcomes of all completions, called in the way that the job says."""
        if not self._job.count:
            return Scored([])
        if self._job.way == "all":
            return self._all_at_once()
        return Scored(self._awaited_apart() if self._reward.is_async else self._apart())

    def _all_at_once(self) -> Scored:
        job = self._job
        arguments = (job.reward, self._pickled(self._all_rows), self._shared, job.count)
        pool = self._pools.of_one if job.is_trial else self._pools.of_all[job.reward]
        future = pool.schedule(worker_calls.score_all, args=arguments, timeout=job.patience)
        try:
            scored = future.result()
        # Whatever became of the worker, or of what it sent, is an outcome.
        except Exception as error:
            end_orphans()
            scored = Scored([self._fate(error, job.patience)] * job.count)
        if not is_lost(scored.outcomes):
            return scored
        return Scored(narrowed(scored.outcomes, job.groups, self._by_rows), scored.changed)

    @property
    def _all_rows(self) -> list[int]:
        return list(range(self._job.count))

    def _by_rows(self, row_lists: Sequence[list[int]]) -> list[list[Outcome]]:
        """Call the reward for each list of rows, as many at a time as there are workers."""
        limits = []
        futures = []
        for rows in row_lists:
            limits.append(self._job.limit(len(rows)))
            futures.append(self._schedule(rows, limits[-1]))
        results = []
        for rows, future, limit in zip(row_lists, futures, limits, strict=True):
            results.append(self._taken(rows, future, limit))
        return results

    def _apart(self, rows: Sequence[int] | None = None) -> list[Outcome]:
        each = self._all_rows if rows is None else rows
        return [outcome for (outcome,) in self._by_rows([[row] for row in each])]

    def _awaited_apart(self) -> list[Outcome]:
        """Give each worker several completions of an `async def` reward, which wait together."""
        job = self._job
        allowed = self._reward.settings.concurrency
        calls = min(self._pools.workers, allowed, job.count)
        concurrency = max(1, allowed // calls)
        parts = [self._all_rows[start::calls] for start in range(calls)]
        futures = []
        for rows in parts:
            # Each completion has its own time inside, and they go in rounds.
            limit = job.timeout * ceil(len(rows) / concurrency) + _GRACE
            futures.append(self._schedule(rows, limit, concurrency))
        found: dict[int, Outcome] = {}
        for rows, future in zip(parts, futures, strict=True):
            try:
                outcomes = future.result()
            # The worker died: find out whose fault it was.
            except Exception:
                end_orphans()
                outcomes = self._apart(rows)
            found.update(zip(rows, outcomes, strict=True))
        return [found[row] for row in self._all_rows]

    def _schedule(self, rows: Sequence[int], limit: float, concurrency: int = 0) -> Any:
        job = self._job
        how = (job.timeout, concurrency)
        arguments = (job.reward, self._pickled(rows), self._shared, len(rows), *how)
        return self._pools.of_one.schedule(worker_calls.score, args=arguments, timeout=limit)

    def _taken(self, rows: Sequence[int], future: Any, limit: float) -> list[Outcome]:
        """Return what became of a call; try again where it may not have been its own fault."""
        try:
            return future.result()
        # Here, too, whatever happened is an outcome.
        except Exception as error:
            end_orphans()
            fate = self._fate(error, limit)
            if not _died_of_memory(error):
                return [fate] * len(rows)
        # It may have been the memory that completions before it had leaked.
        try:
            return self._schedule(rows, limit).result()
        except Exception as error:
            end_orphans()
            return [self._fate(error, limit)] * len(rows)

    def _fate(self, error: Exception, limit: float) -> Outcome:
        fate = _fate(error, limit)
        is_late = fate.failure is not None and fate.failure.reason == "timeout"
        return timed_out(limit, _advice(self._reward.function)) if is_late else fate

    def _pickled(self, rows: Sequence[int]) -> bytes:
        return cloudpickle.dumps(columns_at(self._columns, rows))


def _died_of_memory(error: Exception) -> bool:
    """Whether a worker left for want of memory, by itself or by the kernel's hand."""
    exit_codes = (OUT_OF_MEMORY, -signal.SIGKILL)
    return isinstance(error, ProcessExpired) and error.exitcode in exit_codes


def _fate(error: Exception, timeout: float) -> Outcome:
    """Return the outcome of a completion whose worker gave no answer.

    Raises:
        BrokenProcessPool: the pool missed that a worker had begun before it died, and takes no more
            calls. The process that scores has to start anew.
    """
    if isinstance(error, BrokenProcessPool):
        raise error
    if isinstance(error, TimeoutError):
        return timed_out(timeout)
    if not isinstance(error, ProcessExpired):
        return Outcome(None, Failure("exception", f"{type(error).__name__}: {error}"))
    if error.exitcode == OUT_OF_MEMORY:
        detail = "it needed more memory than a reward worker may have"
        return Outcome(None, Failure("memory", detail))
    if error.exitcode is not None and error.exitcode < 0:
        number = -error.exitcode
        # Real-time signals have numbers only.
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return Outcome(None, Failure("killed", f"its worker was killed by {name}"))
    return Outcome(None, Failure("killed", f"its worker left with exit code {error.exitcode}"))


def _advice(function: Any) -> str:
    """Say of modules that a reward imports when it is called that they may have taken the time."""
    late = []
    for name in _imported_when_called(getattr(function, "__code__", None)):
        # What is imported here is there in every worker.
        if name not in sys.modules and name not in late:
            late.append(name)
    if not late:
        return ""
    return (
        f". It imports {', '.join(late)} when it is called, which counts as its time: name that in "
        f"@reward_settings(imports={tuple(late)}), and it is imported before completions are "
        "timed, or give more --reward_timeout"
    )


def _imported_when_called(code: CodeType | None) -> Iterator[str]:
    """Yield the modules that a function imports, and those of functions within it."""
    if code is None:
        return
    found = list(dis.get_instructions(code))
    for place, instruction in enumerate(found):
        # Two before it is loaded how many packages up it looks; its own package is there already.
        if instruction.opname == "IMPORT_NAME" and found[place - 2].argval == 0:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imported_when_called(constant)


def adopt_orphans() -> None:
    """Become the parent of processes whose worker has gone, so that they can be found."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_orphans() -> None:
    """Kill what workers have started and left behind.

    A worker leads a session of its own, and what it starts belongs to that session.
    """
    own = os.getsid(0)
    for child in psutil.Process().children():
        # The child may be gone by now.
        with suppress(psutil.Error, OSError):
            if os.getsid(child.pid) not in (own, child.pid):
                child.kill()
                child.wait(_ORPHAN_TIMEOUT)
