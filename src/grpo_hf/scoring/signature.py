"""Checks that a callable can be a reward: its signature, its options, the columns that it needs."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..errors import DataError, RewardSpecError, did_you_mean
from .reward import (
    AsyncReward,
    Reward,
    definition_of,
)
from .settings import SETTINGS, RewardSettings, checked_settings

_EXPECTED = (
    "fn(completions, COLUMN, **columns) -> list[float | None], with prompts and columns of the "
    "data by name where it reads them"
)


def checked_reward(
    function: Any, name: str, spec: str, options: dict[str, Any], source: str
) -> Reward:
    """Return the function as a `Reward`.

    Args:
        name: short name, for metrics and tables.
        spec: what it was named by, without options.
        options: of the reward, and settings beside them.
        source: who provides it.

    Raises:
        RewardSpecError: it cannot be called as a reward, or does not take these options.
    """
    if inspect.isclass(function) or inspect.isbuiltin(function) or not callable(function):
        what = "a class" if inspect.isclass(function) else f"of type {type(function).__name__}"
        raise RewardSpecError(f"reward {spec!r} is {what}; expected a function {_EXPECTED}.")
    # An object is what its `__call__` is, and a partial what it wraps.
    forms = (function.func if isinstance(function, partial) else function, function.__call__)
    if any(map(inspect.isasyncgenfunction, forms)):
        raise RewardSpecError(
            f"reward {spec!r} is an async generator; expected a function that returns: {_EXPECTED}."
        )
    kind = AsyncReward if any(map(inspect.iscoroutinefunction, forms)) else Reward
    whole_spec = spec
    if options:
        whole_spec += f"({', '.join(f'{key}={value!r}' for key, value in options.items())})"
    settings, options = _settings(function, spec, options)
    reward = kind(name, whole_spec, function, options, source, settings)
    takes_completions = reward.takes_all or "completions" in reward.parameters
    # The trainer passes prompts and completions; a column named in the singular never arrives.
    never_arrives = {"prompt", "completion"} & set(reward.columns)
    if not takes_completions or never_arrives:
        signature = inspect.signature(function)
        meant = [
            f"{each}s" for each in sorted(never_arrives) if f"{each}s" not in reward.parameters
        ]
        plural = f" Did you mean {' and '.join(meant)}?" if meant else ""
        raise RewardSpecError(
            f"reward {spec!r} has the signature {name}{signature}; expected {_EXPECTED}.{plural}"
        )
    known = reward.known_options
    _check_gold(reward)
    for option in options:
        if option not in known:
            raise RewardSpecError(
                f"reward {spec!r} has no option {option!r}.{did_you_mean(str(option), known)} Its "
                f"options: {', '.join(known) or 'none'}."
            )
    return reward


def _check_gold(reward: Reward) -> None:
    """Check that the column of right answers, if the reward names one, is one that it needs.

    Raises:
        RewardSpecError: it is no parameter, or one that has a default.
    """
    gold, function = reward.settings.gold, reward.function
    if gold is None:
        return
    if not isinstance(gold, str) or gold not in reward.parameters:
        read = [each for each in reward.parameters if each not in ("completions", "prompts")]
        raise RewardSpecError(
            f"reward {reward.spec!r}: gold is {gold!r}; expected the parameter that takes the "
            f"right answers, one of {', '.join(read) or 'none'}.{did_you_mean(str(gold), read)}"
        )
    # What a partial has put in is no default: whoever made it gives the answer for all rows.
    definition = function.func if isinstance(function, partial) else function
    parameter = inspect.signature(definition).parameters.get(gold)
    if parameter is not None and parameter.default is not parameter.empty:
        raise RewardSpecError(
            f"reward {reward.spec!r}: gold is {gold!r}, which has a default, so that rows without "
            "it are scored as well; expected a parameter without one. Take out the default, or the "
            "setting gold."
        )


def _settings(
    function: Any, spec: str, given: dict[str, Any]
) -> tuple[RewardSettings, dict[str, Any]]:
    """Split what a recipe gives into settings of the reward and options of its function.

    Returns:
        The function's own settings with those of the recipe put in, and the options.
    """
    own = getattr(definition_of(function), "reward_settings", RewardSettings())
    parameters = inspect.signature(function).parameters
    settings: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in given.items():
        # A parameter of the function wins over a setting of that name.
        is_setting = name in SETTINGS and name not in parameters
        (settings if is_setting else options)[name] = value
    return replace(own, **checked_settings(f"reward {spec!r}", settings)), options


def needed_columns(rewards: Iterable[Reward]) -> list[str]:
    """Return the columns that rewards read."""
    needed: set[str] = set()
    for reward in rewards:
        needed.update(reward.columns)
    # Sorted, so that the message about an empty column names the same one in every run.
    return sorted(needed)


def gold_columns(rewards: Sequence[Reward]) -> set[str]:
    """Return the columns of which a reward says that a blank text is no right answer there."""
    named = {reward.settings.gold for reward in rewards}
    return {column for column in needed_columns(rewards) if column in named}


def require_columns(
    rewards: Iterable[Reward], columns: Sequence[str], source: str, remedy: str
) -> None:
    """Check that data has the columns that rewards read.

    Args:
        rewards: whose columns are needed.
        columns: what the data has, beside the prompt.
        source: the data's name.
        remedy: how a column is renamed there, with `{}` for the name that the reward wants.

    Raises:
        DataError: names the reward, the column and the columns there are.
    """
    for reward in rewards:
        for column in reward.columns:
            if column in columns or column == "prompt":
                continue
            raise DataError(
                f"reward {reward.name!r} needs the column {column!r}, which {source} does not "
                f"have.{did_you_mean(column, columns)} Its columns are {', '.join(columns)}. "
                f"Rename one with {remedy.format(column)}."
            )
