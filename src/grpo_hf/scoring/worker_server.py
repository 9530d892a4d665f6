"""The process that scores: it holds no model and no device, and forks a worker for every
completion's safety.

    python -c "..." (scoring/worker_client.py)   trainer  --columns-->  server  --one completion-->
    worker, worker, ...
                                              <--outcomes--         <--outcome--

The trainer cannot fork workers itself: it holds CUDA and threads. This process is started
afresh, imports the rewards, and is then cheap to fork, so that a worker that had to be killed is
replaced in milliseconds. Workers are pebble's: it takes the time of each completion and kills
the worker whose time is up.
"""

import asyncio
import ctypes
import importlib
import os
import pickle
import resource
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
from pebble import CONSTS, ProcessExpired, ProcessPool

from .outcomes import Failure, Outcome, call, call_async, timed_out
from .registry import import_file
from .reward import Reward

_OUT_OF_MEMORY = (
    77  # how a worker leaves whose memory is used up, by this completion or by those before it
)
_TASKS = 2000  # after as many a worker is replaced, and with it what rewards have leaked
_GRACE = 5.0  # seconds that a call of several completions has beyond the time of its own

_rewards: list[Reward | None] = []  # workers inherit them; None for one that cannot be loaded here


@dataclass(frozen=True)
class Job:
    """Score `count` completions by the reward of an index.

    `pickled` holds two dictionaries: columns with a value per completion, and what all of them
        share. `timeout` is that of one call, in seconds.
    """

    number: int
    reward: int
    pickled: bytes
    count: int
    timeout: float


