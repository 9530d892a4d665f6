"""What a reward is: a plain function with TRL's signature, checked once, with its options fixed.

    fn(prompts, completions, completion_ids, **columns) -> list[float | None]

Its parameters with a default, and the keyword-only ones, are options. Those without a default that the trainer does not
pass are the dataset columns that it needs.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

from ..errors import DataError, RewardSpecError, did_you_mean

_Function = TypeVar("_Function", bound=Callable[..., Any])

_EXPECTED = "fn(prompts, completions, completion_ids, **columns) -> list[float | None]"
_FROM_TRAINER = {
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
}


@dataclass(frozen=True)
class RewardSettings:
    """How a reward is run and what it counts for.

    The first six are the function's own, by `reward_settings`; a recipe can give all of them beside the reward's
    options, as in `judge(model='...', timeout=60, weight='linear(0, 1, steps=200)')`.

    Args:
        batched: one call gets all completions of a rollout, for rewards that compare them; a failure then costs all of
            them their value.
        in_process: called in the trainer's process, for rewards of microseconds and for those that hold a model. It is
            protected from exceptions, but from nothing else.
        early: may begin when completions exist, in a thread or a process, while the reference is computed; not for one
            that uses the device itself, or waits for other processes of the run.
        timeout: seconds for one completion (with `batched`, for the call), instead of `reward_timeout`.
        concurrency: how many completions an `async def` reward may have under way at a time.
        imports: modules that are slow to import: they are, once, before completions are timed.
        weight: what it is multiplied by in the sum of rewards: a number, or a schedule.
        clip: the lowest and the highest value; what is beyond becomes that.
    """

    batched: bool = False
    in_process: bool = False
    early: bool = True
    timeout: float | None = None
    concurrency: int = 16
    imports: tuple[str, ...] = ()
    weight: "float | Schedule | None" = None
    clip: tuple[float, float] | None = None


@dataclass(frozen=True)
class Schedule:
    """A weight that moves from `start` to `end` over `steps` optimizer steps, and then stays.

    >>> Schedule.parse("linear(0, 1, steps=200)").at(50)
    0.25
    """

    start: float
    end: float
    steps: int

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Read `linear(start, end, steps=n)`.

        Raises:
            ValueError: it is something else.
        """
        match = re.fullmatch(
            r"\s*linear\(\s*([^,\s]+)\s*,\s*([^,\s]+)\s*,\s*(?:steps\s*=\s*)?(\d+)\s*\)\s*", text
        )
        if match is None or int(match[3]) < 1:
            raise ValueError(text)
        return cls(_finite(match[1]), _finite(match[2]), int(match[3]))

    def at(self, step: int) -> float:
        """The weight after as many steps."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


def reward_settings(
    *,
    batched: bool = False,
    in_process: bool = False,
    early: bool = True,
    timeout: float | None = None,
    concurrency: int = 16,
    imports: tuple[str, ...] = (),
) -> Callable[[_Function], _Function]:
    """Say how the decorated reward is run (see `RewardSettings`).

    Without it a reward runs in worker processes, one completion at a time.

    Raises:
        RewardSpecError: a value is not possible.
    """
    given: dict[str, Any] = {
        "batched": batched,
        "in_process": in_process,
        "early": early,
        "concurrency": concurrency,
    }
    given |= {} if timeout is None else {"timeout": timeout}
    settings = RewardSettings(
        **_checked_settings("@reward_settings", given), imports=tuple(imports)
    )

    def decorate(function: _Function) -> _Function:
        function.reward_settings = settings  # type: ignore[attr-defined]
        return function

    return decorate


@dataclass(frozen=True, eq=False)
class Reward:
    """A reward function with its options, called as TRL calls one: by keyword.

    Args:
        name: short name, for metrics and tables.
        spec: what identifies it, options included, for logs and cards.
        function: the function; it gets the columns that it can take, and `options` instead of columns of that name.
        options: keyword arguments of every call.
        source: who provides it: `grpo-hf 0.1.0`, `registered in my_module`, `path/to/file.py`, or a module.
        settings: how it is run and what it counts for.
    """

    name: str
    spec: str
    function: Callable[..., Any]
    options: dict[str, Any]
    source: str
    settings: RewardSettings = RewardSettings()

    is_async: ClassVar[bool] = False

    def __call__(self, **columns: Any) -> Any:
        return self.function(**self.taken(columns), **self.options)

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
        required = (
            name
            for name, parameter in self._parameters.items()
            if parameter.default is parameter.empty
        )
        return tuple(
            name for name in required if name not in _FROM_TRAINER and name not in self.options
        )

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {
            name: p
            for name, p in inspect.signature(self.function).parameters.items()
            if p.kind in kinds
        }

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
            if (
                parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty
            )
            and name not in _FROM_TRAINER
        }

    def taken(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Those columns that the function is called with."""
        known = self._parameters if not self._takes_all else columns
        return {
            name: value
            for name, value in columns.items()
            if name in known and name not in self.options
        }


