"""Rewards while the device works: scoring begins when the completions exist, and is collected when it is asked for.

TRL 1.16 scores after the old and the reference pass. Here a synchronous reward runs in a thread meanwhile, one after
the other as TRL would run them, and an `async def` one in TRL's event loop. Neither sees a difference, except that
`signal` does not work off the main thread (math-verify's timeout needs it): a reward that raises in the thread runs
again on the main one, and stays there if that works.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from accelerate.logging import get_logger

from .scoring import AsyncCheckedReward, CheckedReward

logger = get_logger(__name__)

_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")  # a thread starts with the first reward


class EarlyReward:
    """A checked reward that can be begun before it is called."""

    def __init__(self, checked: CheckedReward) -> None:
        self.checked, self.reward = checked, checked.reward
        self.__name__ = checked.__name__
        self._begun: tuple[Any, Future[Any], list[Any]] | None = None
        self._off_main_thread = True

    def begin(self, trainer: Any, *, completions: Sequence[Any], **columns: Any) -> None:
        """Start scoring; `trainer` lends its event loop and its logs."""
        if not self._off_main_thread:
            return
        logged: list[tuple[str, tuple[Any, ...]]] = []  # what the reward logs counts once it has not failed
        columns |= {
            "trainer_state": trainer.state,
            "log_extra": lambda *entry: logged.append(("log_extra", entry)),
            "log_metric": lambda *entry: logged.append(("log_metric", entry)),
        }
        future = self._submit(trainer, lambda: self.checked(completions=completions, **columns))
        self._begun = completions, future, logged

    def _submit(self, trainer: Any, call: Callable[[], Any]) -> "Future[Any]":
        return _THREAD.submit(call)

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> Any:
        begun, self._begun = self._begun, None
        if begun is None or begun[0] is not completions:
            return self.checked(completions=completions, **columns)
        _, future, logged = begun
        if (error := future.exception()) is None:
            return _replay(future.result(), logged, columns)
        values = self.checked(completions=completions, **columns)
        logger.warning(
            f"The reward {self.__name__!r} fails off the main thread ({error}) and works on it, where it stays; "
            "scoring it no longer overlaps with the reference pass."
        )
        self._off_main_thread = False
        return values


class AsyncEarlyReward(EarlyReward):
    """`EarlyReward` for an `async def` reward."""

    def _submit(self, trainer: Any, call: Callable[[], Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(call(), trainer.async_loop)

    async def __call__(self, *, completions: Sequence[Any], **columns: Any) -> Any:
        begun, self._begun = self._begun, None
        if begun is None or begun[0] is not completions:
            return await self.checked(completions=completions, **columns)
        return _replay(await asyncio.wrap_future(begun[1]), begun[2], columns)


def _replay(values: Any, logged: list[tuple[str, tuple[Any, ...]]], columns: dict[str, Any]) -> Any:
    for function, entry in logged:
        columns[function](*entry)
    return values


def early(rewards: list[Any] | None) -> list[Any] | None:
    """Checked rewards as early ones; reward models stay as they are."""
    if rewards is None:
        return None
    kinds = {AsyncCheckedReward: AsyncEarlyReward, CheckedReward: EarlyReward}
    return [kinds[type(reward)](reward) if type(reward) in kinds else reward for reward in rewards]


def begin(trainer: Any, rows: Sequence[dict[str, Any]], prompts: Any, completions: Any, completion_ids: Any) -> None:
    """Start every reward on a rollout, with the arguments that TRL 1.16's `_calculate_rewards` will give it.

    A rollout function and environments add columns later, so with them rewards start when they are called.
    """
    if trainer.rollout_func is not None or trainer.environments is not None:
        return
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    for name in ("prompt", "completion"):
        columns.pop(name, None)
    for reward in trainer.reward_funcs:
        if isinstance(reward, EarlyReward):
            reward.begin(trainer, **columns)
