"""The process that scores: it holds no model and no device, and forks workers.

    python -c "..." (worker_client.py)
        trainer  --columns-->   server  --completions-->  worker, worker, ...
                 <--outcomes--          <--outcomes--

The trainer cannot fork workers itself: it holds CUDA and threads. This process is started afresh,
imports the rewards, and is then cheap to fork, so that a worker that had to be killed is replaced
in milliseconds. Workers are pebble's: it takes the time of each call and kills the worker whose
time is up.
"""

import importlib
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pebble import CONSTS, ProcessPool

from .calling import Job, Scored
from .parents import when_parent_ends
from .reward import Reward
from .user_files import import_file
from .worker_calls import enter_worker, rewards
from .worker_jobs import Pools, Scoring, adopt_orphans, end_orphans

# After this many completions a worker is replaced, and with it whatever rewards have leaked.
_TASKS = 2000
# Seconds between SIGTERM and SIGKILL for a worker whose time is up.
_TERM_TIMEOUT = 0.5
# Seconds between pebble's looks at the clock: a hang costs its time-out and that much.
_CLOCK_UNIT = 0.02

# Seconds that the server has to end by itself when the trainer has gone.
_ENDING = 5.0
# Bytes of what all completions share, from which on it travels in a file.
_LARGE = 2**14


def main(descriptor: int, workers: int, memory: int, parent: int) -> None:
    """Serve one trainer until it closes its end of the connection.

    Args:
        descriptor: of the socket to the trainer.
        workers: how many completions are scored at a time.
        memory: bytes that a worker may use.
        parent: the trainer's process.
    """
    # Ctrl-C is for the trainer, which then closes the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    when_parent_ends(_end, parent)
    connection = Connection(descriptor)
    try:
        connection.send(_load_all(connection.recv()))
    except (EOFError, OSError):
        return
    if any(reward.reads("trainer_state") for reward in rewards if reward is not None):
        # A state is an object of this module, and importing it takes longer than a completion may.
        importlib.import_module("transformers.trainer_callback")
    adopt_orphans()
    CONSTS.term_timeout = _TERM_TIMEOUT
    CONSTS.sleep_unit = _CLOCK_UNIT
    settings: dict[str, Any] = {
        "initializer": enter_worker,
        "initargs": (descriptor, memory),
        "context": get_context("fork"),
    }
    with ExitStack() as stack:
        workers_of_one = stack.enter_context(ProcessPool(workers, max_tasks=_TASKS, **settings))
        # One for each reward. A call with all completions waits more than it computes, and has its
        # own pool of threads where it does not. So it takes no worker from calls of one completion,
        # nor from another reward's.
        of_all = [stack.enter_context(ProcessPool(1, **settings)) for _ in rewards]
        pools = [workers_of_one, *of_all]
        try:
            # Asking starts the workers. On this thread, because they die with the one that has
            # forked them.
            if all([pool.active for pool in pools]):
                _serve(connection, Pools(workers_of_one, of_all, workers))
        finally:
            for pool in pools:
                pool.stop()
            for pool in pools:
                pool.join()
            end_orphans()


def _end() -> None:
    """Leave without the trainer, whatever a reward or its module waits for."""
    time.sleep(_ENDING)
    os._exit(1)


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
        rewards.append(None)
        return f"{type(error).__name__}: {error}"
    for module in reward.settings.imports:
        # The reward itself says what to do about a package that is missing.
        with suppress(ImportError):
            importlib.import_module(module)
    rewards.append(reward)
    return ""


def _serve(connection: Connection, pools: Pools) -> None:
    # Answers come from several threads, and a message must not be torn by another.
    sending = threading.Lock()

    def answer(number: int, scored: Scored | str) -> None:
        with sending:
            try:
                connection.send((number, scored))
            # The trainer has gone, and nobody will ever ask again.
            except OSError:
                os._exit(1)

    while True:
        try:
            number, job = connection.recv()
        except (EOFError, OSError):
            return
        # A thread waits for the calls of a job, so that rewards do not wait for each other.
        threading.Thread(target=_score_job, args=(number, job, pools, answer), daemon=True).start()


def _score_job(
    number: int, job: Job, pools: Pools, answer: Callable[[int, Scored | str], None]
) -> None:
    try:
        columns = pickle.loads(job.columns)
        # Workers read it, and say nothing of value where they cannot.
        pickle.loads(job.shared)
    # A class that this process does not know, for one.
    except Exception as error:
        answer(number, f"{type(error).__name__}: {error}")
        return
    try:
        with _shared_file(job.shared) as shared:
            scored = Scoring(job, columns, shared, pools).scored()
    # A broken pool, or a full disk: the trainer starts this process anew, and sends the job again.
    except Exception:
        os._exit(1)
    answer(number, scored)


@contextmanager
def _shared_file(pickled: bytes) -> Iterator[bytes | str]:
    """Yield how a worker gets what all completions share: as it is, or by the name of a file."""
    if len(pickled) < _LARGE:
        yield pickled
        return
    # The history of a long run would otherwise be sent with every completion.
    with tempfile.NamedTemporaryFile() as file:
        file.write(pickled)
        file.flush()
        yield file.name
