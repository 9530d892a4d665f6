"""One reward as a run calls it: in this process or its own, early or when asked, never raising.

A reward is called as TRL calls it, with all completions at once. What its author said with
`reward_settings` is believed.

Shapes: B completions of a rollout on this process.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .calling import Job, Scored, Way, is_lost, runs_of
from .calls_here import Call, run_here
from .outcomes import Failure, Outcome, call_awaiting, clipped, placed, replay
from .patience import Patience, said_to_be_waited_for
from .references import References, references_of
from .reward import Reward
from .worker_client import (
    CannotTravelError,
    RewardProcess,
    ServerDiedError,
    lost,
    pickled_columns,
)

logger = logging.getLogger(__name__)

STAYS = (
    "The reward {!r} is called in the trainer's process, as in TRL, where a hang or a crash of it "
    "is one of the run: {}. If nothing outside of it changes what it returns, "
    "@reward_settings(in_process=False) has it isolated; in_process=True says that this is meant."
)
UNDEFINED = "The reward {!r} will fail where it comes to this: {}"
CHANGES = "it changes the lists that it is called with, which the rewards after it are called with"


@dataclass(frozen=True)
class Begun:
    """A call that is under way, and the future that will hold its outcomes."""

    call: Call
    future: "Future[Scored]"


class ScoredReward:
    """A reward in a run: it counts failures instead of raising them.

    Without a process (`isolate`) the reward runs in this one.

    Args:
        reward: the function with its options and settings.

    Raises:
        RewardSpecError: an option is impossible.
    """

    def __init__(self, reward: Reward, warned: set[str] | None = None) -> None:
        # Here, because every run makes one of these before a model is loaded or a row is scored.
        reward.check_options()
        self.reward = reward
        # TRL names the reward's metrics by it.
        self.__name__ = reward.name
        self.patience = Patience()
        self.limit(None)
        # Whether it has ever returned steps; it is then credited by steps for the whole run.
        self.speaks_of_steps = False
        self._process: RewardProcess | None = None
        self._index = 0
        self._way: Way = "one" if reward.settings.batched is False else "all"
        # Whether the process that scores has returned anything but failures.
        self._works_there = False
        # Whether a reward that failed in a thread fails on the main thread, too. None: not tried;
        # False: it works there, and is no longer begun early.
        self._fails_everywhere: bool | None = None
        # Shared where the same reward is called in two ways, and should be warned of once.
        self.warned: set[str] = set() if warned is None else warned

    @cached_property
    def references(self) -> References:
        """What the reward refers to outside of itself."""
        return references_of(self.reward.function)

    @property
    def awaits_here(self) -> bool:
        """Return whether TRL itself may await the reward, together with others of its kind."""
        return self._process is None and self.reward.is_async and self._way == "all"

    @property
    def is_isolated(self) -> bool:
        """Return whether the reward runs in another process."""
        return self._process is not None

    def isolate(self, process: RewardProcess, index: int) -> None:
        """Score in a process from now on, in which this is the reward of that index."""
        self._process = process
        self._index = index

    def limit(self, timeout: float | None) -> None:
        """Set the seconds for a completion, where the reward says nothing of its own."""
        seconds = self.reward.time_limit(timeout)
        self.patience = Patience(seconds, seconds if self.reward.settings.batched else None)

    def stay(self, reason: str, said: str = STAYS) -> None:
        """Score in this process from now on, and say why."""
        self.warn_once(logger, "place", said.format(self.__name__, reason))
        self._process = None

    @property
    def may_begin_early(self) -> bool:
        """Return whether scoring may begin before it is asked for."""
        settings = self.reward.settings
        # False is a reward that works on the main thread alone: scoring early would be in vain.
        if settings.early is False or self._fails_everywhere is False:
            return False
        # What stays because of what it refers to may refer to something of the main thread.
        return self.is_isolated or settings.early is True or settings.in_process is True

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
        self,
        completions: Sequence[Any],
        columns: dict[str, Any],
        begun: Begun | None = None,
        *,
        groups: list[list[int]] | None = None,
        is_trial: bool = False,
    ) -> list[Outcome]:
        """Return what became of the reward for each completion.

        Args:
            completions: texts or messages, B of them.
            columns: what TRL passes beside them.
            begun: the same call, where it is under way already.
            groups: the rows of each group; None: equal prompts side by side are one.
            is_trial: whether no model wrote the completions.
        """
        count = len(completions)
        # In this process nothing ends a call.
        limit = self.patience.for_all(count) if self.is_isolated else None
        with said_to_be_waited_for(f"{self._described} ({count} completions)", limit):
            # What it is called with may show that it has to stay here.
            call_ = begun.call if begun else self._call_of(completions, columns, groups)
            if begun is None and self._process is None:
                raw = self._run_here(call_)
            else:
                raw = self._collect(begun or self._submit(call_, is_trial), is_trial)
        return self._checked(raw, completions)

    async def score_awaiting(
        self, completions: Sequence[Any], columns: dict[str, Any], groups: list[list[int]] | None
    ) -> list[Outcome]:
        """Score as `score` does, in the loop in which TRL awaits its rewards together."""
        call_ = self._call_of(completions, columns, groups)
        with said_to_be_waited_for(f"{self._described} ({call_.count} completions)"):
            raw = await call_awaiting(self.reward, call_.columns | call_.shared, call_.count)
        return self._checked(raw, completions)

    def begin(
        self,
        completions: Sequence[Any],
        columns: dict[str, Any],
        groups: list[list[int]] | None = None,
    ) -> tuple[Begun, Callable[[], None] | None]:
        """Begin to score.

        Returns:
            The call that is under way, and what a thread has to run for it, if anything.
        """
        # The lists are copied now, on this thread, before the trainer goes on with its own.
        copies = {name: _copied(values) for name, values in columns.items()}
        call_ = self._call_of(list(completions), copies, groups)
        if self._process is not None:
            return self._submit(call_, is_trial=False), None
        future: Future[Scored] = Future()

        def run() -> None:
            try:
                # What fails here is called by groups on the main thread, where it may not fail.
                future.set_result(Scored(self._run_here(call_, narrow=False)))
            # KeyboardInterrupt, too: it is raised again where the outcomes are waited for.
            except BaseException as error:
                future.set_exception(error)

        return Begun(call_, future), run

    def warn_once(self, log: logging.Logger, about: str, message: str) -> None:
        """Log a warning about this reward, the first time that it is about this."""
        if about not in self.warned:
            self.warned.add(about)
            log.warning(message)

    @property
    def _described(self) -> str:
        return f"the reward {self.__name__!r}"

    def _checked(self, raw: list[Outcome], completions: Sequence[Any]) -> list[Outcome]:
        self.patience.learn(raw)
        outcomes = []
        for outcome, completion in zip(raw, completions, strict=True):
            # Checked here, where the text is at hand: a process sends outcomes back without it.
            outcome = clipped(placed(outcome, completion), self.reward.settings.clip)
            outcomes.append(outcome)
        return outcomes

    def _submit(self, call_: Call, is_trial: bool) -> Begun:
        assert self._process is not None
        try:
            return Begun(call_, self._process.submit(self._job(call_, is_trial)))
        except CannotTravelError as error:
            # Whoever waits for the call need not know that it never left.
            future: Future[Scored] = Future()
            future.set_result(Scored(self._stay_with(error, call_)))
            return Begun(call_, future)

    def _job(self, call_: Call, is_trial: bool) -> Job:
        return Job(
            reward=self._index,
            columns=pickled_columns(call_.columns),
            shared=pickled_columns(call_.shared),
            groups=call_.groups,
            way=self._way,
            timeout=self.patience.for_one(),
            patience=self.patience.for_all(call_.count),
            patience_by_groups=self.patience.by_groups(),
            is_trial=is_trial,
        )

    def _collect(self, begun: Begun, is_trial: bool) -> list[Outcome]:
        """Wait for a call; make it a second time where its failure may not be the reward's."""
        was_here = self._process is None
        try:
            scored = begun.future.result()
        except CannotTravelError as error:
            return self._stay_with(error, begun.call)
        except ServerDiedError:
            # The process starts anew. What killed it once, such as a lack of memory, may not do so
            # a second time.
            try:
                scored = self._submit(begun.call, is_trial).future.result()
            except ServerDiedError:
                return lost(begun.call.count)
        if not was_here:
            return self._from_process(scored, begun.call, is_trial)
        failures = _exceptions(scored.outcomes)
        if not failures:
            return scored.outcomes
        if self._fails_everywhere is None:
            return self._try_on_main_thread(begun.call, failures)
        return self._run_here(begun.call) if is_lost(scored.outcomes) else scored.outcomes

    def _from_process(self, scored: Scored, call_: Call, is_trial: bool) -> list[Outcome]:
        """Note what a call in the process has shown; make it here if the process is the reason."""
        outcomes = scored.outcomes
        if self._process is None:
            return outcomes
        self._works_there |= any(outcome.failure is None for outcome in outcomes)
        # What works for TRL must not end a run: a reward may need what only this process has.
        may_move = self.reward.settings.in_process is None and not is_trial
        if may_move and not self._works_there and len(_exceptions(outcomes)) == call_.count:
            here = self._run_here(call_)
            if len(_exceptions(here)) < call_.count:
                self.stay(f"it fails in another ({_exceptions(outcomes)[0].summary})")
            return here
        if scored.changed and self.reward.settings.in_process is None:
            self.stay(CHANGES)
        return outcomes

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

    def _stay_with(self, error: CannotTravelError, call_: Call) -> list[Outcome]:
        """Score here from now on: what the reward is called with cannot be sent."""
        self.stay(f"what it is called with cannot be sent to another ({error})")
        return self._run_here(call_)

    def _run_here(self, call_: Call, *, narrow: bool = True) -> list[Outcome]:
        seconds = self.patience.for_one()
        return run_here(self.reward, call_, way=self._way, timeout=seconds, narrow=narrow)

    def _call_of(
        self, completions: Sequence[Any], columns: dict[str, Any], groups: list[list[int]] | None
    ) -> Call:
        """Return what the reward is called with; let it stay here if that shows that it has to."""
        # The very lists, as in TRL: what a reward changes in them is what the next one is given.
        lists: dict[str, Any] = {"completions": completions}
        for name, values in columns.items():
            if name != "trainer_state":
                lists[name] = values
        shared = {}
        if columns.get("trainer_state") is not None:
            shared["trainer_state"] = columns["trainer_state"]
        lists = self.reward.taken(lists)
        shared = self.reward.taken(shared)
        self._look_for_changes(lists)
        # What nobody looks at is not sent: the history of a run is long.
        if self._process is not None:
            lists = self._read(lists)
            shared = self._read(shared)
        if groups is None:
            groups = runs_of(columns.get("prompts", completions))
        return Call(lists, shared, groups)

    def _read(self, columns: dict[str, Any]) -> dict[str, Any]:
        return {name: column for name, column in columns.items() if self.reward.reads(name)}

    def _look_for_changes(self, lists: dict[str, Any]) -> None:
        if self._process is None or self.reward.settings.in_process is not None:
            return
        rebound = self.references.rebound()
        if rebound:
            self.stay(f"it refers to {rebound}, which was given another value")
        elif "environments" in lists and self.reward.reads("environments"):
            self.stay("it looks at the environments, which are objects of this process")


def _copied(values: Any) -> Any:
    return list(values) if isinstance(values, list) else values


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
