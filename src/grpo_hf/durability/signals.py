"""The signals that ask a program to leave: which they are, who handles them, what the exit code is.

A program imports this file before the heavy libraries, and it imports none of them.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Batch systems and clusters send the first and the third, terminals the other two.
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
# Whose handlers give way to those of a run: transformers' one saves in the middle of a step, and
# the others only raise.
_GIVE_WAY = ("signal", "_signal", "grpo_hf", "transformers")

# Seconds within which a second signal counts as the first: under `timeout --foreground` one Ctrl-C
# comes twice, from the terminal and from `timeout`, some milliseconds apart.
SAME_WITHIN = 0.5
# Seconds after which a signal is sent again.
_AGAIN_AFTER = 0.05


class Left(SystemExit):
    """A run has left because of a signal; it is where its last optimizer step ended."""


class Interrupted(KeyboardInterrupt):
    """A run has left because of Ctrl-C; it is where its last optimizer step ended."""


class Stopped(KeyboardInterrupt):
    """A signal came where no run trains.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.at = time.monotonic()


def exit_code(number: int) -> int:
    """Return the code that a program exits with because of a signal: 128 and its number.

    >>> exit_code(signal.SIGTERM)
    143
    """
    return 128 + number


def name_of(number: int) -> str:
    """Return what people call a signal.

    >>> name_of(signal.SIGINT), name_of(signal.SIGTERM)
    ('Ctrl-C', 'SIGTERM')
    """
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def left(number: int) -> BaseException:
    """Return what a run raises that has left: Python turns it into the exit code."""
    return Interrupted() if number == signal.SIGINT else Left(exit_code(number))


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Give the signals to a function for a block; afterwards they go where they went before.

    A signal that is ignored stays so, as SIGHUP under `nohup`, and one that the program handles
    itself stays with the program. Python allows handlers on the main thread alone: elsewhere the
    block changes nothing.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in _open_to_us():
            previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def sent_again(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Send a signal again whose `Stopped` was lost, for a block.

    Where a signal comes while Python runs a destructor or a callback of C, as often happens during
    imports, what the handler raises is printed, and the program goes on.

    Args:
        handler: of the signals, which raises `Stopped`.
    """
    before = sys.unraisablehook
    # Those that are on their way.
    under_way: list[int] = []

    def send(number: int) -> None:
        if number in under_way:
            under_way.remove(number)
            os.kill(os.getpid(), number)

    def hear(lost: Any) -> None:
        error = lost.exc_value
        if not isinstance(error, Stopped):
            before(lost)
            return
        # A handler may have given way to one that takes the next signal for the second one.
        signal.signal(error.number, handler)
        under_way.append(error.number)
        # From another thread and later, when the destructor has ended.
        again = threading.Timer(_AGAIN_AFTER, send, [error.number])
        again.daemon = True
        again.start()

    sys.unraisablehook = hear
    try:
        yield
        # The block was over before it came.
        if under_way:
            raise Stopped(under_way[0])
    finally:
        under_way.clear()
        sys.unraisablehook = before


def _open_to_us() -> Iterator[int]:
    for name in _NAMES:
        # Windows lacks some of them.
        number = getattr(signal, name, None)
        if number is None:
            continue
        current = signal.getsignal(number)
        if current == signal.SIG_IGN:
            continue
        module = getattr(current, "__module__", None) or ""
        if current == signal.SIG_DFL or module.partition(".")[0] in _GIVE_WAY:
            yield number


def leave_at_once(number: int) -> None:
    """End this process without anything that is due at its end, such as a traceback."""
    say_now(f"{name_of(number)} again: left at once; what was saved before is there.")
    os._exit(exit_code(number))


def end_on_next(first: float | None = None) -> None:
    """Let the next Ctrl-C end this process at once, for as long as the handlers are ours.

    Args:
        first: when the signal came that it follows, by `time.monotonic`; see `SAME_WITHIN`.
    """

    def leave(number: int, frame: Any) -> None:
        if first is None or time.monotonic() - first >= SAME_WITHIN:
            leave_at_once(number)

    signal.signal(signal.SIGINT, leave)


def say_now(text: str) -> None:
    """Write a line to stderr from a handler, in the first process of a run only."""
    # The launcher sets RANK. `print` may be in the middle of another line when a signal comes.
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"{text}\n".encode())
