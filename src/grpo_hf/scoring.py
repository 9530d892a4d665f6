"""Rewards as the trainer calls them: loaded through the one door, and their answers checked.

B = N·G completions of a rollout; a reward returns one number or None for each.
"""

import asyncio
import inspect
import math
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from numbers import Real
from typing import Any

from .errors import RewardOutputError, RewardSpecError
from .plugins import load_reward
from .reward import Reward, require_columns

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")
_LARGEST = 3.4028234663852886e38  # float32's, which the trainer keeps rewards in


def checked_rewards(reward_funcs: Any) -> list[Any] | None:
    """Load every entry of `reward_funcs` and wrap it so that what it returns is checked.

    Reward models (modules, model folders, `org/name`) pass through for TRL to load.
    """
    if reward_funcs is None:
        return None
    entries = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    return [entry if _is_reward_model(entry) else CheckedReward.of(load_reward(entry)) for entry in entries]


def check_columns(rewards: Any, dataset: Any) -> None:
    """Check that a dataset has the columns that rewards read; a streaming one may not say, and passes.

    Raises:
        DataError: see `require_columns`.
    """
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        ours = [entry.reward for entry in rewards or () if isinstance(entry, CheckedReward)]
        require_columns(ours, columns, "the dataset", "dataset.rename_column(..., '{}')")


def score(reward: Callable[..., Any], *, trainer_state: Any = None, **columns: Any) -> Any:
    """What a reward, synchronous or not, returns outside a trainer; what it logs is not kept."""
    values = reward(trainer_state=trainer_state, log_extra=_unheard, log_metric=_unheard, **columns)
    return asyncio.run(values) if inspect.iscoroutine(values) else values


def _unheard(*_: Any) -> None:
    """In the place of the trainer's logs."""


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
    return hasattr(entry, "parameters") and hasattr(entry, "forward")  # a torch module, without importing torch


class CheckedReward:
    """A reward whose every answer is one finite number or None per completion, or a clear error."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.__name__ = reward.name  # TRL names the reward's metrics by it

    @classmethod
    def of(cls, reward: Reward) -> "CheckedReward":
        """The wrapper that fits a synchronous or an `async def` reward."""
        return (AsyncCheckedReward if reward.is_async else cls)(reward)

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> Any:
        with _named(self.reward.name):
            values = self.reward(completions=completions, **columns)
        return checked_values(self.reward.name, values, len(completions))


class AsyncCheckedReward(CheckedReward):
    """`CheckedReward` for an `async def` reward; TRL awaits all of them together."""

    async def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        with _named(self.reward.name):
            values = await self.reward(completions=completions, **columns)
        return checked_values(self.reward.name, values, len(completions))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say in whose code an exception came up; a bug in a reward is the user's to see, with its traceback."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This was raised by the reward {name!r}.")
        raise


def checked_values(name: str, values: Any, expected: int) -> list[float | None]:
    """What a reward returned, as `list[float | None]` of the expected length.

    Numbers of any kind become floats, numpy and torch scalars and booleans among them; NaN means "cannot judge", like
    None. A list, tuple, array or tensor of them is accepted.

    Raises:
        RewardOutputError: not a sequence, the wrong length, an entry that is not a number, or one beyond float32's
            range.

    >>> checked_values("demo", (True, None, 0.5), 3)
    [1.0, None, 0.5]
    """
    if hasattr(values, "tolist"):  # numpy array or torch tensor
        values = values.tolist()
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise RewardOutputError(
            f"reward {name!r} returned {type(values).__name__}; expected a list of {expected} numbers or None, one per "
            "completion."
        )
    if len(values) != expected:
        raise RewardOutputError(
            f"reward {name!r} returned {len(values)} values for {expected} completions; expected one per completion, "
            "None for those it cannot judge."
        )
    return [_checked_value(name, index, value) for index, value in enumerate(values)]


def _checked_value(name: str, index: int, value: Any) -> float | None:
    if value is None:
        return None
    if getattr(value, "ndim", None) == 0:  # numpy or torch scalar
        value = value.item()
    if not isinstance(value, Real | Decimal):
        raise RewardOutputError(
            f"reward {name!r} returned {reprlib.repr(value)} ({type(value).__name__}) for completion {index}; expected "
            "a number or None."
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if abs(number) > _LARGEST:
        raise RewardOutputError(
            f"reward {name!r} returned {number} for completion {index}; what float32 cannot hold makes every advantage "
            "of its group NaN. Clip it in the reward."
        )
    return None if math.isnan(number) else number
