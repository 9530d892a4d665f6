"""What became of a reward for a completion: a number, "cannot judge", or a failure with its reason.

A failure is data. Its value is None, as for a completion that cannot be judged, but it says that
the reward did not do its work. The run counts failures, leaves their completions out, and stops
where they are too many (scoring/failures.py).
"""

import asyncio
import builtins
import inspect
import math
import reprlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from decimal import Decimal
from numbers import Real
from types import TracebackType
from typing import Any

from ..data.completions import completion_text
from ..errors import RewardSpecError, did_you_mean
from .reward import Reward
from .steps import StepRewards

# Why a reward has no value although it should have one. `settings` ends a run at once, because no
# other step can do better.
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

# The largest number of float32, in which the trainer keeps rewards.
_LARGEST = 3.4028234663852886e38
# Characters of a traceback that are kept, from its end, where the error stands.
_DETAIL = 4000
# The modules whose frames come before those of the reward in every traceback.
_OF_THE_CALL = {__name__, Reward.__module__, "asyncio.runners", "asyncio.base_events"}


@dataclass(frozen=True)
class Failure:
    """Why a reward has no value for a completion.

    Args:
        reason: one of `REASONS`.
        detail: what is known about it: a message, or a traceback that ends in one.
    """

    reason: str
    detail: str

    @property
    def summary(self) -> str:
        """The last line of the detail."""
        return self.detail.strip().rpartition("\n")[2]


@dataclass(frozen=True)
class Outcome:
    """What a reward said of one completion.

    Args:
        value: the reward; None for "cannot judge" and for a failure.
        failure: why there is no value, if there should be one.
        seconds: how long it took.
        extras: what the reward logged for the table of completions: column and value.
        metrics: what it logged as numbers: name and value.
        steps: what a step reward says; the value is then the mean of it.
    """

    value: float | None = None
    failure: Failure | None = None
    seconds: float = 0.0
    extras: list[tuple[str, Any]] = field(default_factory=list)
    metrics: list[tuple[str, float]] = field(default_factory=list)
    steps: StepRewards | None = None


