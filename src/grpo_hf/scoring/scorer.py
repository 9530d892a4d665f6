"""The rewards of a run: loaded, put into their process, weighted, and called for each rollout.

`RolloutScorer` scores one rollout. It may begin as soon as the completions exist; TRL asks for the
values later; `scores` holds the results.

Shapes: B completions of this process, F reward functions.
"""

import copy
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, RewardSpecError
from .outcomes import Outcome, replay
from .registry import load_reward
from .reward import Reward, require_columns
from .scored_reward import STAYS, Begun, ScoredReward, values_of
from .settings import Schedule
from .worker_client import CannotTravelError, RewardProcess, pack

logger = logging.getLogger(__name__)

# `org/name`, as the Hub calls a model.
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass(frozen=True)
class Scores:
    """The results of the reward functions for this process's completions.

    Args:
        entries: the rewards by their column among all F; reward models are TRL's and not here.
        outcomes: by column, one per completion.
        completions: what was scored, B texts or lists of messages.
    """

    entries: dict[int, ScoredReward]
    outcomes: dict[int, list[Outcome]]
    completions: Sequence[Any]


# A context variable and no global, so that rollouts on two threads each find their own scorer.
_under_way: "ContextVar[RolloutScorer | None]" = ContextVar("scorer under way", default=None)


def scorer_under_way() -> "RolloutScorer | None":
    """Return what scores the rollout that is being made, or None outside of one."""
    return _under_way.get()


class RolloutScorer:
    """The scoring of one rollout.

    TRL 1.16 scores after the old and the reference pass. With `begin`, processes score meanwhile,
    and a thread for rewards that stay in the trainer's process, one after the other. Such a reward
    can tell: `signal` does not work off the main thread, and what it reads of the trainer is what
    the reference pass has made of it at that moment.

    Args:
        rewards: a trainer's `reward_funcs`, reward models among them.
        rows: of the dataset, as TRL was given them.
    """

    def __init__(self, rewards: Sequence[Any], rows: Sequence[dict[str, Any]]) -> None:
        self.rows = rows
        self._rewards = list(rewards)
        self._entries: dict[int, ScoredReward] = {}
        for column, reward in enumerate(self._rewards):
            if isinstance(reward, ScoredReward):
                self._entries[column] = reward
        self._begun: dict[int, Begun] = {}
        self._begun_with: dict[str, Any] = {}
        self._outcomes: dict[int, list[Outcome]] = {}
        self._completions: Sequence[Any] = []

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Let `scorer_under_way` return this scorer for a block.

        TRL 1.16 makes a rollout in one method and hands nothing of ours to those that it calls
        from there, so what scores the rollout is found this way, and by no attribute of a trainer.
        """
        token = _under_way.set(self)
        try:
            yield
        finally:
            _under_way.reset(token)

    def begin(self, completions: Sequence[Any], columns: dict[str, Any], device: Any) -> None:
        """Begin to score what TRL will ask for.

        Args:
            completions: the very list that TRL will call the rewards with.
            columns: what it will pass beside them.
            device: the trainer's; a thread has a current CUDA device of its own.
        """
        jobs = []
        for column, entry in self._entries.items():
            if entry.may_begin_early:
                self._begun[column], job = entry.begin(completions, columns)
                if job is not None:
                    jobs.append(job)
        # Copies, because a subclass may change the lists themselves before TRL asks. The other
        # columns come from the dataset, and are compared as they are.
        self._begun_with = {**columns, "completions": copy.deepcopy(completions)}
        self._begun_with["completion_ids"] = copy.deepcopy(columns["completion_ids"])
        if jobs:
            # A daemon: a reward that hangs must not keep an interrupted program alive.
            thread = threading.Thread(target=_run, args=(jobs, device), name="rewards", daemon=True)
            thread.start()

    def functions(self) -> list[Callable[..., Any]]:
        """Return what TRL calls instead of `reward_funcs`, in the same order."""
        functions: list[Callable[..., Any]] = []
        # TRL calls reward models itself, by their class, so they are handed on as they are.
        for column, reward in enumerate(self._rewards):
            if column in self._entries:
                functions.append(self._function(column, self._entries[column]))
            else:
                functions.append(reward)
        return functions

    @property
    def scores(self) -> Scores:
        """The outcomes of the calls so far; none where a subclass scores without this library."""
        entries = {}
        for column in self._outcomes:
            entries[column] = self._entries[column]
        return Scores(entries, self._outcomes, self._completions)

    def _function(self, column: int, entry: ScoredReward) -> Callable[..., list[float | None]]:
        def score(
            *, completions: Sequence[Any], log_extra: Any, log_metric: Any, **columns: Any
        ) -> list[float | None]:
            # A process reward judges continuations by the first reward, which TRL called before.
            if getattr(entry.reward.function, "follows_first_reward", False):
                columns["first_values"] = values_of(self._outcomes[0])
            begun = self._begun.pop(column, None)
            # A subclass may have changed completions or columns since scoring began.
            if not _is_same(columns | {"completions": completions}, self._begun_with):
                begun = None
            outcomes = entry.score(completions, columns, begun)
            self._outcomes[column] = outcomes
            self._completions = completions
            # TRL collects what is logged here, so it waits until TRL asks for the values.
            replay(outcomes, log_extra, log_metric)
            return values_of(outcomes)

        # TRL names its profiling context by it.
        score.__name__ = entry.__name__
        return score


def _is_same(called_with: dict[str, Any], begun_with: dict[str, Any]) -> bool:
    """Return whether two calls are surely the same; scoring anew is right in any case."""
    try:
        return called_with == begun_with
    # Equal copies of arrays and tensors have no single truth value.
    except (ValueError, RuntimeError):
        return False


def _run(jobs: list[Callable[[], None]], device: Any) -> None:
    if device.type == "cuda":
        # Not at the top: `grpo-hf rewards test` needs no torch, and answers at once without it.
        import torch

        # A new thread begins on device 0, whatever the trainer uses.
        torch.cuda.set_device(device)
    for job in jobs:
        job()


def scored_rewards(reward_funcs: Any) -> list[Any] | None:
    """Load every entry of `reward_funcs` for the trainer.

    Reward models (modules, model folders, `org/name`) pass through for TRL to load.
    """
    if reward_funcs is None:
        return None
    entries = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    rewards = []
    for entry in entries:
        rewards.append(entry if _is_reward_model(entry) else ScoredReward(load_reward(entry)))
    return rewards


def isolate(
    rewards: Sequence[Any] | None, *, workers: int | None, timeout: float
) -> RewardProcess | None:
    """Start a process for the rewards that may leave this one; say which of the others stay.

    Args:
        workers: how many completions are scored at a time. With 0 all rewards stay in this process;
            with `None` there are as many workers as this process has cores.
        timeout: seconds for a completion, where a reward has no setting of its own.
    """
    packed = []
    for reward in rewards or ():
        if not isinstance(reward, ScoredReward):
            continue
        reward.timeout = reward.reward.time_limit(timeout)
        if workers == 0 or reward.reward.settings.in_process:
            continue
        # Pickled here already: whether a reward can travel is known before the process exists.
        try:
            packed.append((reward, pack(reward.reward)))
        except CannotTravelError as error:
            reason = f"it cannot be sent to another ({error})"
            logger.warning(STAYS.format(reward.__name__, reason))
    if not packed:
        return None
    pickled_rewards = []
    for _, pickled in packed:
        pickled_rewards.append(pickled)
    process = RewardProcess(pickled_rewards, workers or _cores_of_process())
    # A class or module may be known in this process only, as what a notebook defines.
    unloadable = process.unloadable()
    for index, (reward, _) in enumerate(packed):
        if index in unloadable:
            reason = f"another cannot load it ({unloadable[index]})"
            logger.warning(STAYS.format(reward.__name__, reason))
        else:
            reward.isolate(process, index)
    return process


def _cores_of_process() -> int:
    """Return this process's share of the cores that it may run on."""
    # A container or a batch system may give a process fewer cores than the machine has. Only Linux
    # can tell.
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    # Launchers set LOCAL_WORLD_SIZE to the number of training processes on this machine.
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def weights_at(
    rewards: Sequence[Any], configured: Sequence[float] | None, step: int
) -> list[float] | None:
    """Return the weight of each reward at a step, or `None` if no reward has one of its own.

    Args:
        configured: the trainer's `reward_weights`.

    Raises:
        ConfigError: weights both there and at a reward.
    """
    weights: list[float] = []
    weighted = None
    for reward in rewards:
        weight = reward.reward.settings.weight if isinstance(reward, ScoredReward) else None
        if weight is not None:
            weighted = weighted or reward
        # A number is one weight for the whole run; anything else is a schedule.
        if weight is None or isinstance(weight, int | float):
            weights.append(1.0 if weight is None else weight)
        else:
            weights.append(weight.at(step))
    if weighted is None:
        return None
    # Which of two weights is meant, nobody can know.
    if configured is not None:
        raise ConfigError(
            f"reward_weights is given and {weighted.reward.spec} has a weight as well. Leave one "
            "of them out."
        )
    return weights


