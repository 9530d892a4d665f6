"""How long a reward may take before it counts as hanging, and who is being waited for.

A time-out that nobody set stops hangs, not slow rewards: a judge may take 12 s for a completion,
and another one waits for its provider to let it go on.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .outcomes import Outcome
from .settings import LEAST_SECONDS

logger = logging.getLogger(__name__)

# A call may take so many times what the slowest one took until now.
_TIMES = 30.0
# Seconds for each completion of a call about which nothing is known yet, and of a group after a
# call with all of them took too long: the reward may be slow for the first time, as a judge of
# answers in a form that no answer had before.
_UNKNOWN = 30.0
# Seconds after which it is said who is waited for; then after twice as long, and so on.
_FIRST_WORD = 30.0


class Patience:
    """The seconds that calls of one reward may take.

    Args:
        timeout: what was set for a completion; None: by what calls took until now.
        of_call: what was set for a call with all completions; None: by `timeout`.
    """

    def __init__(self, timeout: float | None = None, of_call: float | None = None) -> None:
        self._timeout = timeout
        self._of_call = of_call
        self._slowest = 0.0

    def learn(self, outcomes: Sequence[Outcome]) -> None:
        """Note how long completions took that did not fail."""
        for outcome in outcomes:
            if outcome.failure is None:
                self._slowest = max(self._slowest, outcome.seconds)

    def for_one(self) -> float:
        """Return the seconds for a completion that is called alone."""
        return self._timeout or max(LEAST_SECONDS, _TIMES * self._slowest)

    def for_all(self, count: int) -> float:
        """Return the seconds for a call with `count` completions."""
        if self._of_call is not None:
            return self._of_call
        usual = max(LEAST_SECONDS, _TIMES * self._slowest * count)
        if self._timeout is None:
            return usual if self._slowest else max(LEAST_SECONDS, _UNKNOWN * count)
        # No more than the completions might take one after the other, which is hours for many.
        most = self._timeout * count
        return min(most, max(usual, self._timeout)) if self._slowest else most

    def by_groups(self) -> float:
        """Return the least seconds for each completion of a group that is called a second time."""
        return 0.0 if self._timeout or self._of_call else _UNKNOWN


@contextmanager
def said_to_be_waited_for(what: str, limit: float | None = None) -> Iterator[None]:
    """Say who is waited for, when a block takes long.

    Args:
        limit: seconds after which a call ends, if any.
    """
    end = ""
    if limit is not None:
        end = (
            f" A call of it ends after {limit:.0f} s (--reward_timeout for each completion in it); "
            "what has failed is called again by groups, and then one by one."
        )
    start = time.monotonic()
    done = threading.Event()

    def say() -> None:
        wait = _FIRST_WORD
        while not done.wait(wait):
            logger.warning(f"Waiting for {what} for {time.monotonic() - start:.0f} s so far.{end}")
            # The wait so far, so that the next word comes after twice the time.
            wait = time.monotonic() - start

    thread = threading.Thread(target=say, name="waiting for a reward", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