class _Log:
    """What a reward logs during one call about `count` completions."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.extras: list[list[tuple[str, Any]]] = [[] for _ in range(count)]
        self.metrics: list[tuple[str, float]] = []
        # As TRL passes them.
        self.functions = {"log_extra": self.extra, "log_metric": self.metric}

    def extra(self, column: str, values: Sequence[Any]) -> None:
        if len(values) != self._count:
            raise ValueError(
                f"log_extra({column!r}, ...) got {len(values)} values for {self._count} "
                "completions."
            )
        for row, value in zip(self.extras, values, strict=True):
            # What is made of anything else may not survive the way to another process.
            row.append((column, value if _is_plain(value) else str(value)))

    def metric(self, name: str, value: float) -> None:
        self.metrics.append((name, float(value)))


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, a text, or a list, tuple or dict of such values."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return isinstance(value, str | int | float | bool | None)


def call(reward: Reward, columns: dict[str, Any], count: int) -> list[Outcome]:
    """Call a reward with columns of `count` completions, an `async def` one to its end.

    Nothing escapes but what is meant to end the program: `KeyboardInterrupt`, and `MemoryError` for
    a caller that knows what to do about it.
    """
    log = _Log(count)
    start = time.perf_counter()
    try:
        values = reward(**columns, **log.functions)
        if inspect.iscoroutine(values):
            values = asyncio.run(values)
        return finished(values, log, start)
    # SystemExit, too: a reward that calls sys.exit() must not end the run.
    except (Exception, SystemExit) as error:
        return failed(error, count, start)


async def call_awaiting(reward: Reward, columns: dict[str, Any], count: int) -> list[Outcome]:
    """Call an `async def` reward as `call` does, from a loop that runs already."""
    log = _Log(count)
    start = time.perf_counter()
    try:
        return finished(await reward(**columns, **log.functions), log, start)
    except (Exception, SystemExit) as error:
        return failed(error, count, start)


async def call_async(
    reward: Reward, samples: Sequence[dict[str, Any]], *, timeout: float, concurrency: int
) -> list[Outcome]:
    """Call an `async def` reward for each sample, at most `concurrency` at a time.

    Args:
        samples: columns of one completion each.
        timeout: seconds for each of them.
    """
    free = asyncio.Semaphore(concurrency)

    async def score(columns: dict[str, Any]) -> Outcome:
        async with free:
            log = _Log(1)
            start = time.perf_counter()
            try:
                values = await asyncio.wait_for(reward(**columns, **log.functions), timeout=timeout)
                return finished(values, log, start)[0]
            except TimeoutError as error:
                # A reward may raise a TimeoutError of its own, before its time is up.
                is_ours = time.perf_counter() - start >= timeout
                return timed_out(timeout) if is_ours else failed(error, 1, start)[0]
            except (Exception, SystemExit) as error:
                return failed(error, 1, start)[0]

    return list(await asyncio.gather(*map(score, samples)))


def finished(values: Any, log: _Log, start: float) -> list[Outcome]:
    """Return the outcomes of a call that returned `values`.

    Args:
        log: what the reward logged meanwhile.
        start: when the call began, by `time.perf_counter`.
    """
    count = len(log.extras)
    seconds = (time.perf_counter() - start) / max(count, 1)
    outcomes = []
    for outcome, extras in zip(outcomes_of(values, count), log.extras, strict=True):
        outcomes.append(replace(outcome, seconds=seconds, extras=extras))
    # Numbers are those of the call, and travel with its first outcome.
    if outcomes:
        outcomes[0] = replace(outcomes[0], metrics=log.metrics)
    return outcomes


def failed(error: BaseException, count: int, start: float) -> list[Outcome]:
    """Return the outcomes of a call that raised.

    Raises:
        MemoryError: it was that; the caller knows whether to try again.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, RewardSpecError):
        failure = Failure("settings", str(error))
    else:
        failure = Failure("exception", _described(error)[-_DETAIL:])
    return [Outcome(None, failure, (time.perf_counter() - start) / max(count, 1))] * count


def _described(error: BaseException) -> str:
    """Return the traceback of an error, from the reward's own code on."""
    frames = error.__traceback__
    # How this library came to call the reward tells its author nothing.
    while frames is not None and frames.tb_frame.f_globals.get("__name__") in _OF_THE_CALL:
        frames = frames.tb_next
    shown = "".join(traceback.format_exception(type(error), error, frames)).strip()
    # Python names a similar name by itself from 3.12 on.
    if isinstance(error, NameError) and frames is not None and "Did you mean" not in shown:
        similar = _similar_name(error, frames)
        shown += f".{similar}" if similar else ""
    return shown


def _similar_name(error: NameError, frames: TracebackType) -> str:
    known = set(vars(builtins))
    # A comprehension has a frame of its own, without the variables of the function around it.
    for frame, _ in traceback.walk_tb(frames):
        known |= {*frame.f_locals, *frame.f_globals}
    return did_you_mean(str(error.name), sorted(known))


def timed_out(seconds: float, advice: str = "") -> Outcome:
    """Return the outcome of a call that took longer than it may."""
    return Outcome(None, Failure("timeout", f"it took more than {seconds:g} s{advice}"), seconds)


