"""Rewards as the trainer calls them: scored elsewhere, begun early, and a failure is counted instead of raised.

B completions of a rollout on this process, W processes, F rewards.
"""

import asyncio
import logging
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cache
from types import SimpleNamespace
from typing import Any

from ..errors import ConfigError, RewardSpecError
from .outcomes import Failure, Outcome, call, call_async, clipped, placed, replay
from .registry import load_reward
from .reward import Reward, require_columns
from .worker_client import CannotTravelError, RewardProcess, ServerDiedError, lost, pack

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 10.0  # seconds for a completion

_WARNING = (
    "The reward {!r} runs in the trainer's process, where a hang or a crash of it is one of the run: {}. "
    "@reward_settings(in_process=True) says that this is meant."
)
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
_Call = tuple[dict[str, Any], dict[str, Any], int]  # see `ScoredReward._taken`


class ScoredReward:
    """A reward under the trainer's roof: what TRL calls, and what it asks afterwards.

    `outcomes` and `completions` are those of the last call. Without a process (`isolate`) it runs in this one.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.__name__ = reward.name  # TRL names the reward's metrics by it
        self.outcomes: list[Outcome] = []
        self.completions: Sequence[Any] = []
        self.of_steps = False  # whether it has spoken of steps
        self.said: set[str] = set()  # reasons of failures that were shown
        self.timeout = reward.settings.timeout or DEFAULT_TIMEOUT
        self._process: RewardProcess | None = None
        self._index = 0
        self._begun: tuple[Any, Future[list[Outcome]], _Call] | None = None
        self._thread_helps: bool | None = (
            None  # whether a failure off the main thread is one on it; None: not tried
        )

    def isolate(self, process: RewardProcess, index: int) -> None:
        """Score in a process from now on, where it is the reward of that index."""
        self._process, self._index = process, index

    @property
    def off_main_thread(self) -> bool:
        """Whether it may be begun early."""
        return self.reward.settings.early and self._thread_helps is not False

    def begin(self, completions: Sequence[Any], **columns: Any) -> Callable[[], None] | None:
        """Begin to score what it will be called with; returns what a thread has to run for that, if anything."""
        what = self._taken(completions, columns)
        if self._process is not None:
            self._begun = completions, self._submit(*what), what
            return None
        future: Future[list[Outcome]] = Future()
        self._begun = completions, future, what

        def run() -> None:
            try:
                future.set_result(self._call(*what))
            except (
                BaseException
            ) as error:  # KeyboardInterrupt too: it is raised again where it is waited for
                future.set_exception(error)

        return run

    def __call__(
        self,
        *,
        completions: Sequence[Any],
        log_extra: Any = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> Any:
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] is completions:
            outcomes = self._collected(*begun[1:])
        else:
            outcomes = self._score(completions, columns)
        self.completions = completions
        checked = map(placed, outcomes, completions)
        self.outcomes = [clipped(outcome, self.reward.settings.clip) for outcome in checked]
        replay(self.outcomes, log_extra or _unheard, log_metric or _unheard)
        return [outcome.value for outcome in self.outcomes]

    def _score(self, completions: Sequence[Any], columns: dict[str, Any]) -> list[Outcome]:
        what = self._taken(completions, columns)
        return (
            self._call(*what)
            if self._process is None
            else self._collected(self._submit(*what), what)
        )

    def _collected(self, future: "Future[list[Outcome]]", what: _Call) -> list[Outcome]:
        """What was begun; a second time where the process died, or where a thread may be the matter."""
        try:
            outcomes = future.result()
        except CannotTravelError as error:
            return self._stay(error, *what)
        except ServerDiedError:
            try:
                return self._submit(*what).result()
            except ServerDiedError:
                return lost(what[2])
        raised = sum(_raised(outcome) for outcome in outcomes)
        if self._process is not None or not raised or self._thread_helps:
            return outcomes
        again = self._call(*what)
        self._thread_helps = sum(map(_raised, again)) >= raised
        if not self._thread_helps:
            failure = next(outcome.failure for outcome in outcomes if _raised(outcome))
            logger.warning(
                f"The reward {self.__name__!r} fails off the main thread ({failure.summary if failure else ''}) and "
                "works on it, where it stays; scoring it no longer overlaps with the reference pass."
            )
        return again

    def _submit(
        self, taken: dict[str, Any], shared: dict[str, Any], count: int
    ) -> "Future[list[Outcome]]":
        assert self._process is not None
        try:
            return self._process.submit(self._index, taken, shared, count, self.timeout)
        except CannotTravelError as error:
            future: Future[list[Outcome]] = Future()
            future.set_result(self._stay(error, taken, shared, count))
            return future

    def _stay(
        self, error: CannotTravelError, taken: dict[str, Any], shared: dict[str, Any], count: int
    ) -> list[Outcome]:
        """Score in this process from now on, because what the reward is called with cannot be sent."""
        logger.warning(
            _WARNING.format(
                self.__name__, f"what it is called with cannot be sent to another ({error})"
            )
        )
        self._process = None
        return self._call(taken, shared, count)

    def _call(self, taken: dict[str, Any], shared: dict[str, Any], count: int) -> list[Outcome]:
        """Score in this process, in calls of one completion unless the reward compares them."""
        settings = self.reward.settings
        try:
            if settings.batched:
                return call(self.reward, taken | shared, count)
            samples = [
                {name: values[row : row + 1] for name, values in taken.items()} | shared
                for row in range(count)
            ]
            if self.reward.is_async:
                work = call_async(
                    self.reward, samples, timeout=self.timeout, concurrency=settings.concurrency
                )
                return asyncio.run_coroutine_threadsafe(work, _loop()).result()
            return [call(self.reward, columns, 1)[0] for columns in samples]
        except MemoryError as error:
            return [Outcome(None, Failure("memory", f"MemoryError: {error}"))] * count

    def _taken(self, completions: Sequence[Any], columns: dict[str, Any]) -> _Call:
        """The columns that the reward reads, what is the same for all completions, and how many there are."""
        state = columns.get("trainer_state")
        lists = {"completions": list(completions)}
        lists |= {name: list(values) for name, values in columns.items() if name != "trainer_state"}
        shared = {}
        if state is not None:
            shared["trainer_state"] = state if self._process is None else _snapshot(state)
        return self.reward.taken(lists), self.reward.taken(shared), len(completions)


def _raised(outcome: Outcome) -> bool:
    return outcome.failure is not None and outcome.failure.reason == "exception"


def _unheard(*_: Any) -> None:
    """In the place of the trainer's logs."""


