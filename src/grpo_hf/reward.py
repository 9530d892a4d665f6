"""What a reward is: a plain function with TRL's signature, checked once, with its options fixed.

    fn(prompts, completions, completion_ids, **columns) -> list[float | None]

Its parameters with a default, and the keyword-only ones, are options. Those without a default that the trainer does not
pass are the dataset columns that it needs.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

from .errors import DataError, RewardSpecError, did_you_mean

_EXPECTED = "fn(prompts, completions, completion_ids, **columns) -> list[float | None]"
_FROM_TRAINER = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}


@dataclass(frozen=True, eq=False)
class Reward:
    """A reward function with its options, called as TRL calls one: by keyword.

    Args:
        name: short name, for metrics and tables.
        spec: what identifies it, options included, for logs and cards.
        function: the function; it gets the columns that it can take, and `options` instead of columns of that name.
        options: keyword arguments of every call.
        source: who provides it: `grpo-hf 0.1.0`, `registered in my_module`, `path/to/file.py`, or a module.
    """

    name: str
    spec: str
    function: Callable[..., Any]
    options: dict[str, Any]
    source: str

    is_async: ClassVar[bool] = False

    def __call__(self, **columns: Any) -> Any:
        return self.function(**self._arguments(columns))

    @property
    def __name__(self) -> str:  # TRL names a reward's metrics by it
        return self.name

    @property
    def doc(self) -> str:
        """First line of the function's docstring, or nothing."""
        return (inspect.getdoc(definition_of(self.function)) or "").partition("\n")[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """Dataset columns without which it cannot be called."""
        required = (name for name, parameter in self._parameters.items() if parameter.default is parameter.empty)
        return tuple(name for name in required if name not in _FROM_TRAINER and name not in self.options)

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {name: p for name, p in inspect.signature(self.function).parameters.items() if p.kind in kinds}

    @cached_property
    def _takes_all(self) -> bool:
        parameters = inspect.signature(self.function).parameters.values()
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)

    @property
    def _known_options(self) -> dict[str, Any]:
        """Every option that it takes, with its default (`Parameter.empty` for none)."""
        return {
            name: parameter.default
            for name, parameter in self._parameters.items()
            if (parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty)
            and name not in _FROM_TRAINER
        }

    def _arguments(self, columns: dict[str, Any]) -> dict[str, Any]:
        taken = {name: value for name, value in columns.items() if self._takes_all or name in self._parameters}
        return taken | self.options


class AsyncReward(Reward):
    """A `Reward` whose function is `async def`; TRL awaits all of them together."""

    is_async = True

    async def __call__(self, **columns: Any) -> Any:
        return await self.function(**self._arguments(columns))


def checked_reward(function: Any, name: str, spec: str, options: dict[str, Any], source: str) -> Reward:
    """The function as a `Reward`, if it can be called as one and takes these options."""
    if inspect.isclass(function) or inspect.isbuiltin(function) or not callable(function):
        what = "a class" if inspect.isclass(function) else f"of type {type(function).__name__}"
        raise RewardSpecError(f"reward {spec!r} is {what}; expected a function {_EXPECTED}.")
    forms = (function.func if isinstance(function, partial) else function, function.__call__)
    if any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in forms):
        raise RewardSpecError(f"reward {spec!r} is a generator; expected a function that returns: {_EXPECTED}.")
    kind = AsyncReward if any(map(inspect.iscoroutinefunction, forms)) else Reward
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    reward = kind(name, f"{spec}({given})" if given else spec, function, options, source)
    # The trainer passes prompts and completions; a column named in the singular never arrives.
    if not (reward._takes_all or "completions" in reward._parameters) or {"prompt", "completion"} & {*reward.columns}:
        signature = inspect.signature(function)
        raise RewardSpecError(f"reward {spec!r} has the signature {name}{signature}; expected {_EXPECTED}.")
    known = reward._known_options
    for option in options:
        if option not in known:
            raise RewardSpecError(
                f"reward {spec!r} has no option {option!r}.{did_you_mean(str(option), known)} Its options: "
                f"{', '.join(known) or 'none'}."
            )
    return reward


def definition_of(function: Any) -> Any:
    """What carries a callable's name, module and docstring: the function under partials, or an object's class."""
    while isinstance(function, partial):
        function = function.func
    return function if hasattr(function, "__qualname__") else type(function)


def address(function: Any) -> str:
    """Where a callable is defined, as `module:qualname`."""
    definition = definition_of(function)
    return f"{definition.__module__}:{definition.__qualname__}"


def require_columns(rewards: Iterable[Reward], columns: Sequence[str], source: str, remedy: str) -> None:
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
        missing = next((column for column in reward.columns if column not in {*columns, "prompt"}), None)
        if missing is not None:
            raise DataError(
                f"reward {reward.name!r} needs the column {missing!r}, which {source} does not have."
                f"{did_you_mean(missing, columns)} Its columns are {', '.join(columns)}. Rename one with "
                f"{remedy.format(missing)}."
            )
