"""A process of a run that ends takes the others along, and they say which it was and why.

Without this they end with an error of the network, or wait half an hour for what never comes.
torch's launcher gives each process a file for the error it ends with: what it shows at the end, and
what the processes of one machine find here.
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist
from accelerate.utils import gather_object
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from ..errors import GrpoError, PeerEndedError

# Set by torch's launcher; the folder of the file is named after the process's place.
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
# What the libraries under torch say when a connection has gone.
_OF_THE_NETWORK = ("gloo", "nccl", "closed by peer", "reset by peer")
# Seconds between two looks; seconds for a process to end after its connections have.
_EVERY = 0.2
_ENDING = 5.0
# Seconds that a process has to notice by itself that another has failed.
_NOTICING = 10.0


class Peers:
    """The other processes of a run.

    Args:
        alone: whether there are none.
    """

    def __init__(self, alone: bool) -> None:
        self._alone = alone
        # One that a program has caught, of a training before this one.
        if _ERROR_FILE in os.environ:
            Path(os.environ[_ERROR_FILE]).unlink(missing_ok=True)
        own = (os.environ.get("LOCAL_RANK", "0"), os.uname().nodename, os.getpid())
        # By their number; all processes have to ask here.
        self._others: list[tuple[str, str, int]] = [] if alone else gather_object([own])

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Leave the last words of this process where it fails; raise those of another.

        Raises:
            PeerEndedError: another process of the run has ended.
        """
        if self._alone:
            yield
            return
        finished = threading.Event()
        threading.Thread(target=self._watch, args=(finished,), daemon=True).start()
        try:
            yield
        except Exception as error:
            what = self._ended(_ENDING) if _is_of_the_network(error) else ""
            if what:
                raise PeerEndedError(what) from None
            # It writes nothing where no launcher asks for it.
            get_error_handler().record_exception(error)
            raise
        finally:
            finished.set()

    def _watch(self, finished: threading.Event) -> None:
        """End this process where it waits for one that has failed."""
        while not finished.wait(_EVERY):
            words = [self._words_of(rank) for rank in range(len(self._others))]
            if any(words) and not finished.wait(_NOTICING):
                # As a program ends on an error, and at once: its main thread waits for the other.
                os.write(2, f"error: {self._ended(0)}\n".encode())
                os._exit(2)

    def _ended(self, seconds: float) -> str:
        """Return which other process has ended and why, or nothing if none has for a while."""
        waited = threading.Event()
        for _ in range(int(seconds / _EVERY) + 1):
            for rank in range(len(self._others)):
                if words := self._words_of(rank):
                    return f"process {rank} of the run has failed, and this one with it: {words}"
            for rank in range(len(self._others)):
                if self._is_gone(rank):
                    return (
                        f"process {rank} of the run (pid {self._others[rank][2]}) has gone without "
                        "a word: it was killed, by the kernel if the memory was full. Go on with "
                        "--resume_from_checkpoint auto."
                    )
            waited.wait(_EVERY)
        return ""

    def _is_gone(self, rank: int) -> bool:
        _, host, process = self._others[rank]
        if host != os.uname().nodename:
            return False
        # The launcher has not taken note of its end yet.
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
        return True

    def _words_of(self, rank: int) -> str:
        """Return the error that another process of this machine has ended with, if any."""
        place, host, process = self._others[rank]
        own_file = os.environ.get(_ERROR_FILE)
        if not own_file or host != os.uname().nodename or process == os.getpid():
            return ""
        file = Path(own_file).parents[1] / place / Path(own_file).name
        # It is not there, or half written.
        with suppress(OSError, ValueError, KeyError):
            return _first_line(json.loads(file.read_text()))
        return ""


def _first_line(reply: dict[str, Any]) -> str:
    """Return the error of a file that torch has written, without its traceback."""
    message = reply["message"]
    text = message if isinstance(message, str) else message["message"]
    return text.strip()


def _is_of_the_network(error: Exception) -> bool:
    """Return whether an error may come of a process that has gone."""
    # An error of ours may quote one of a reward's server.
    if isinstance(error, GrpoError):
        return False
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _OF_THE_NETWORK)
