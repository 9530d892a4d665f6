"""What a program does around a run: quieten other libraries, and turn errors into messages."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ..durability import signals
from ..durability.launchers import leave_with_launcher
from ..errors import GrpoError
from ..run_files import say_first

# What a command says that needs them, before it imports them.
LOADING = "loading torch, transformers and trl ..."
STOPPED_TRAINING = (
    "stopped while no run was training. The same command starts again, or goes on from the last "
    "checkpoint, if there is one, with --resume_from_checkpoint auto."
)


def quiet() -> None:
    """Silence progress bars and warnings that a user of this library can do nothing about.

    Programs call it before the heavy imports; importing grpo_hf silences one line (quieting.py).
    """
    # The bars of datasets are about mapping, which takes milliseconds here.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # bitsandbytes warns about optional kernels that it did not find.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for library in ("transformers", "torch"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
    # The trainer pins memory by default, and torch warns about it on every CPU.
    warnings.filterwarnings(
        "ignore", message="'pin_memory' argument is set as true but no accelerator"
    )


def train_recipe(arguments: Sequence[str], default: Path) -> None:
    """Train the recipe that flags describe, or `default`: a program that adds nothing of its own.

    Args:
        default: the YAML file, where the flags name none.
    """
    quiet()
    with exit_on_error():
        from .recipe import read_recipe

        recipe = read_recipe(arguments, default=default)
        # This import takes seconds. It stands here so that a wrong setting is reported before it.
        from .train import train

        train(recipe)


@contextmanager
def exit_on_error(stopped: str = STOPPED_TRAINING) -> Iterator[None]:
    """Exit with code 2 on a `GrpoError`, whose message goes to stderr, and on signals with theirs.

    Only the first process prints a message. A second Ctrl-C leaves at once.

    Args:
        stopped: what is said after a signal where no run trains.
    """
    leave_with_launcher()
    _print_what_can_be_printed()
    try:
        with signals.handled(_stop), signals.sent_again(_stop):
            yield
    except GrpoError as error:
        say_first(f"error: {error}", to_stderr=True)
        raise SystemExit(2) from None
    except signals.Left:
        signals.end_on_next()
        raise
    except KeyboardInterrupt as error:
        signals.end_on_next(getattr(error, "at", None))
        number = getattr(error, "number", signal.SIGINT)
        # A run that was interrupted has said what became of it.
        if not isinstance(error, signals.Interrupted):
            say_first(f"{signals.name_of(number)}: {stopped}", to_stderr=True)
        raise SystemExit(signals.exit_code(number)) from None


def _print_what_can_be_printed() -> None:
    """Put a question mark in the place of what standard output cannot show, such as ± in ASCII."""
    # A notebook's output has another class, and takes everything.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _stop(number: int, frame: Any) -> None:
    """Unwind, so that what is half-made is cleared away; the second time leave at once."""
    stopped = signals.Stopped(number)
    signals.end_on_next(stopped.at)
    raise stopped
