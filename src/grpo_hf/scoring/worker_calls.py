"""What happens in a worker: it takes on limits, and calls rewards that it has inherited.

The server (worker_server.py) loads the rewards and forks workers, which pebble gives calls to.
"""

import asyncio
import ctypes
import os
import pickle
import resource
import signal
import sys
from contextlib import suppress
from functools import lru_cache
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import cloudpickle

from .calling import Scored, columns_at
from .outcomes import Outcome, call, call_async
from .reward import Reward

# How a worker leaves whose memory is used up, by this completion or by those before it.
OUT_OF_MEMORY = 77
# Of 1000: the kernel shall rather kill a worker than the trainer when memory runs out.
_KILL_ME_FIRST = "900"
# An option of prctl(2), from <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1

# The server fills it before it forks; None for a reward that cannot be loaded there.
rewards: list[Reward | None] = []


def enter_worker(descriptor: int, memory: int) -> None:
    """Do what a worker does first."""
    # With the socket open here the trainer would wait for this worker when the server dies.
    os.close(descriptor)
    os.setsid()
    # A reward may start processes of its own, which multiprocessing forbids to its daemons.
    current_process().daemon = False
    if sys.platform == "linux":
        # Die with the server.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        hard_limit = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (memory, hard_limit))
        # Not every container lets a process write there.
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_KILL_ME_FIRST)


def score_all(index: int, columns: bytes, shared: bytes | str, count: int) -> Scored:
    """Call a reward with all completions, in a worker, and see what it does to their lists."""
    reward = rewards[index]
    assert reward is not None
    try:
        lists = pickle.loads(columns)
        before = _pickled(lists)
        outcomes = call(reward, lists | _shared_of(shared), count)
        return Scored(outcomes, changed=_pickled(lists) != before)
    # Nothing can be relied on in a process without memory, so it leaves at once.
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _pickled(lists: dict[str, Any]) -> bytes | None:
    """Return columns as bytes, or None where that is not possible."""
    # Their objects, or what a reward has put among them, may raise anything.
    try:
        return cloudpickle.dumps(lists)
    except Exception:
        return None


def score(
    index: int,
    columns: bytes,
    shared: bytes | str,
    count: int,
    timeout: float = 0.0,
    concurrency: int = 0,
) -> list[Outcome]:
    """Call a reward in a worker: once, or with `concurrency` for each completion."""
    reward = rewards[index]
    assert reward is not None
    try:
        lists = pickle.loads(columns)
        if concurrency:
            samples = [columns_at(lists, [row]) | _shared_of(shared) for row in range(count)]
            work = call_async(reward, samples, timeout=timeout, concurrency=concurrency)
            return asyncio.run(work)
        return call(reward, lists | _shared_of(shared), count)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _shared_of(shared: bytes | str) -> dict[str, Any]:
    if isinstance(shared, bytes):
        return pickle.loads(shared)
    return _read_shared(shared)


# The last one only: a rollout's completions share it, and the next rollout has another.
@lru_cache(maxsize=1)
def _read_shared(file: str) -> dict[str, Any]:
    return pickle.loads(Path(file).read_bytes())
