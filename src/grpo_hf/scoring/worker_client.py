"""The trainer's end of the process that scores: starts it, sends completions, outlives it.

The other end is worker_server.py. A reward travels as pickle writes it down: by the name of its
module where that can be imported, and by value where it is defined in a script, a notebook or
another function. What a reward changes in a worker stays there, so only rewards come here that
refer to nothing that can change (references.py), or whose authors say so.
"""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import psutil

from .calling import Job, Scored
from .outcomes import Failure, Outcome
from .reward import Reward
from .sandbox_tiers import said_so_far
from .user_files import file_modules

# Bytes of a reward that travels by value; a larger one has caught a dataset or a model.
_HEAVY = 32 * 2**20
# Seconds that importing the modules of the rewards may take; some load a model.
_LOADING = 300.0
# All workers together may use this share of the machine's memory, and each of them this much at
# least, because importing torch alone takes a good part of it.
_MEMORY_SHARE = 0.5
_LEAST_MEMORY = 2 * 2**30
# Seconds that the process has to end by itself when its connection closes.
_ENDING = 5
# Not multiprocessing's `spawn`, which would run a script without a `__main__` guard again.
_PROGRAM = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    "from grpo_hf.scoring.worker_server import main; main(**arguments)"
)


class CannotTravelError(Exception):
    """A reward, or what it is called with, cannot be sent to another process."""


class ServerDiedError(Exception):
    """The process that scores has gone."""


def pack(reward: Reward) -> tuple[list[str], bytes]:
    """Return a reward as another process can load it: files to import first, and the pickle.

    Raises:
        CannotTravelError: it cannot be pickled, or is too large for that.
    """
    if not hasattr(os, "fork"):
        raise CannotTravelError("this system does not fork processes")
    for name, cell in zip(*_closure(reward.function), strict=True):
        try:
            _ = cell.cell_contents
        except ValueError:
            raise CannotTravelError(f"it refers to {name!r}, which has no value yet") from None
    try:
        pickled = cloudpickle.dumps(reward)
    # Pickling runs code of the user's objects, which may raise anything.
    except Exception as error:
        raise CannotTravelError(f"{type(error).__name__}: {error}") from error
    if len(pickled) > _HEAVY:
        raise CannotTravelError(f"it carries {len(pickled) / 2**20:,.0f} MiB with it")
    return file_modules(), pickled


def pickled_columns(columns: dict[str, Any]) -> bytes:
    """Return what a reward is called with as it can be sent.

    Raises:
        CannotTravelError: it cannot be pickled.
    """
    try:
        return cloudpickle.dumps(columns)
    # Here, too, code of the user's objects runs.
    except Exception as error:
        raise CannotTravelError(f"{type(error).__name__}: {error}") from error


def _closure(function: Any) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Return names and cells of the variables that a function has from another one around it."""
    code = getattr(function, "__code__", None)
    return (code.co_freevars, function.__closure__ or ()) if code is not None else ((), ())


class RewardProcess:
    """One process that scores, with its workers; it is started at once, and again when it has died.

    Args:
        rewards: as `pack` made them; jobs name them by index.
        workers: how many completions are scored at a time.
    """

    def __init__(self, rewards: Sequence[tuple[list[str], bytes]], workers: int) -> None:
        self._rewards = list(rewards)
        self._workers = workers
        self._numbers = itertools.count()
        # A thread may begin to score while the main thread asks for another reward.
        self._lock = threading.Lock()
        self._start()

    def unloadable(self) -> dict[int, str]:
        """Wait until the process has loaded the rewards.

        Returns:
            Why it could not load some of them, by their index.
        """
        try:
            return self._loaded.result(_LOADING)
        except ServerDiedError:
            reason = "the process that scores ended"
        except TimeoutError:
            reason = "loading took too long"
        return dict.fromkeys(range(len(self._rewards)), reason)

    def submit(self, job: Job) -> "Future[Scored]":
        """Begin to score.

        Returns:
            The outcomes and findings; or, as exceptions, `CannotTravelError` if the columns cannot
            be read there, and `ServerDiedError` if the process has died.
        """
        future: Future[Scored] = Future()
        with self._lock:
            # The process may have been killed since, by a reward or by the kernel.
            if self._process.poll() is not None or not self._reader.is_alive():
                self._stop()
                self._start()
            number = next(self._numbers)
            self._pending[number] = future
            try:
                self._connection.send((number, job))
            except OSError:
                self._pending.pop(number, None)
                future.set_exception(ServerDiedError())
        return future

    def close(self) -> None:
        """End the process and its workers."""
        self._stop()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        memory = max(_LEAST_MEMORY, int(_MEMORY_SHARE * _machine_memory() / self._workers))
        arguments = {
            "path": sys.path,
            "descriptor": theirs.fileno(),
            "workers": self._workers,
            "memory": memory,
            "parent": os.getpid(),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(arguments)],
            pass_fds=[theirs.fileno()],
            # Ctrl-C is for the trainer, which then closes the connection.
            start_new_session=True,
            # Workers share the cores.
            env={**os.environ, "OMP_NUM_THREADS": "1", **said_so_far()},
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._connection.send(self._rewards)
        self._pending: dict[int, Future[Scored]] = {}
        self._loaded: Future[dict[int, str]] = Future()
        reading = (self._connection, self._pending, self._loaded)
        self._reader = threading.Thread(target=_read, args=reading, daemon=True)
        self._reader.start()
        self._stop = weakref.finalize(self, _stop, self._process, self._connection, os.getpid())


def _read(
    connection: Connection,
    pending: "dict[int, Future[Scored]]",
    loaded: "Future[dict[int, str]]",
) -> None:
    """Hand outcomes to who waits for them, until the connection closes."""
    try:
        loaded.set_result(connection.recv())
        while True:
            number, scored = connection.recv()
            future = pending.pop(number)
            if isinstance(scored, str):
                future.set_exception(CannotTravelError(scored))
            else:
                future.set_result(scored)
    # Whatever it was, nothing more comes.
    except Exception:
        if not loaded.done():
            loaded.set_exception(ServerDiedError())
        for waiting in list(pending.values()):
            waiting.set_exception(ServerDiedError())
        pending.clear()


def _machine_memory() -> int:
    """Return the bytes of this machine, or of the container that this is."""
    total = int(psutil.virtual_memory().total)
    # There may be no control groups, or no limit in them ("max").
    with suppress(OSError, ValueError):
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def _stop(process: "subprocess.Popen[bytes]", connection: Connection, owner: int) -> None:
    # A fork of the trainer ends, and the process is not its own.
    if os.getpid() != owner:
        return
    try:
        sock = socket.socket(fileno=os.dup(connection.fileno()))
        # This makes the reader's `recv` return, which closing alone would not do.
        sock.shutdown(socket.SHUT_RDWR)
        sock.close()
    except OSError:
        pass
    try:
        process.wait(timeout=_ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    connection.close()


def lost(count: int) -> list[Outcome]:
    """Return the outcomes of completions with which the process died twice."""
    failure = Failure("killed", "the process that scores died with it, twice")
    return [Outcome(None, failure)] * count
