"""What a program does around a run: quieten other libraries, and turn errors into messages."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import GrpoError

# The shell's convention: 128 + 2, the number of the signal that Ctrl-C sends.
_INTERRUPTED = 130


def quiet() -> None:
    """Silence progress bars and warnings that a user of this library can do nothing about.

    Programs call it before the heavy imports; importing grpo_hf silences nothing.
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


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Exit with code 2 on a `GrpoError`, whose message goes to stderr, and with 130 on Ctrl-C.

    Only the first process prints a message.
    """
    try:
        yield
    except GrpoError as error:
        _say(f"error: {error}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _say(
            "interrupted; --resume_from_checkpoint true goes on from the last checkpoint, if there "
            "is one."
        )
        raise SystemExit(_INTERRUPTED) from None


def _say(text: str) -> None:
    """Print to stderr in the first process only: every process raises the same error."""
    # The launcher sets RANK. accelerate would know it too, but it is slow to import.
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)