def outcomes_of(values: Any, expected: int) -> list[Outcome]:
    """Return what a reward returned, as one outcome per completion.

    Numbers of any kind become floats, numpy and torch scalars and booleans among them. Whatever
    yields them in order is accepted, as in TRL: a list, an array, a tensor, an iterator. Anything
    else is a failure: of one completion where it is an entry, of all where it is the list.

    >>> [outcome.value for outcome in outcomes_of((True, None, 0.5), 3)]
    [1.0, None, 0.5]
    >>> outcomes_of([1.0], 2)[0].failure
    Failure(reason='wrong length', detail='it returned 1 value for 2 completions')
    """
    # A numpy array or a torch tensor, told without importing either.
    if hasattr(values, "tolist") and getattr(values, "ndim", 1) == 1:
        values = values.tolist()
    entries = _entries_of(values)
    if entries is None:
        shown = f"{reprlib.repr(values)} ({type(values).__name__})"
        failure = Failure("wrong type", f"it returned {shown} and no list of numbers")
        return [Outcome(None, failure)] * expected
    values = list(entries)
    if len(values) != expected:
        detail = f"it returned {_counted(len(values), 'value')} for "
        detail += _counted(expected, "completion")
        return [Outcome(None, Failure("wrong length", detail))] * expected
    return [_outcome_of(value) for value in values]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _entries_of(values: Any) -> Iterator[Any] | None:
    # These can be iterated over, and what comes is no list of numbers.
    if isinstance(values, str | bytes | Mapping | Set):
        return None
    # Asked for, because not all that has entries says so by its type.
    try:
        return iter(values)
    except TypeError:
        return None


def _outcome_of(value: Any) -> Outcome:
    if value is None:
        return Outcome()
    if isinstance(value, StepRewards):
        return Outcome(value.mean, steps=value)
    # A number of numpy's or torch's, or an array or tensor of one.
    if hasattr(value, "item") and math.prod(getattr(value, "shape", ())) == 1:
        value = value.item()
    if not isinstance(value, Real | Decimal):
        detail = f"it returned {reprlib.repr(value)} ({type(value).__name__}) and no number"
        return Outcome(None, Failure("wrong type", detail))
    try:
        number = float(value)
    # An integer may be larger than any float.
    except OverflowError:
        number = math.inf
    # Written so that NaN is refused as well.
    if not abs(number) <= _LARGEST:
        detail = f"it returned {number}, which no mean of a group survives"
        return Outcome(None, Failure("not finite", detail))
    return Outcome(number)


def clipped(outcome: Outcome, limits: tuple[float, float] | None) -> Outcome:
    """Return the outcome with its value, or the rewards of its steps, inside the limits."""
    if limits is None or outcome.value is None:
        return outcome
    low, high = limits
    if outcome.steps is None:
        return replace(outcome, value=min(max(outcome.value, low), high))
    rewards = [min(max(reward, low), high) for reward in outcome.steps.rewards]
    steps = StepRewards(outcome.steps.ends, rewards)
    return replace(outcome, value=steps.mean, steps=steps)


def placed(outcome: Outcome, completion: Any) -> Outcome:
    """Return the outcome; a failure, if a step ends past the end of the completion."""
    if outcome.steps is None or not outcome.steps.ends:
        return outcome
    length = len(completion_text(completion))
    last = outcome.steps.ends[-1]
    if last <= length:
        return outcome
    detail = f"a step ends at character {last} of a completion of {length}"
    return replace(outcome, value=None, steps=None, failure=Failure("wrong type", detail))


def replay(
    outcomes: Sequence[Outcome], extra: Callable[..., None], metric: Callable[..., None]
) -> None:
    """Log what a reward logged, perhaps in another process.

    Args:
        extra: takes a column with a value per completion, None where the reward logged none.
        metric: takes a name, and the mean of what the reward logged under it.
    """
    columns: dict[str, list[Any]] = {}
    for row, outcome in enumerate(outcomes):
        for column, value in outcome.extras:
            columns.setdefault(column, [None] * len(outcomes))[row] = value
    for column, values in columns.items():
        extra(column, values)
    for name, number in mean_metrics(outcomes).items():
        metric(name, number)


def mean_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the mean of what a reward logged under each name."""
    logged: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, number in outcome.metrics:
            logged.setdefault(name, []).append(number)
    return {name: sum(numbers) / len(numbers) for name, numbers in logged.items()}
