"""What became of a reward for a completion: a number, "cannot judge", or a failure with its reason.

A failure is data. Its value is None, as that of a completion that cannot be judged, but it says that the reward did not
do its work; the run counts failures, leaves their completions out, and stops where they are too many (scoring/scorer.py).
"""

import asyncio
import math
import reprlib
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from numbers import Real
from typing import Any

from ..data.completions import completion_text
from ..errors import RewardSpecError
from .reward import Reward
from .steps import StepRewards

# Why a reward has no value although it should have one. `settings` ends a run at once: no other step can do better.
REASONS = (
    "exception",
    "timeout",
    "killed",
    "memory",
    "wrong type",
    "not finite",
    "wrong length",
    "settings",
)

_LARGEST = 3.4028234663852886e38  # float32's, which the trainer keeps rewards in
_DETAIL = 4000  # characters of a traceback that are kept, from its end


@dataclass(frozen=True)
class Failure:
    """One of `REASONS`, and what is known about it: a message, or a traceback that ends in one."""

    reason: str
    detail: str

    @property
    def summary(self) -> str:
        """The last line."""
        return self.detail.strip().rpartition("\n")[2]


@dataclass(frozen=True)
class Outcome:
    """The value of one completion, or its failure; how long it took, in seconds; and what the reward logged.

    `steps` is what a step reward says; the value is then the mean of it.
    """

    value: float | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    extras: list[tuple[str, Any]] = field(
        default_factory=list
    )  # columns of the completions table: numbers and text
    metrics: list[tuple[str, float]] = field(default_factory=list)
    steps: StepRewards | None = None


class _Log:
    """What a reward logs during one call about `count` completions."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.extras: list[list[tuple[str, Any]]] = [[] for _ in range(count)]
        self.metrics: list[tuple[str, float]] = []

    def extra(self, column: str, values: Sequence[Any]) -> None:
        if len(values) != self._count:
            raise ValueError(
                f"log_extra({column!r}, ...) got {len(values)} values for {self._count} completions."
            )
        for row, value in zip(self.extras, values, strict=True):
            row.append(
                (
                    column,
                    value if isinstance(value, str | int | float | bool | None) else str(value),
                )
            )

    def metric(self, name: str, value: float) -> None:
        self.metrics.append((name, float(value)))


def call(reward: Reward, columns: dict[str, Any], count: int) -> list[Outcome]:
    """Call a reward, and an `async def` one to its end, with columns of `count` completions; nothing escapes but what
    is meant to end the program: `KeyboardInterrupt`, and `MemoryError` for whoever knows what to do."""
    log, start = _Log(count), time.perf_counter()
    columns = columns | {"log_extra": log.extra, "log_metric": log.metric}
    try:
        values = reward(**columns)
        return finished(asyncio.run(values) if asyncio.iscoroutine(values) else values, log, start)
    except (Exception, SystemExit) as error:
        return failed(error, count, start)


async def call_async(
    reward: Reward, samples: Sequence[dict[str, Any]], *, timeout: float, concurrency: int
) -> list[Outcome]:
    """Call an `async def` reward for each sample (columns of one completion), at most `concurrency` at a time."""
    free = asyncio.Semaphore(concurrency)

    async def one(columns: dict[str, Any]) -> Outcome:
        async with free:
            log, start = _Log(1), time.perf_counter()
            try:
                values = await asyncio.wait_for(
                    reward(**columns, log_extra=log.extra, log_metric=log.metric), timeout=timeout
                )
                return finished(values, log, start)[0]
            except TimeoutError as error:
                late = time.perf_counter() - start >= timeout  # else the reward's own
                return timed_out(timeout) if late else failed(error, 1, start)[0]
            except (Exception, SystemExit) as error:
                return failed(error, 1, start)[0]

    return list(await asyncio.gather(*map(one, samples)))


def finished(values: Any, log: _Log, start: float) -> list[Outcome]:
    """The outcomes of a call that returned `values`."""
    count = len(log.extras)
    seconds = (time.perf_counter() - start) / max(count, 1)
    outcomes = [replace(outcome, seconds=seconds) for outcome in outcomes_of(values, count)]
    outcomes = [
        replace(outcome, extras=extras)
        for outcome, extras in zip(outcomes, log.extras, strict=True)
    ]
    return [replace(outcomes[0], metrics=log.metrics), *outcomes[1:]] if outcomes else []


def failed(error: BaseException, count: int, start: float) -> list[Outcome]:
    """The outcomes of a call that raised."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, RewardSpecError):
        failure = Failure("settings", str(error))
    else:
        failure = Failure(
            "exception", "".join(traceback.format_exception(error))[-_DETAIL:].strip()
        )
    return [Outcome(None, failure, (time.perf_counter() - start) / max(count, 1))] * count