def main(descriptor: int, workers: int, memory: int) -> None:
    """Serve one trainer until it closes its end of the connection."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the trainer, which then closes the connection
    connection = Connection(descriptor)
    try:
        connection.send(
            {i: reason for i, packed in enumerate(connection.recv()) if (reason := _load(*packed))}
        )
    except (EOFError, OSError):
        return
    _adopt()
    CONSTS.term_timeout = 0.5  # seconds between SIGTERM and SIGKILL
    CONSTS.sleep_unit = 0.02  # seconds between looks at the clock
    settings: dict[str, Any] = {
        "initializer": _enter,
        "initargs": (descriptor, memory),
        "max_tasks": _TASKS,
    }
    with ProcessPool(workers, context=get_context("fork"), **settings) as pool:
        try:
            _serve(connection, pool, workers)
        finally:
            pool.stop()
            pool.join()
            _end_orphans()


def _load(files: list[str], pickled: bytes) -> str:
    """Load a reward and what it wants to have imported; says why it cannot be loaded."""
    try:
        for file in files:
            import_file(Path(file))
        reward: Reward = pickle.loads(pickled)
    except Exception as error:  # code of the user's, which may raise anything
        _rewards.append(None)
        return f"{type(error).__name__}: {error}"
    for module in reward.settings.imports:
        with suppress(ImportError):  # the reward says what to do about it
            importlib.import_module(module)
    _rewards.append(reward)
    return ""


def _serve(connection: Connection, pool: ProcessPool, workers: int) -> None:
    sending = threading.Lock()

    def answer(number: int, outcomes: list[Outcome] | str) -> None:
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
        try:
            columns, shared = pickle.loads(job.pickled)
        except Exception as error:  # a class that this process does not know, for one
            answer(job.number, f"{type(error).__name__}: {error}")
            continue
        _Scoring(job, columns, shared, pool, workers, answer).begin()


class _Scoring:
    """One job under way: its calls, and the outcomes so far."""

    def __init__(
        self,
        job: Job,
        columns: dict[str, list[Any]],
        shared: dict[str, Any],
        pool: ProcessPool,
        workers: int,
        answer: Callable[[int, list[Outcome]], None],
    ) -> None:
        self._job, self._columns, self._shared = job, columns, shared
        self._pool, self._answer = pool, answer
        reward = _rewards[job.reward]
        assert reward is not None  # the trainer was told
        self._settings, self._is_async = (
            reward.settings,
            reward.is_async and not reward.settings.batched,
        )
        self._calls = (
            min(workers, self._settings.concurrency, job.count) if self._is_async else job.count
        )
        self._outcomes: list[Outcome | None] = [None] * job.count
        self._left = job.count
        self._lock = threading.Lock()

    def begin(self) -> None:
        rows = list(range(self._job.count))
        if not rows:
            self._answer(self._job.number, [])
        elif self._settings.batched:
            self._schedule(rows)
        else:  # `async def` rewards wait together
            for start in range(self._calls):
                self._schedule(rows[start :: self._calls])

    def _schedule(self, rows: list[int], *, again: bool = False) -> None:
        """Give a worker these completions; `again` if it is their second time."""
        columns = {name: [values[row] for row in rows] for name, values in self._columns.items()}
        timeout, concurrency = self._job.timeout, 1
        if self._is_async:
            concurrency = max(1, self._settings.concurrency // self._calls)
            timeout = (
                timeout * ceil(len(rows) / concurrency) + _GRACE
            )  # each has its own time inside
        work = (
            self._job.reward,
            cloudpickle.dumps((columns, self._shared)),
            len(rows),
            self._job.timeout,
            concurrency,
        )
        future = self._pool.schedule(_score, args=work, timeout=timeout)
        future.add_done_callback(lambda done: self._settle(rows, done, again))

    def _settle(self, rows: list[int], future: "Future[list[Outcome]]", again: bool) -> None:
        try:
            outcomes = future.result()
        except (
            Exception
        ) as error:  # whatever became of the worker, or of what it sent, is an outcome
            died_of_memory = isinstance(error, ProcessExpired) and error.exitcode in (
                _OUT_OF_MEMORY,
                -signal.SIGKILL,
            )
            _end_orphans()
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
            self._answer(
                self._job.number, [outcome for outcome in self._outcomes if outcome is not None]
            )


def _fate(error: Exception, timeout: float) -> Outcome:
    """The outcome of a completion whose worker gave no answer."""
    if isinstance(error, TimeoutError):
        return timed_out(timeout)
    if not isinstance(error, ProcessExpired):
        return Outcome(None, Failure("exception", f"{type(error).__name__}: {error}"))
    if error.exitcode == _OUT_OF_MEMORY:
        return Outcome(
            None, Failure("memory", "it needed more memory than a reward worker may have")
        )
    if error.exitcode is not None and error.exitcode < 0:
        number = -error.exitcode
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return Outcome(None, Failure("killed", f"its worker was killed by {name}"))
    return Outcome(None, Failure("killed", f"its worker left with exit code {error.exitcode}"))


def _adopt() -> None:
    """Become the parent of processes whose worker has gone (PR_SET_CHILD_SUBREAPER), so that
    they can be found.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)


def _end_orphans() -> None:
    """Kill what workers have started and left behind. A worker leads a session; what it starts
    belongs to that.
    """
    own = os.getsid(0)
    for child in psutil.Process().children():
        with suppress(psutil.Error, OSError):
            if os.getsid(child.pid) not in (own, child.pid):
                child.kill()
                child.wait(1)


def _enter(descriptor: int, memory: int) -> None:
    """The first thing that a worker does."""
    os.close(descriptor)  # or the trainer would wait for this worker when the server dies
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the server
        resource.setrlimit(
            resource.RLIMIT_DATA, (memory, resource.getrlimit(resource.RLIMIT_DATA)[1])
        )
        with suppress(OSError):  # rather this one than the trainer
            Path("/proc/self/oom_score_adj").write_text("900")


def _score(
    index: int, pickled: bytes, count: int, timeout: float, concurrency: int
) -> list[Outcome]:
    """What a worker does."""
    reward = _rewards[index]
    assert reward is not None
    try:
        columns, shared = pickle.loads(pickled)
        if reward.is_async and not reward.settings.batched:
            samples = [
                {name: [v[row]] for name, v in columns.items()} | shared for row in range(count)
            ]
            return asyncio.run(
                call_async(reward, samples, timeout=timeout, concurrency=concurrency)
            )
        return call(reward, columns | shared, count)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
