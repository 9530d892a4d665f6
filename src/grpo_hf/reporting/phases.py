"""Where the seconds of a step go: rollout, scoring, reference pass; what is left is the update."""

import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

# In metrics.jsonl, before the name of a phase. `step_time` is TRL's name for all of a step.
PREFIX = "time/"

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")
# Hears the name of each phase that begins or goes on, and None for the update.
Listener = Callable[[str | None], None]


class PhaseClock:
    """Add up the seconds of each phase; those of an inner phase do not count for its outer one."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.listeners: list[Listener] = []
        self._now = now
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._phases: list[str] = []
        self._since = 0.0

    def begin(self, phase: str) -> None:
        """Begin a phase, within the one that is under way, if there is one."""
        self._count()
        self._phases.append(phase)
        self._tell()

    def end(self) -> None:
        """End the phase that began last."""
        self._count()
        self._phases.pop()
        self._tell()

    def means(self, steps: int) -> dict[str, float]:
        """Return the seconds of each phase as metrics, per step, and begin anew.

        Args:
            steps: optimizer steps since the last call.
        """
        metrics = {}
        for phase, seconds in self._seconds.items():
            metrics[PREFIX + phase] = seconds / max(steps, 1)
        # Kept with 0 seconds: a step on an earlier rollout makes none.
        self._seconds = defaultdict(float, dict.fromkeys(self._seconds, 0.0))
        return metrics

    def _count(self) -> None:
        now = self._now()
        if self._phases:
            self._seconds[self._phases[-1]] += now - self._since
        self._since = now

    def _tell(self) -> None:
        for listener in self.listeners:
            listener(self._phases[-1] if self._phases else None)


# One for a process, which runs one training at a time.
CLOCK = PhaseClock()


def timed(
    phase: str,
) -> Callable[
    [Callable[Concatenate[Any, Parameters], Returned]],
    Callable[Concatenate[Any, Parameters], Returned],
]:
    """Decorate a method of a trainer, whose calls in training are a phase of the step."""

    def decorate(
        method: Callable[Concatenate[Any, Parameters], Returned],
    ) -> Callable[Concatenate[Any, Parameters], Returned]:
        @wraps(method)
        def within(
            trainer: Any, *positional: Parameters.args, **named: Parameters.kwargs
        ) -> Returned:
            if not trainer.model.training:
                return method(trainer, *positional, **named)
            CLOCK.begin(phase)
            try:
                return method(trainer, *positional, **named)
            finally:
                CLOCK.end()

        return within

    return decorate
