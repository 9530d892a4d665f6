"""A launcher that dies takes its processes along: they notice, and leave as if asked by SIGTERM.

`accelerate launch` that is killed leaves its processes running, on devices that nobody sees are
taken. A program that was started without a launcher goes on when its shell has gone.
"""

import os
import signal
import time
from functools import cache

from ..scoring.parents import when_parent_ends
from . import signals

# Set by torch's launcher for several processes, and by accelerate's for one.
_MARKS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
# Seconds to leave in. Without a launcher nobody ends a process that waits for others for ever.
_PATIENCE = 300.0


# Once per process: there is one parent.
@cache
def leave_with_launcher() -> None:
    """Ask this process to leave when the launcher that started it has ended."""
    if any(mark in os.environ for mark in _MARKS):
        when_parent_ends(_leave)


def _leave() -> None:
    signals.say_now("The launcher has ended, and this run with it.")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    signals.leave_at_once(signal.SIGTERM)
