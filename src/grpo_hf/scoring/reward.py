"""What a reward is: a plain function with TRL's signature, checked once, with its options fixed.

    fn(prompts, completions, completion_ids, **columns) -> list[float | None]

Parameters with a default, and keyword-only ones, are options of the reward. Parameters without a
default that the trainer does not pass are the columns of the data that it needs.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

from ..errors import DataError, RewardSpecError, did_you_mean
from .settings import SETTINGS, RewardSettings, checked_settings, is_seconds

_Function = TypeVar("_Function", bound=Callable[..., Any])

_EXPECTED = "fn(prompts, completions, completion_ids, **columns) -> list[float | None]"
# Seconds by which the run's limit is at least behind a reward's own `timeout`.
_GRACE = 5.0
# What a trainer passes: these are neither columns of the data nor options.
_FROM_TRAINER = {
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
}


def reward_settings(
    *,
    batched: bool = False,
    in_process: bool = False,
    early: bool = True,
    timeout: float | None = None,
    concurrency: int = 16,
    imports: tuple[str, ...] = (),
    check: Callable[..., None] | None = None,
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
    # None means the run's own time-out, and is no number of seconds to check.
    if timeout is not None:
        given["timeout"] = timeout
    checked = checked_settings("@reward_settings", given)
    settings = RewardSettings(**checked, imports=tuple(imports), check=check)

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
        function: the function; it gets the columns that it can take, and `options` instead of
            columns of that name.
        options: keyword arguments of every call.
        source: who provides it: `grpo-hf 0.1.0`, `registered in my_module`, `path/to/file.py`, or a
            module.
        settings: how it is run and what it counts for.
    """

    name: str
    spec: str
    function: Callable[..., Any]
    options: dict[str, Any]
    source: str
    settings: RewardSettings = field(default_factory=RewardSettings)

    is_async: ClassVar[bool] = False

    def __call__(self, **columns: Any) -> Any:
        return self.function(**self.taken(columns), **self.options)

    @property
    def __name__(self) -> str:
        # TRL names the metrics of a reward by it.
        return self.name

    @property
    def doc(self) -> str:
        """The first line of the function's docstring, or nothing."""
        return (inspect.getdoc(definition_of(self.function)) or "").partition("\n")[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data without which the reward cannot be called."""
        columns = []
        for name, parameter in self._parameters.items():
            is_given = name in _FROM_TRAINER or name in self.options
            if parameter.default is parameter.empty and not is_given:
                columns.append(name)
        return tuple(columns)

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        # TRL passes everything by keyword, so what can only be positional counts for nothing.
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.kind in kinds:
                parameters[name] = parameter
        return parameters

    @cached_property
    def _takes_all(self) -> bool:
        parameters = inspect.signature(self.function).parameters.values()
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)

    @property
    def _known_options(self) -> dict[str, Any]:
        """Every option that the reward takes, with its default (`Parameter.empty` for none)."""
        options = {}
        for name, parameter in self._parameters.items():
            is_keyword_only = parameter.kind is parameter.KEYWORD_ONLY
            is_option = is_keyword_only or parameter.default is not parameter.empty
            if is_option and name not in _FROM_TRAINER:
                options[name] = parameter.default
        return options

    def check_options(self) -> None:
        """Let the reward's own `check` see the options with which it will be called.

        Raises:
            RewardSpecError: an option is impossible.
        """
        if self.settings.check is None:
            return
        options = dict(self.options)
        for name, default in self._known_options.items():
            if default is not inspect.Parameter.empty:
                options.setdefault(name, default)
        self.settings.check(**options)

    def time_limit(self, run_timeout: float) -> float:
        """Return the seconds that a run allows for one completion (with `batched`, for the call).

        A reward with an option `timeout` of its own ends by itself, and can say more about it than
        the run, so the run's limit is always behind it.

        Args:
            run_timeout: seconds, where neither the reward nor the recipe says anything.
        """
        default = self._known_options.get("timeout")
        own = self.options.get("timeout", default)
        declared = self.settings.timeout
        # What is no number of seconds has another meaning, or is refused by the reward itself.
        if not is_seconds(own):
            return declared or run_timeout
        if declared is None:
            return max(run_timeout, own + _GRACE)
        # The declared limit belongs to the default: another value keeps the distance between them.
        return max(declared - default, _GRACE) + own if is_seconds(default) else declared

    def taken(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Return the columns that the function is called with."""
        taken = {}
        for name, value in columns.items():
            is_known = self._takes_all or name in self._parameters
            # An option that a recipe gives wins over a column of that name.
            if is_known and name not in self.options:
                taken[name] = value
        return taken


class AsyncReward(Reward):
    """A `Reward` whose function is `async def`; TRL awaits all of them together."""

    is_async = True

    async def __call__(self, **columns: Any) -> Any:
        return await self.function(**self.taken(columns), **self.options)


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
    if any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in forms):
        raise RewardSpecError(
            f"reward {spec!r} is a generator; expected a function that returns: {_EXPECTED}."
        )
    kind = AsyncReward if any(map(inspect.iscoroutinefunction, forms)) else Reward
    whole_spec = spec
    if options:
        whole_spec += f"({', '.join(f'{key}={value!r}' for key, value in options.items())})"
    settings, options = _settings(function, spec, options)
    reward = kind(name, whole_spec, function, options, source, settings)
    takes_completions = reward._takes_all or "completions" in reward._parameters
    # The trainer passes prompts and completions; a column named in the singular never arrives.
    never_arrives = {"prompt", "completion"} & set(reward.columns)
    if not takes_completions or never_arrives:
        signature = inspect.signature(function)
        raise RewardSpecError(
            f"reward {spec!r} has the signature {name}{signature}; expected {_EXPECTED}."
        )
    known = reward._known_options
    for option in options:
        if option not in known:
            raise RewardSpecError(
                f"reward {spec!r} has no option {option!r}.{did_you_mean(str(option), known)} Its "
                f"options: {', '.join(known) or 'none'}."
            )
    return reward


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


def definition_of(function: Any) -> Any:
    """Return what carries a callable's name, module and docstring.

    That is the function under partials, or the class of an object.
    """
    while isinstance(function, partial):
        function = function.func
    return function if hasattr(function, "__qualname__") else type(function)


def address(function: Any) -> str:
    """Return where a callable is defined, as `module:qualname`."""
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
        for column in reward.columns:
            if column in columns or column == "prompt":
                continue
            raise DataError(
                f"reward {reward.name!r} needs the column {column!r}, which {source} does not "
                f"have.{did_you_mean(column, columns)} Its columns are {', '.join(columns)}. "
                f"Rename one with {remedy.format(column)}."
            )