def scheduled_weights(rewards: Sequence[Any], weights: Sequence[float]) -> Mapping[str, float]:
    """Return what to log about weights that move: `rewards/R/weight` for each reward R."""
    metrics = {}
    for reward, weight in zip(rewards, weights, strict=True):
        if not isinstance(reward, ScoredReward):
            continue
        if isinstance(reward.reward.settings.weight, Schedule):
            metrics[f"rewards/{reward.__name__}/weight"] = weight
    return metrics


def check_columns(rewards: Any, dataset: Any) -> None:
    """Check that a dataset has the columns that rewards read; a stream may not say, and passes.

    Raises:
        DataError: see `require_columns`.
    """
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        functions = []
        for entry in rewards or ():
            if isinstance(entry, ScoredReward):
                functions.append(entry.reward)
        require_columns(functions, columns, "the dataset", "dataset.rename_column(..., '{}')")


def refuse_namesakes(rewards: Sequence[Reward]) -> None:
    """Refuse two rewards of one name in a recipe: metrics and the final table go by name.

    Raises:
        RewardSpecError: names both.
    """
    specs: dict[str, str] = {}
    for reward in rewards:
        if reward.name in specs:
            raise RewardSpecError(
                f"two rewards are called {reward.name!r}: {specs[reward.name]} and {reward.spec}, "
                "and their metrics could not be told apart. Rename one function, or give it "
                "another name with @register_reward."
            )
        specs[reward.name] = reward.spec


def _is_reward_model(entry: Any) -> bool:
    if isinstance(entry, str):
        # `rewards/mine.py` looks like `org/name`, too.
        is_file = entry.startswith(".") or entry.endswith(".py")
        is_folder = os.path.isfile(os.path.join(entry, "config.json"))
        return is_folder or (not is_file and bool(_HUB_NAME.match(entry)))
    # A torch module, told without importing torch.
    return hasattr(entry, "parameters") and hasattr(entry, "forward")