class AsyncReward(Reward):
    """A `Reward` whose function is `async def`; TRL awaits all of them together."""

    is_async = True

    async def __call__(self, **columns: Any) -> Any:
        return await self.function(**self.taken(columns), **self.options)


def checked_reward(
    function: Any, name: str, spec: str, options: dict[str, Any], source: str
) -> Reward:
    """The function as a `Reward`, if it can be called as one and takes these options."""
    if inspect.isclass(function) or inspect.isbuiltin(function) or not callable(function):
        what = "a class" if inspect.isclass(function) else f"of type {type(function).__name__}"
        raise RewardSpecError(f"reward {spec!r} is {what}; expected a function {_EXPECTED}.")
    forms = (function.func if isinstance(function, partial) else function, function.__call__)
    if any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in forms):
        raise RewardSpecError(
            f"reward {spec!r} is a generator; expected a function that returns: {_EXPECTED}."
        )
    kind = AsyncReward if any(map(inspect.iscoroutinefunction, forms)) else Reward
    given = ", ".join(f"{key}={value!r}" for key, value in options.items())
    settings, options = _settings(function, spec, options)
    reward = kind(name, f"{spec}({given})" if given else spec, function, options, source, settings)
    # The trainer passes prompts and completions; a column named in the singular never arrives.
    if not (reward._takes_all or "completions" in reward._parameters) or {
        "prompt",
        "completion",
    } & {*reward.columns}:
        signature = inspect.signature(function)
        raise RewardSpecError(
            f"reward {spec!r} has the signature {name}{signature}; expected {_EXPECTED}."
        )
    known = reward._known_options
    for option in options:
        if option not in known:
            raise RewardSpecError(
                f"reward {spec!r} has no option {option!r}.{did_you_mean(str(option), known)} Its options: "
                f"{', '.join(known) or 'none'}."
            )
    return reward


def _settings(
    function: Any, spec: str, given: dict[str, Any]
) -> tuple[RewardSettings, dict[str, Any]]:
    """A function's settings with those among its options put in, and the options that are left: its own."""
    own = getattr(definition_of(function), "reward_settings", RewardSettings())
    signature = inspect.signature(function).parameters
    settings = {
        name: value for name, value in given.items() if name in _SETTINGS and name not in signature
    }
    others = {name: value for name, value in given.items() if name not in settings}
    return replace(own, **_checked_settings(f"reward {spec!r}", settings)), others


def _checked_settings(where: str, given: dict[str, Any]) -> dict[str, Any]:
    checked = {}
    for name, value in given.items():
        convert, expected = _SETTINGS[name]
        try:
            checked[name] = convert(value)
        except (ValueError, TypeError, KeyError):
            raise RewardSpecError(f"{where}: {name} is {value!r}; expected {expected}.") from None
    return checked


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError(value)
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(value)
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError(value)
    return float(value)


def _weight(value: Any) -> float | Schedule:
    return Schedule.parse(value) if isinstance(value, str) and "(" in value else _finite(value)


def _limits(value: Any) -> tuple[float, float]:
    low, high = map(_finite, value)
    if not low < high:
        raise ValueError(value)
    return low, high


_YES_OR_NO = ({True: True, False: False}.__getitem__, "true or false")
_SETTINGS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "batched": _YES_OR_NO,
    "in_process": _YES_OR_NO,
    "early": _YES_OR_NO,
    "timeout": (_positive, "seconds above 0"),
    "concurrency": (_whole, "a whole number above 0"),
    "weight": (_weight, "a number, or linear(start, end, steps=n)"),
    "clip": (_limits, "two numbers, the lower one first"),
}


def definition_of(function: Any) -> Any:
    """What carries a callable's name, module and docstring: the function under partials, or an object's class."""
    while isinstance(function, partial):
        function = function.func
    return function if hasattr(function, "__qualname__") else type(function)


def address(function: Any) -> str:
    """Where a callable is defined, as `module:qualname`."""
    definition = definition_of(function)
    return f"{definition.__module__}:{definition.__qualname__}"


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
        missing = next(
            (column for column in reward.columns if column not in {*columns, "prompt"}), None
        )
        if missing is not None:
            raise DataError(
                f"reward {reward.name!r} needs the column {missing!r}, which {source} does not have."
                f"{did_you_mean(missing, columns)} Its columns are {', '.join(columns)}. Rename one with "
                f"{remedy.format(missing)}."
            )