def timed_out(seconds: float) -> Outcome:
    """The outcome of a call that took longer than it may."""
    return Outcome(None, Failure("timeout", f"it took more than {seconds:g} s"), seconds)


def outcomes_of(values: Any, expected: int) -> list[Outcome]:
    """What a reward returned, as one outcome per completion.

    Numbers of any kind become floats, numpy and torch scalars and booleans among them. A list, tuple, array or tensor
    of them is accepted. Anything else is a failure: of one completion where it is an entry, of all where it is the
    list.

    >>> [outcome.value for outcome in outcomes_of((True, None, 0.5), 3)]
    [1.0, None, 0.5]
    >>> outcomes_of([1.0], 2)[0].failure
    Failure(reason='wrong length', detail='it returned 1 values for 2 completions')
    """
    if hasattr(values, "tolist"):  # numpy array or torch tensor
        values = values.tolist()
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        detail = (
            f"it returned {reprlib.repr(values)} ({type(values).__name__}) and no list of numbers"
        )
        return [Outcome(None, Failure("wrong type", detail))] * expected
    if len(values) != expected:
        detail = f"it returned {len(values)} values for {expected} completions"
        return [Outcome(None, Failure("wrong length", detail))] * expected
    return [_outcome_of(value) for value in values]


def _outcome_of(value: Any) -> Outcome:
    if value is None:
        return Outcome()
    if isinstance(value, StepRewards):
        return Outcome(value.mean, steps=value)
    if getattr(value, "ndim", None) == 0:  # numpy or torch scalar
        value = value.item()
    if not isinstance(value, Real | Decimal):
        detail = f"it returned {reprlib.repr(value)} ({type(value).__name__}) and no number"
        return Outcome(None, Failure("wrong type", detail))
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= _LARGEST:
        return Outcome(
            None, Failure("not finite", f"it returned {number}, which no mean of a group survives")
        )
    return Outcome(number)


def clipped(outcome: Outcome, limits: tuple[float, float] | None) -> Outcome:
    """The outcome with its value, or those of its steps, inside the limits."""
    if limits is None or outcome.value is None:
        return outcome
    low, high = limits
    if outcome.steps is None:
        return replace(outcome, value=min(max(outcome.value, low), high))
    steps = StepRewards(
        outcome.steps.ends, [min(max(reward, low), high) for reward in outcome.steps.rewards]
    )
    return replace(outcome, value=steps.mean, steps=steps)


def placed(outcome: Outcome, completion: Any) -> Outcome:
    """The outcome; a failure, if a step ends past the end of the completion."""
    if outcome.steps is None or not outcome.steps.ends:
        return outcome
    length = len(completion_text(completion))
    if outcome.steps.ends[-1] <= length:
        return outcome
    detail = f"a step ends at character {outcome.steps.ends[-1]} of a completion of {length}"
    return replace(outcome, value=None, steps=None, failure=Failure("wrong type", detail))


def replay(
    outcomes: Sequence[Outcome], extra: Callable[..., None], metric: Callable[..., None]
) -> None:
    """Log what a reward logged: columns with a value per completion (None where it logged none), and the mean of what
    it logged under each name."""
    columns = dict.fromkeys(name for outcome in outcomes for name, _ in outcome.extras)
    for column in columns:
        extra(column, [dict(outcome.extras).get(column) for outcome in outcomes])
    logged: dict[str, list[float]] = {}
    for name, value in (entry for outcome in outcomes for entry in outcome.metrics):
        logged.setdefault(name, []).append(value)
    for name, values in logged.items():
        metric(name, sum(values) / len(values))
