"""The scoring of one rollout by the rewards of a run, and their weights.

`RolloutScorer` may begin as soon as the completions exist; TRL asks for the
values later; `scores` holds the results.

Shapes: B completions of this process, F reward functions.
"""

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..run_context import RunContext
from .outcomes import Outcome, replay
from .scored_reward import Begun, ScoredReward, values_of
from .settings import Schedule


@dataclass(frozen=True)
class Scores:
    """The results of the reward functions for this process's completions.

    Args:
        entries: the rewards by their column among all F; reward models are TRL's and not here.
        outcomes: by column, one per completion.
        completions: what was scored, B texts or lists of messages.
        columns: what TRL passed beside them, by name: lists of B, and `trainer_state`.
        waited: by column, the seconds for which the trainer waited.
    """

    entries: dict[int, ScoredReward]
    outcomes: dict[int, list[Outcome]]
    completions: Sequence[Any]
    columns: dict[str, Any] = field(default_factory=dict)
    waited: dict[int, float] = field(default_factory=dict)


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
        rewards: what scores, by the column of TRL's rewards: a `ScoredReward`, or what TRL calls
            itself, such as a reward model.
        rows: of the dataset, as TRL was given them.
        run: says which rows form a group; without it those of equal prompts side by side.
    """

    def __init__(
        self,
        rewards: Sequence[Any],
        rows: Sequence[dict[str, Any]],
        run: RunContext | None = None,
    ) -> None:
        self.rows = rows
        self._rewards = list(rewards)
        self._groups = groups_of(run, len(rows)) if run is not None else None
        self._entries: dict[int, ScoredReward] = {}
        for column, reward in enumerate(self._rewards):
            if isinstance(reward, ScoredReward):
                self._entries[column] = reward
        self._begun: dict[int, Begun] = {}
        self._begun_with: dict[str, Any] = {}
        self._outcomes: dict[int, list[Outcome]] = {}
        self._completions: Sequence[Any] = []
        self._columns: dict[str, Any] = {}
        self._waited: dict[int, float] = {}

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
                self._begun[column], job = entry.begin(completions, columns, self._groups)
                if job is not None:
                    jobs.append(job)
        self._note_begun(completions, columns)
        if jobs:
            # A daemon: a reward that hangs must not keep an interrupted program alive.
            given = (jobs, _cuda_device(device))
            thread = threading.Thread(target=_run, args=given, name="rewards", daemon=True)
            thread.start()

    def functions(self) -> list[Callable[..., Any]]:
        """Return what TRL calls instead of `reward_funcs`, in the same order."""
        functions: list[Callable[..., Any]] = []
        # TRL calls reward models itself, by their class, so they are handed on as they are.
        for column, reward in enumerate(self._rewards):
            entry = self._entries.get(column)
            if entry is None:
                functions.append(reward)
            elif entry.awaits_here and column not in self._begun:
                functions.append(self._async_function(column, entry))
            else:
                functions.append(self._function(column, entry))
        return functions

    @property
    def scores(self) -> Scores:
        """The outcomes of the calls so far; none where a subclass scores without this library."""
        entries = {}
        # In the same order on all processes, whatever was scored first.
        for column in sorted(self._outcomes):
            entries[column] = self._entries[column]
        return Scores(entries, self._outcomes, self._completions, self._columns, self._waited)

    def _function(self, column: int, entry: ScoredReward) -> Callable[..., list[float | None]]:
        def score(
            *, completions: Sequence[Any], log_extra: Any, log_metric: Any, **columns: Any
        ) -> list[float | None]:
            asked = time.perf_counter()
            self._columns = dict(columns)
            self._begin_isolated(completions, columns)
            # A process reward judges continuations by the first reward, which TRL called before,
            # unless it awaits it.
            follows = getattr(entry.reward.function, "follows_first_reward", False)
            if follows and 0 in self._outcomes:
                columns["first_values"] = values_of(self._outcomes[0])
            begun = self._begun.pop(column, None)
            # A subclass may have changed completions or columns since scoring began.
            if not _is_same(columns | {"completions": completions}, self._begun_with):
                begun = None
            outcomes = entry.score(completions, columns, begun, groups=self._groups)
            self._waited[column] = time.perf_counter() - asked
            # TRL collects what is logged here, so it waits until TRL asks for the values.
            return self._noted(column, outcomes, completions, log_extra, log_metric)

        # TRL names its profiling context by it.
        score.__name__ = entry.__name__
        return score

    def _async_function(self, column: int, entry: ScoredReward) -> Callable[..., Any]:
        async def score(
            *, completions: Sequence[Any], log_extra: Any, log_metric: Any, **columns: Any
        ) -> list[float | None]:
            asked = time.perf_counter()
            self._columns = dict(columns)
            outcomes = await entry.score_awaiting(completions, columns, self._groups)
            self._waited[column] = time.perf_counter() - asked
            return self._noted(column, outcomes, completions, log_extra, log_metric)

        score.__name__ = entry.__name__
        return score

    def _noted(
        self,
        column: int,
        outcomes: list[Outcome],
        completions: Sequence[Any],
        log_extra: Any,
        log_metric: Any,
    ) -> list[float | None]:
        self._outcomes[column] = outcomes
        self._completions = completions
        replay(outcomes, log_extra, log_metric)
        return values_of(outcomes)

    def _note_begun(self, completions: Sequence[Any], columns: dict[str, Any]) -> None:
        self._begun_with = {**columns, "completions": completions}
        if not self._begun:
            return
        # Copies, because a subclass may change these lists before TRL asks, and a reward any list.
        copied = {"completion_ids", "completions"}
        stay = [entry for entry in self._entries.values() if not entry.is_isolated]
        if any(entry.reward.settings.in_process is None for entry in stay):
            # The others are objects of the run, which are what they are.
            copied = self._begun_with.keys() - {"trainer_state", "environments"}
        for name in copied:
            self._begun_with[name] = _copied(self._begun_with[name])

    def _begin_isolated(self, completions: Sequence[Any], columns: dict[str, Any]) -> None:
        """Begin what runs in other processes, so that rewards do not wait for each other."""
        if self._begun_with:
            return
        for column, entry in self._entries.items():
            if entry.is_isolated and column not in self._outcomes:
                self._begun[column], _ = entry.begin(completions, columns, self._groups)
        self._note_begun(completions, columns)


def groups_of(run: RunContext, rows: int) -> list[list[int]]:
    """Return which rows of this process belong to the same group, which may span processes.

    Args:
        rows: B.
    """
    groups: dict[int, list[int]] = {}
    first = run.mine(rows).start
    for row in range(rows):
        groups.setdefault((first + row) // run.group_size, []).append(row)
    return list(groups.values())


def _copied(values: Any) -> Any:
    """Return a copy of a column; the column itself, where its objects cannot be copied."""
    # They may raise anything.
    try:
        return copy.deepcopy(values)
    except Exception:
        return values


def _is_same(called_with: dict[str, Any], begun_with: dict[str, Any]) -> bool:
    """Return whether two calls are surely the same; scoring anew is right in any case."""
    try:
        return called_with == begun_with
    # Equal copies of arrays and tensors have no single truth value.
    except (ValueError, RuntimeError):
        return False


def _cuda_device(device: Any) -> int | None:
    """Return the number of the trainer's CUDA device; a single process has it without a number."""
    if device.type != "cuda":
        return None
    # Not at the top: `grpo-hf rewards test` needs no torch, and answers at once without it.
    import torch

    return torch.cuda.current_device() if device.index is None else int(device.index)


def _run(jobs: list[Callable[[], None]], cuda_device: int | None) -> None:
    if cuda_device is not None:
        import torch

        # A new thread begins on device 0, whatever the trainer uses.
        torch.cuda.set_device(cuda_device)
    for job in jobs:
        job()


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


def weights_now(
    rewards: Sequence[Any], args: Any, now: Any, run: RunContext
) -> tuple[Any, dict[str, float]]:
    """Return the weights of rewards at this step, and what to log about those that move.

    Args:
        args: of the trainer, with its `reward_weights`.
        now (F,): the weights until now, a tensor, which stay where no reward has one of its own.
    """
    weights = weights_at(rewards, args.reward_weights, run.step)
    if weights is None:
        return now, {}
    return now.new_tensor(weights), _scheduled_weights(rewards, weights)


def _scheduled_weights(rewards: Sequence[Any], weights: Sequence[float]) -> dict[str, float]:
    """Return what to log about weights that move: `rewards/R/weight` for each reward R."""
    metrics = {}
    for reward, weight in zip(rewards, weights, strict=True):
        if not isinstance(reward, ScoredReward):
            continue
        if isinstance(reward.reward.settings.weight, Schedule):
            metrics[f"rewards/{reward.__name__}/weight"] = weight
    return metrics