def _snapshot(state: Any) -> SimpleNamespace:
    """The trainer's state at this moment, without its history and its callbacks: numbers and text."""
    values = vars(state).items()
    return SimpleNamespace(
        **{k: v for k, v in values if isinstance(v, int | float | str | bool | None)}
    )


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of `async def` rewards in this process; one, because their sessions belong to one."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop


def scored_rewards(reward_funcs: Any) -> list[Any] | None:
    """Load every entry of `reward_funcs` for the trainer.

    Reward models (modules, model folders, `org/name`) pass through for TRL to load.
    """
    if reward_funcs is None:
        return None
    entries = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    return [
        entry if _is_reward_model(entry) else ScoredReward(load_reward(entry)) for entry in entries
    ]


def isolate(
    rewards: Sequence[Any] | None, *, workers: int | None, timeout: float
) -> RewardProcess | None:
    """Start a process for the rewards that are not `in_process`; those that cannot go there are named.

    Args:
        workers: how many completions are scored at a time; 0: all rewards stay in this process; `None`: as many as
            this process has cores.
        timeout: seconds for a completion, where a reward has no setting of its own.
    """
    scored = [reward for reward in rewards or () if isinstance(reward, ScoredReward)]
    packed = []
    for reward in scored:
        reward.timeout = reward.reward.settings.timeout or timeout
        if workers == 0 or reward.reward.settings.in_process:
            continue
        try:
            packed.append((reward, pack(reward.reward)))
        except CannotTravelError as error:
            logger.warning(
                _WARNING.format(reward.__name__, f"it cannot be sent to another ({error})")
            )
    if not packed:
        return None
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    process = RewardProcess(
        [pickled for _, pickled in packed], workers or max(1, cores // processes)
    )
    unloadable = process.unloadable()
    for index, (reward, _) in enumerate(packed):
        if index in unloadable:
            logger.warning(
                _WARNING.format(reward.__name__, f"another cannot load it ({unloadable[index]})")
            )
        else:
            reward.isolate(process, index)
    return process


def weights_at(
    rewards: Sequence[Any], given: Sequence[float] | None, step: int
) -> list[float] | None:
    """The weight of each reward at a step, or `None` if no reward has a setting of its own.

    Args:
        given: the trainer's `reward_weights`.

    Raises:
        ConfigError: weights both there and at a reward.
    """
    own = [
        reward.reward.settings.weight if isinstance(reward, ScoredReward) else None
        for reward in rewards
    ]
    if all(weight is None for weight in own):
        return None
    if given is not None:
        named = next(
            r.reward.spec for r, weight in zip(rewards, own, strict=True) if weight is not None
        )
        raise ConfigError(
            f"reward_weights is given and {named} has a weight as well. Leave one of them out."
        )
    weights = [1.0 if weight is None else weight for weight in own]
    return [weight if isinstance(weight, int | float) else weight.at(step) for weight in weights]


def check_columns(rewards: Any, dataset: Any) -> None:
    """Check that a dataset has the columns that rewards read; a streaming one may not say, and passes.

    Raises:
        DataError: see `require_columns`.
    """
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        ours = [entry.reward for entry in rewards or () if isinstance(entry, ScoredReward)]
        require_columns(ours, columns, "the dataset", "dataset.rename_column(..., '{}')")


def refuse_namesakes(rewards: Sequence[Reward]) -> None:
    """Refuse two rewards of one name in a recipe, because metrics and the final table go by name.

    Raises:
        RewardSpecError: names both.
    """
    specs: dict[str, str] = {}
    for reward in rewards:
        if reward.name in specs:
            raise RewardSpecError(
                f"two rewards are called {reward.name!r}: {specs[reward.name]} and {reward.spec}, and their metrics "
                "could not be told apart. Rename one function, or give it another name with @register_reward."
            )
        specs[reward.name] = reward.spec


def _is_reward_model(entry: Any) -> bool:
    if isinstance(entry, str):
        is_file = entry.startswith(".") or entry.endswith(".py")
        is_folder = os.path.isfile(os.path.join(entry, "config.json"))
        return is_folder or (not is_file and bool(_HUB_NAME.match(entry)))
    return hasattr(entry, "parameters") and hasattr(
        entry, "forward"
    )  # a torch module, without importing torch
