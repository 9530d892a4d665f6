"""The process that scores: it holds no model and no device, and forks workers.

    python -c "..." (worker_client.py)
        trainer  --columns-->   server  --a completion-->  worker, worker, ...
                 <--outcomes--          <--an outcome--

The trainer cannot fork workers itself: it holds CUDA and threads. This process is started afresh,
imports the rewards, and is then cheap to fork, so that a worker that had to be killed is replaced
in milliseconds. Workers are pebble's: it takes the time of each completion and kills the worker
whose time is up.
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
from collections.abc import Callable, Sequence
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

# How a worker leaves whose memory is used up, by this completion or by those before it.
_OUT_OF_MEMORY = 77
# After this many completions a worker is replaced, and with it whatever rewards have leaked.
_TASKS = 2000
# Seconds that a call of several completions has beyond the time of its own.
_GRACE = 5.0
# Seconds between SIGTERM and SIGKILL for a worker whose time is up.
_TERM_TIMEOUT = 0.5
# Seconds between pebble's looks at the clock: a hang costs its time-out and that much.
_CLOCK_UNIT = 0.02
# Seconds to wait for an orphan that was killed.
_ORPHAN_TIMEOUT = 1
# Of 1000: the kernel shall rather kill a worker than the trainer when memory runs out.
_KILL_ME_FIRST = "900"

# Options of prctl(2), from <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# Workers inherit the rewards; None for one that cannot be loaded here.
_rewards: list[Reward | None] = []


@dataclass(frozen=True)
class Job:
    """Score completions by one reward.

    Args:
        number: of the job.
        reward: the index of the reward.
        pickled: two dictionaries: columns with a value per completion, and what all of them share.
        count: how many completions.
        timeout: of one call, in seconds.
    """

    number: int
    reward: int
    pickled: bytes
    count: int
    timeout: float


def main(descriptor: int, workers: int, memory: int) -> None:
    """Serve one trainer until it closes its end of the connection.

    Args:
        descriptor: of the socket to the trainer.
        workers: how many completions are scored at a time.
        memory: bytes that a worker may use.
    """
    # Ctrl-C is for the trainer, which then closes the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        connection.send(_load_all(connection.recv()))
    except (EOFError, OSError):
        return
    _adopt_orphans()
    CONSTS.term_timeout = _TERM_TIMEOUT
    CONSTS.sleep_unit = _CLOCK_UNIT
    settings: dict[str, Any] = {
        "initializer": _enter_worker,
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


def _load_all(packed: Sequence[tuple[list[str], bytes]]) -> dict[int, str]:
    """Load the rewards; return why some cannot be loaded, by their index."""
    reasons = {}
    for index, (files, pickled) in enumerate(packed):
        reason = _load(files, pickled)
        if reason:
            reasons[index] = reason
    return reasons


def _load(files: list[str], pickled: bytes) -> str:
    """Load a reward and what it wants to have imported; return why it cannot be loaded, if so."""
    try:
        for file in files:
            import_file(Path(file))
        reward: Reward = pickle.loads(pickled)
    # Loading runs code of the user's, which may raise anything.
    except Exception as error:
        _rewards.append(None)
        return f"{type(error).__name__}: {error}"
    for module in reward.settings.imports:
        # The reward itself says what to do about a package that is missing.
        with suppress(ImportError):
            importlib.import_module(module)
    _rewards.append(reward)
    return ""


def _serve(connection: Connection, pool: ProcessPool, workers: int) -> None:
    # Answers come from pebble's threads, and a message must not be torn by another.
    sending = threading.Lock()

    def answer(number: int, outcomes: list[Outcome] | str) -> None:
        with sending:
            try:
                connection.send((number, outcomes))
            # The trainer has gone, and nobody will ever ask again.
            except OSError:
                os._exit(1)

    while True:
        try:
            job = Job(*connection.recv())
        except (EOFError, OSError):
            return
        try:
            columns, shared = pickle.loads(job.pickled)
        # A class that this process does not know, for one.
        except Exception as error:
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
        self._job = job
        self._columns = columns
        self._shared = shared
        self._pool = pool
        self._answer = answer
        reward = _rewards[job.reward]
        # The trainer was told which rewards could not be loaded.
        assert reward is not None
        self._settings = reward.settings
        self._is_async = reward.is_async and not reward.settings.batched
        self._calls = job.count
        if self._is_async:
            self._calls = min(workers, self._settings.concurrency, job.count)
        self._outcomes: list[Outcome | None] = [None] * job.count
        self._left = job.count
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Give the completions to workers, in calls of one where they need not be together."""
        rows = list(range(self._job.count))
        if not rows:
            self._answer(self._job.number, [])
        elif self._settings.batched:
            self._schedule(rows)
        else:
            # `async def` rewards wait together, so a worker gets several of their completions.
            for start in range(self._calls):
                self._schedule(rows[start :: self._calls])

    def _schedule(self, rows: list[int], *, again: bool = False) -> None:
        """Give a worker these completions; `again` if it is their second time."""
        columns = {}
        for name, values in self._columns.items():
            columns[name] = [values[row] for row in rows]
        timeout = self._job.timeout
        concurrency = 1
        if self._is_async:
            concurrency = max(1, self._settings.concurrency // self._calls)
            # Each completion has its own time inside, and they go in rounds.
            timeout = timeout * ceil(len(rows) / concurrency) + _GRACE
        pickled = cloudpickle.dumps((columns, self._shared))
        work = (self._job.reward, pickled, len(rows), self._job.timeout, concurrency)
        future = self._pool.schedule(_score, args=work, timeout=timeout)
        future.add_done_callback(lambda done: self._take(rows, done, again))

    def _take(self, rows: list[int], future: "Future[list[Outcome]]", again: bool) -> None:
        """Take what became of a call; try again where it may not have been its own fault."""
        try:
            outcomes = future.result()
        # Whatever became of the worker, or of what it sent, is an outcome.
        except Exception as error:
            _end_orphans()
            if len(rows) > 1 and not self._settings.batched:
                # Find out whose fault it was.
                for row in rows:
                    self._schedule([row], again=again)
                return
            if _died_of_memory(error) and not again:
                # It may have been the memory that completions before it had leaked.
                self._schedule(rows, again=True)
                return
            outcomes = [_fate(error, self._job.timeout)] * len(rows)
        with self._lock:
            for row, outcome in zip(rows, outcomes, strict=True):
                self._outcomes[row] = outcome
            self._left -= len(rows)
            complete = self._left == 0
        if complete:
            all_outcomes = [outcome for outcome in self._outcomes if outcome is not None]
            self._answer(self._job.number, all_outcomes)


def _died_of_memory(error: Exception) -> bool:
    """Whether a worker left for want of memory, by itself or by the kernel's hand."""
    exit_codes = (_OUT_OF_MEMORY, -signal.SIGKILL)
    return isinstance(error, ProcessExpired) and error.exitcode in exit_codes


def _fate(error: Exception, timeout: float) -> Outcome:
    """Return the outcome of a completion whose worker gave no answer."""
    if isinstance(error, TimeoutError):
        return timed_out(timeout)
    if not isinstance(error, ProcessExpired):
        return Outcome(None, Failure("exception", f"{type(error).__name__}: {error}"))
    if error.exitcode == _OUT_OF_MEMORY:
        detail = "it needed more memory than a reward worker may have"
        return Outcome(None, Failure("memory", detail))
    if error.exitcode is not None and error.exitcode < 0:
        number = -error.exitcode
        # Real-time signals have numbers only.
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return Outcome(None, Failure("killed", f"its worker was killed by {name}"))
    return Outcome(None, Failure("killed", f"its worker left with exit code {error.exitcode}"))


def _adopt_orphans() -> None:
    """Become the parent of processes whose worker has gone, so that they can be found."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _end_orphans() -> None:
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


def _enter_worker(descriptor: int, memory: int) -> None:
    """Do what a worker does first."""
    # With the socket open here the trainer would wait for this worker when the server dies.
    os.close(descriptor)
    os.setsid()
    if sys.platform == "linux":
        # Die with the server.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        hard_limit = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (memory, hard_limit))
        # Not every container lets a process write there.
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_KILL_ME_FIRST)


def _score(
    index: int, pickled: bytes, count: int, timeout: float, concurrency: int
) -> list[Outcome]:
    """Score completions in a worker."""
    reward = _rewards[index]
    assert reward is not None
    try:
        columns, shared = pickle.loads(pickled)
        if reward.is_async and not reward.settings.batched:
            samples = []
            for row in range(count):
                sample = {name: [values[row]] for name, values in columns.items()}
                samples.append(sample | shared)
            work = call_async(reward, samples, timeout=timeout, concurrency=concurrency)
            return asyncio.run(work)
        return call(reward, columns | shared, count)
    # Nothing can be relied on in a process without memory, so it leaves at once.
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
