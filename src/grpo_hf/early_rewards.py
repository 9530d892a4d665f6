"""Rewards while the device works: scoring begins when the completions exist, and is collected when it is asked for.

TRL 1.16 scores after the old and the reference pass, on the main thread. Here synchronous rewards run one after the
other in a thread meanwhile, and `async def` ones in TRL's event loop. A reward can tell: `signal` does not work off the
main thread (math-verify's timeout needs it), and what it reads of the trainer is what the reference pass has made of it
at that moment. One that raises in the thread is run again, with those after it, on the main thread, and stays there if
that works; `early_rewards=False` keeps all of them there.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from accelerate.logging import get_logger

from .config import option
from .scoring import AsyncCheckedReward, CheckedReward

logger = get_logger(__name__)

Job = tuple["Future[Any]", Callable[[], Any]]


class EarlyReward:
    """A checked reward that can be begun before it is called."""

    def __init__(self, checked: CheckedReward) -> None:
        self.checked, self.reward = checked, checked.reward
        self.__name__ = checked.__name__
        self.off_main_thread = True
        self._begun: tuple[Any, Future[Any], list[Any]] | None = None

    def begin(self, trainer: Any, *, completions: Sequence[Any], **columns: Any) -> list[Job]:
        """Be ready to be collected; returns what the thread has to run for that."""
        logged: list[tuple[str, tuple[Any, ...]]] = []  # what the reward logs counts once it has not failed
        columns |= {
            "trainer_state": trainer.state,
            "log_extra": lambda *entry: logged.append(("log_extra", entry)),
            "log_metric": lambda *entry: logged.append(("log_metric", entry)),
        }
        future, jobs = self._submit(trainer, lambda: self.checked(completions=completions, **columns))
        self._begun = completions, future, logged
        return jobs

    def _submit(self, trainer: Any, call: Callable[[], Any]) -> tuple["Future[Any]", list[Job]]:
        future: Future[Any] = Future()
        return future, [(future, call)]

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> Any:
        begun, self._begun = self._begun, None
        if begun is None or begun[0] is not completions:
            return self.checked(completions=completions, **columns)
        _, future, logged = begun
        if (error := future.exception()) is None:
            return _replay(future.result(), logged, columns)
        values = self.checked(completions=completions, **columns)
        if not isinstance(error, _NotBegunError):
            self.off_main_thread = False
            logger.warning(
                f"The reward {self.__name__!r} fails off the main thread ({error}) and works on it, where it stays; "
                "scoring it no longer overlaps with the reference pass."
            )
        return values


class AsyncEarlyReward(EarlyReward):
    """`EarlyReward` for an `async def` reward."""

    def _submit(self, trainer: Any, call: Callable[[], Any]) -> tuple["Future[Any]", list[Job]]:
        return asyncio.run_coroutine_threadsafe(call(), trainer.async_loop), []

    async def __call__(self, *, completions: Sequence[Any], **columns: Any) -> Any:
        begun, self._begun = self._begun, None
        if begun is None or begun[0] is not completions:
            return await self.checked(completions=completions, **columns)
        return _replay(await asyncio.wrap_future(begun[1]), begun[2], columns)


class _NotBegunError(Exception):
    """A reward before this one failed."""


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
    """Start the rewards on a rollout, with the arguments that TRL 1.16's `_calculate_rewards` will give them.

    A rollout function and environments add columns later, so with them rewards start when they are called; so does one
    that needs the main thread, and everything after it, in the order that TRL has.
    """
    if (
        not option(trainer.args, "early_rewards")
        or trainer.rollout_func is not None
        or trainer.environments is not None
    ):
        return
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "completion")}
    columns |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    jobs: list[Job] = []
    in_order = True
    for reward in trainer.reward_funcs:
        if isinstance(reward, EarlyReward):
            in_order = in_order and reward.off_main_thread
            if in_order or isinstance(reward, AsyncEarlyReward):
                jobs += reward.begin(trainer, **columns)
    device = trainer.accelerator.device
    if jobs:  # a daemon: a reward that hangs must not keep an interrupted program alive
        threading.Thread(target=_run, args=(jobs, device), name="rewards", daemon=True).start()


def _run(jobs: list[Job], device: torch.device) -> None:
    """Run jobs in order up to the first that fails."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # which is a thread's own
    failed = False
    for future, call in jobs:
        if failed:
            future.set_exception(_NotBegunError())
            continue
        try:
            future.set_result(call())
        except Exception as error:  # whatever a reward may raise; it is raised again where the run can see it
            failed = True
            future.set_exception(error)
