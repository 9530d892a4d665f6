"""The process that scores: it holds no model and no device, and forks a worker for every completion's safety.

    python -c "..." (isolation.py)   trainer  --columns-->  server  --one completion-->  worker, worker, ...
                                              <--outcomes--         <--outcome--

The trainer cannot fork workers itself: it holds CUDA and threads. This process is started afresh, imports the rewards,
and is then cheap to fork, so that a worker that had to be killed is replaced in milliseconds. Workers are pebble's: it
takes the time of each completion and kills the worker whose time is up.
"""

import asyncio
import ctypes
import os
import pickle
import resource
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from math import ceil
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pebble import CONSTS, ProcessExpired, ProcessPool

from .outcomes import Failure, Outcome, call, call_async, timed_out
from .plugins import import_file
from .reward import Reward

_OUT_OF_MEMORY = 77  # how a worker leaves whose memory is used up, by this completion or by those before it
_TASKS = 2000  # after as many a worker is replaced, and with it what rewards have leaked
_GRACE = 5.0  # seconds that a call of several completions has beyond the time of its own

_rewards: list[Reward] = []  # workers inherit it


@dataclass(frozen=True)
class Job:
    """Score columns of `count` completions by the reward of an index; `timeout` is that of one call."""

    number: int
    reward: int
    columns: dict[str, list[Any]]
    shared: dict[str, Any]
    count: int
    timeout: float


def main(descriptor: int, workers: int, memory: int) -> None:
    """Serve one trainer until it closes its end of the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which then closes the connection
    connection = Connection(descriptor)
    try:
        for files, pickled in connection.recv():
            for file in files:
                import_file(Path(file))
            _rewards.append(pickle.loads(pickled))
    except (EOFError, OSError):
        return
    CONSTS.term_timeout = 0.5  # seconds between SIGTERM and SIGKILL
    settings: dict[str, Any] = {"initializer": _enter, "initargs": (descriptor, memory), "max_tasks": _TASKS}
    with ProcessPool(workers, context=get_context("fork"), **settings) as pool:
        try:
            _serve(connection, pool, workers)
        finally:
            pool.stop()


def _serve(connection: Connection, pool: ProcessPool, workers: int) -> None:
    sending = threading.Lock()

    def answer(number: int, outcomes: list[Outcome]) -> None:
        with sending:
            try:
                connection.send((number, outcomes))
            except OSError:
                os._exit(1)  # the trainer has gone

    while True:
        try:
            job = Job(*connection.recv())
        except (EOFError, OSError):
            return
        _Scoring(job, pool, workers, answer).begin()


class _Scoring:
    """One job under way: its calls, and the outcomes so far."""

    def __init__(self, job: Job, pool: ProcessPool, workers: int, answer: Callable[[int, list[Outcome]], None]) -> None:
        self._job, self._pool, self._workers, self._answer = job, pool, workers, answer
        self._settings = _rewards[job.reward].settings
        self._outcomes: list[Outcome | None] = [None] * job.count
        self._left = job.count
        self._lock = threading.Lock()

    def begin(self) -> None:
        rows = list(range(self._job.count))
        if not rows:
            self._answer(self._job.number, [])
        elif self._settings.batched:
            self._schedule(rows)
        elif _rewards[self._job.reward].is_async:
            for start in range(min(self._workers, len(rows))):
                self._schedule(rows[start :: self._workers])
        else:
            for row in rows:
                self._schedule([row])

    def _schedule(self, rows: list[int], *, again: bool = False) -> None:
        """Give a worker these completions; `again` if it is their second time."""
        columns = {name: [values[row] for row in rows] for name, values in self._job.columns.items()}
        timeout = self._job.timeout
        concurrency = max(1, self._settings.concurrency // self._workers)
        if not self._settings.batched and _rewards[self._job.reward].is_async:
            timeout = timeout * ceil(len(rows) / concurrency) + _GRACE  # each has its own time inside
        work = (self._job.reward, columns, self._job.shared, len(rows), self._job.timeout, concurrency)
        future = self._pool.schedule(_score, args=work, timeout=timeout)
        future.add_done_callback(lambda done: self._settle(rows, done, again))

    def _settle(self, rows: list[int], future: "Future[list[Outcome]]", again: bool) -> None:
        try:
            outcomes = future.result()
        except Exception as error:  # whatever became of the worker, or of what it sent, is an outcome
            died_of_memory = isinstance(error, ProcessExpired) and error.exitcode in (_OUT_OF_MEMORY, -signal.SIGKILL)
            if len(rows) > 1 and not self._settings.batched:  # find out whose fault it was
                for row in rows:
                    self._schedule([row], again=again)
                return
            if died_of_memory and not again:  # it may have been that of completions before it
                self._schedule(rows, again=True)
                return
            outcomes = [_fate(error, self._job.timeout)] * len(rows)
        with self._lock:
            for row, outcome in zip(rows, outcomes, strict=True):
                self._outcomes[row] = outcome
            self._left -= len(rows)
            complete = self._left == 0
        if complete:
            self._answer(self._job.number, [outcome for outcome in self._outcomes if outcome is not None])


def _fate(error: Exception, timeout: float) -> Outcome:
    """The outcome of a completion whose worker gave no answer."""
    if isinstance(error, TimeoutError):
        return timed_out(timeout)
    if not isinstance(error, ProcessExpired):
        return Outcome(None, Failure("exception", f"{type(error).__name__}: {error}"))
    if error.exitcode == _OUT_OF_MEMORY:
        return Outcome(None, Failure("memory", "it needed more memory than a reward worker may have"))
    if error.exitcode is not None and error.exitcode < 0:
        return Outcome(None, Failure("killed", f"its worker was killed by {signal.Signals(-error.exitcode).name}"))
    return Outcome(None, Failure("killed", f"its worker left with exit code {error.exitcode}"))


def _enter(descriptor: int, memory: int) -> None:
    """The first thing that a worker does."""
    os.close(descriptor)  # or the trainer would wait for this worker when the server dies
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the server
        resource.setrlimit(resource.RLIMIT_DATA, (memory, resource.getrlimit(resource.RLIMIT_DATA)[1]))
        Path("/proc/self/oom_score_adj").write_text("900")  # rather this one than the trainer


def _score(
    index: int, columns: dict[str, list[Any]], shared: dict[str, Any], count: int, timeout: float, concurrency: int
) -> list[Outcome]:
    """What a worker does."""
    reward = _rewards[index]
    try:
        if reward.is_async and not reward.settings.batched:
            samples = [{name: [v[row]] for name, v in columns.items()} | shared for row in range(count)]
            return asyncio.run(call_async(reward, samples, timeout=timeout, concurrency=concurrency))
        return call(reward, columns | shared, count)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
