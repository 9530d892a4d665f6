"""What a reward is: a plain function with TRL's signature, checked once, with its options fixed.

    fn(prompts, completions, completion_ids, **columns) -> list[float | None]

Parameters with a default, and keyword-only ones, are options of the reward. Parameters without a
default that the trainer does not pass are the columns of the data that it needs.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

from .bytecode import may_look_up
from .settings import LEAST_SECONDS, RewardSettings, checked_settings, is_seconds

_Function = TypeVar("_Function", bound=Callable[..., Any])

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
    batched: bool | None = None,
    in_process: bool | None = None,
    early: bool | None = None,
    timeout: float | None = None,
    concurrency: int = 16,
    imports: tuple[str, ...] = (),
    check: Callable[..., None] | None = None,
    answers: Callable[..., list[str | None]] | None = None,
    gold: str | None = None,
) -> Callable[[_Function], _Function]:
    """Say how the decorated reward is run (see `RewardSettings`).

    Where nothing is said, a reward that refers to nothing that can change runs in a worker process,
    and is called as TRL calls it, with all completions of a process at once.

    Raises:
        RewardSpecError: a value is not possible.
    """
    given: dict[str, Any] = {
        "batched": batched,
        "in_process": in_process,
        "early": early,
        "timeout": timeout,
        "concurrency": concurrency,
    }
    said = {name: value for name, value in given.items() if value is not None}
    checked = checked_settings("@reward_settings", said)
    settings = RewardSettings(
        **checked, imports=tuple(imports), check=check, answers=answers, gold=gold
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
    def purpose(self) -> str:
        """The first paragraph of the function's docstring in one line, or nothing."""
        text = inspect.getdoc(definition_of(self.function)) or ""
        return " ".join(text.partition("\n\n")[0].split())

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data without which the reward cannot be called."""
        columns = []
        for name, parameter in self.parameters.items():
            is_given = name in _FROM_TRAINER or name in self.options
            if parameter.default is parameter.empty and not is_given:
                columns.append(name)
        return tuple(columns)

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters of the function, by name."""
        # TRL passes everything by keyword, so what can only be positional counts for nothing.
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = {}
        for signature in self._signatures:
            for name, parameter in signature.parameters.items():
                if parameter.kind in kinds:
                    parameters[name] = parameter
        return parameters

    @cached_property
    def takes_all(self) -> bool:
        """Return whether the function takes every keyword, itself or what it wraps."""
        for signature in self._signatures:
            for parameter in signature.parameters.values():
                if parameter.kind is parameter.VAR_KEYWORD:
                    return True
        return False

    @property
    def _signatures(self) -> list[inspect.Signature]:
        # What `functools.wraps` has made looks like what it wraps, and is called as it is.
        return [inspect.signature(self.function, follow_wrapped=follow) for follow in (True, False)]

    def reads(self, name: str) -> bool:
        """Return whether the function may look at what the trainer passes under a name."""
        return name in self.parameters or (self.takes_all and may_look_up(self.function, name))

    def read_of(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of the data, among what the trainer passes, that the function reads.

        >>> reward = Reward("same", "same", lambda completions, answer, **other: [], {}, "here")
        >>> reward.read_of({"answer": ["4"], "topic": ["sums"], "prompts": ["2 + 2"]})
        {'answer': ['4']}
        """
        found = {}
        for name, values in columns.items():
            # An option that a recipe gives wins over a column of that name.
            if name not in _FROM_TRAINER and name not in self.options and self.reads(name):
                found[name] = values
        return found

    @property
    def known_options(self) -> dict[str, Any]:
        """Every option that the reward takes, with its default (`Parameter.empty` for none)."""
        options = {}
        for name, parameter in self.parameters.items():
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
        for name, default in self.known_options.items():
            if default is not inspect.Parameter.empty:
                options.setdefault(name, default)
        self.settings.check(**options)

    def time_limit(self, run_timeout: float | None) -> float | None:
        """Return the seconds that a run allows for one completion (with `batched`, for the call).

        None leaves it to `Patience`, which lets slow rewards be slow.

        A reward with an option `timeout` of its own ends by itself, and can say more about it than
        the run, so the run's limit is always behind it.

        Args:
            run_timeout: seconds, where neither the reward nor the recipe says anything; None where
                the run says nothing either.
        """
        default = self.known_options.get("timeout")
        own = self.options.get("timeout", default)
        declared = self.settings.timeout
        # What is no number of seconds has another meaning, or is refused by the reward itself.
        if not is_seconds(own):
            return declared or run_timeout
        if declared is None:
            return max(run_timeout or LEAST_SECONDS, own + _GRACE)
        # The declared limit belongs to the default: another value keeps the distance between them.
        return max(declared - default, _GRACE) + own if is_seconds(default) else declared

    def taken(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Return the columns that the function is called with."""
        taken = {}
        for name, value in columns.items():
            is_known = self.takes_all or name in self.parameters
            # An option that a recipe gives wins over a column of that name.
            if is_known and name not in self.options:
                taken[name] = value
        return taken


class AsyncReward(Reward):
    """A `Reward` whose function is `async def`; TRL awaits all of them together."""

    is_async = True

    async def __call__(self, **columns: Any) -> Any:
        return await self.function(**self.taken(columns), **self.options)


def definition_of(function: Any) -> Any:
    """Return what carries a callable's name, module and docstring.

    That is the function under partials, or the class of an object.
    """
    while isinstance(function, partial):
        function = function.func
    return function if hasattr(function, "__qualname__") else type(function)


def callable_name(function: Any) -> str:
    """Return the name that TRL gives to a reward: its own `__name__`, or that of its class."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def address(function: Any) -> str:
    """Return where a callable is defined, as `module:qualname`."""
    definition = definition_of(function)
    return f"{definition.__module__}:{definition.__qualname__}"
