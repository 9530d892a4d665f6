"""Keep what other libraries say about themselves out of a run's output."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import GrpoError


def quiet() -> None:
    """Silence progress bars and warnings that a user of this library can do nothing about.

    Programs call it before the heavy imports; importing grpo_hf silences nothing.
    """
    os.environ.setdefault(
        "HF_DATASETS_DISABLE_PROGRESS_BARS", "1"
    )  # ours are milliseconds of mapping
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # optional kernels that it did not find
    for library in ("transformers", "torch"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
    warnings.filterwarnings(
        "ignore", message="'pin_memory' argument is set as true but no accelerator"
    )


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn a `GrpoError` into its message on stderr (first process only) and exit code 2, and Ctrl-C into 130."""
    try:
        yield
    except GrpoError as error:
        _say(f"error: {error}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        _say(
            "interrupted; --resume_from_checkpoint true goes on from the last checkpoint, if there is one."
        )
        raise SystemExit(130) from None


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)
