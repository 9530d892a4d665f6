"""One reward as a run calls it: in this process or its own, early or when asked, never raising.

Shapes: B completions of a rollout on this process.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from .outcomes import Failure, Outcome, call, call_async, clipped, placed, replay
from .reward import Reward
from .worker_client import CannotTravelError, RewardProcess, ServerDiedError, lost

logger = logging.getLogger(__name__)

# Seconds for a completion, where neither the reward nor the run says anything.
DEFAULT_TIMEOUT = 10.0

STAYS = (
    "The reward {!r} runs in the trainer's process, where a hang or a crash of it is one of the "
    "run: {}. @reward_settings(in_process=True) says that this is meant."
)


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a reward.

    Args:
        columns: under each name a value per completion.
        shared: what is the same for all completions.
        count: B.
    """

    columns: dict[str, Any]
    shared: dict[str, Any]
    count: int


@dataclass(frozen=True)
class Begun:
    """A call that is under way, and the future that will hold its outcomes."""

    call: Call
    future: "Future[list[Outcome]]"


class ScoredReward:
    """A reward in a run: it counts failures instead of raising them.

    Without a process (`isolate`) the reward runs in this one.

    Args:
        reward: the function with its options and settings.

    Raises:
        RewardSpecError: an option is impossible.
    """

    def __init__(self, reward: Reward) -> None:
        # Here, because every run makes one of these before a model is loaded or a row is scored.
        reward.check_options()
        self.reward = reward
        # TRL names the reward's metrics by it.
        self.__name__ = reward.name
        self.timeout = reward.time_limit(DEFAULT_TIMEOUT)
        # Whether it has ever returned steps; it is then credited by steps for the whole run.
        self.speaks_of_steps = False
        self._process: RewardProcess | None = None
        self._index = 0
        # Whether a reward that failed in a thread fails on the main thread, too. None: not tried;
        # False: it works there, and is no longer begun early.
        self._fails_everywhere: bool | None = None
        self._warned: set[str] = set()

    def isolate(self, process: RewardProcess, index: int) -> None:
        """Score in a process from now on, in which this is the reward of that index."""
        self._process = process
        self._index = index

    @property
    def may_begin_early(self) -> bool:
        """Return whether scoring may begin before it is asked for."""
        # False is a reward that works on the main thread alone: scoring early would be in vain.
        return self.reward.settings.early and self._fails_everywhere is not False

    def __call__(
        self,
        *,
        completions: Sequence[Any],
        log_extra: Any = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return the values alone, as TRL calls a reward function."""
        outcomes = self.score(completions, columns)
        if log_extra is not None:
            replay(outcomes, log_extra, log_metric)
        return values_of(outcomes)

    def score(
        self, completions: Sequence[Any], columns: dict[str, Any], begun: Begun | None = None
    ) -> list[Outcome]:
        """Return what became of the reward for each completion.

        Args:
            completions: texts or messages, B of them.
            columns: what TRL passes beside them.
            begun: the same call, where it is under way already.
        """
        if begun is not None:
            raw = self._collect(begun)
        elif self._process is not None:
            raw = self._collect(self._submit(self._call_of(completions, columns)))
        else:
            raw = self._run_here(self._call_of(completions, columns))
        outcomes = []
        for outcome, completion in zip(raw, completions, strict=True):
            # Checked here, where the text is at hand: a process sends outcomes back without it.
            outcome = clipped(placed(outcome, completion), self.reward.settings.clip)
            outcomes.append(outcome)
        return outcomes

    def begin(
        self, completions: Sequence[Any], columns: dict[str, Any]
    ) -> tuple[Begun, Callable[[], None] | None]:
        """Begin to score.

        Returns:
            The call that is under way, and what a thread has to run for it, if anything.
        """
        # The lists are copied now, on this thread, before the trainer goes on with its own.
        call_ = self._call_of(completions, columns)
        if self._process is not None:
            return self._submit(call_), None
        future: Future[list[Outcome]] = Future()

        def run() -> None:
            try:
                future.set_result(self._run_here(call_))
            # KeyboardInterrupt, too: it is raised again where the outcomes are waited for.
            except BaseException as error:
                future.set_exception(error)

        return Begun(call_, future), run

    def warn_once(self, log: logging.Logger, about: str, message: str) -> None:
        """Log a warning about this reward, the first time that it is about this."""
        if about not in self._warned:
            self._warned.add(about)
            log.warning(message)

    def _collect(self, begun: Begun) -> list[Outcome]:
        """Wait for a call; make it a second time where the process died or a thread may be why."""
        try:
            outcomes = begun.future.result()
        except CannotTravelError as error:
            return self._stay(error, begun.call)
        except ServerDiedError:
            # The process starts anew. What killed it once, such as a lack of memory, may not do so
            # a second time.
            try:
                return self._submit(begun.call).future.result()
            except ServerDiedError:
                return lost(begun.call.count)
        failures = _exceptions(outcomes)
        # A process calls rewards on its own main thread, so its failures are real.
        if self._process is not None or not failures or self._fails_everywhere:
            return outcomes
        return self._try_on_main_thread(begun.call, failures)

    def _try_on_main_thread(self, call_: Call, in_thread: list[Failure]) -> list[Outcome]:
        """Score again on this thread what raised in another; `signal` works on this one only."""
        outcomes = self._run_here(call_)
        # Fewer failures here than in the thread say that the thread was the reason for some.
        self._fails_everywhere = len(_exceptions(outcomes)) >= len(in_thread)
        if not self._fails_everywhere:
            logger.warning(
                f"The reward {self.__name__!r} fails off the main thread ({in_thread[0].summary}) "
                "and works on it, where it stays; scoring it no longer overlaps with the reference "
                "pass."
            )
        return outcomes

    def _submit(self, call_: Call) -> Begun:
        assert self._process is not None
        try:
            future = self._process.submit(
                self._index, call_.columns, call_.shared, call_.count, self.timeout
            )
        except CannotTravelError as error:
            # Whoever waits for the call need not know that it never left.
            future = Future()
            future.set_result(self._stay(error, call_))
        return Begun(call_, future)

    def _stay(self, error: CannotTravelError, call_: Call) -> list[Outcome]:
        """Score in this process from now on: what the reward is called with cannot be sent."""
        reason = f"what it is called with cannot be sent to another ({error})"
        logger.warning(STAYS.format(self.__name__, reason))
        self._process = None
        return self._run_here(call_)

    def _run_here(self, call_: Call) -> list[Outcome]:
        """Score in this process, one completion a call unless the reward compares them."""
        settings = self.reward.settings
        try:
            if settings.batched:
                return call(self.reward, call_.columns | call_.shared, call_.count)
            samples = []
            for row in range(call_.count):
                # Lists of one entry: a reward takes lists, however many completions there are.
                sample: dict[str, Any] = {}
                for name, values in call_.columns.items():
                    sample[name] = values[row : row + 1]
                samples.append(sample | call_.shared)
            if self.reward.is_async:
                work = call_async(
                    self.reward, samples, timeout=self.timeout, concurrency=settings.concurrency
                )
                return asyncio.run_coroutine_threadsafe(work, _loop()).result()
            outcomes = []
            for sample in samples:
                outcomes += call(self.reward, sample, 1)
            return outcomes
        # A reward that asks for too much memory is one that failed; the trainer goes on.
        except MemoryError as error:
            failure = Failure("memory", f"MemoryError: {error}")
            return [Outcome(None, failure)] * call_.count

    def _call_of(self, completions: Sequence[Any], columns: dict[str, Any]) -> Call:
        """Return what the reward reads of a rollout."""
        lists = {"completions": list(completions)}
        for name, values in columns.items():
            if name != "trainer_state":
                lists[name] = list(values)
        shared = {}
        state = columns.get("trainer_state")
        if state is not None:
            # The state itself holds callbacks, which do not travel to another process.
            shared["trainer_state"] = state if self._process is None else _snapshot(state)
        return Call(self.reward.taken(lists), self.reward.taken(shared), len(completions))


def values_of(outcomes: Sequence[Outcome]) -> list[float | None]:
    """Return the values alone, None where a reward could not judge or failed."""
    return [outcome.value for outcome in outcomes]


def _exceptions(outcomes: Sequence[Outcome]) -> list[Failure]:
    """Return the failures that are exceptions of the reward's own."""
    failures = []
    for outcome in outcomes:
        if outcome.failure is not None and outcome.failure.reason == "exception":
            failures.append(outcome.failure)
    return failures


def _snapshot(state: Any) -> SimpleNamespace:
    """Return the numbers and texts of a trainer's state, without its history and callbacks."""
    # A history grows with the run, and would be pickled at every step.
    plain = {}
    for name, value in vars(state).items():
        if isinstance(value, int | float | str | bool | None):
            plain[name] = value
    return SimpleNamespace(**plain)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of `async def` rewards in this process.

    There is one for all calls, because the sessions that such rewards open belong to a loop.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop
