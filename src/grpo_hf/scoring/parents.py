"""Notice that the process which started this one has gone."""

import os
import threading
import time
from collections.abc import Callable

# Seconds between two looks; a look is a system call.
_EVERY = 0.5


def when_parent_ends(act: Callable[[], None], parent: int | None = None) -> None:
    """Call a function on a thread of its own when the parent of this process has ended.

    Args:
        parent: the id of the process that started this one, from itself: it may have ended before
            this call. None for the parent at this call.

    The kernel's own way, PR_SET_PDEATHSIG, goes by the thread that started a process, and a reward
    process is started from threads that end long before the run.
    """
    known = os.getppid() if parent is None else parent

    def watch() -> None:
        # An orphan gets another parent.
        while os.getppid() == known:
            time.sleep(_EVERY)
        act()

    threading.Thread(target=watch, name="watches the parent", daemon=True).start()
