"""The one door for rewards: every way to name one ends in the same checked `Reward`."""

import ast
import importlib
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard, TypeVar

from ..errors import (
    RewardError,
    RewardNotFound,
    RewardSpecError,
    did_you_mean,
)
from .reward import Reward, address, callable_name, definition_of
from .signature import checked_reward
from .user_files import import_file, importing

# The entry points by which installed packages provide rewards, ours among them.
_GROUP = "grpo_hf.rewards"
# What YAML and JSON call these, also inside of a list or a mapping.
_CONSTANTS = {"true": True, "false": False, "null": None}

_Function = TypeVar("_Function", bound=Callable[..., Any])
# What `register_reward` was told in this process.
_registered: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class InstalledReward:
    """A reward that can be named.

    Args:
        name, source, doc, columns: as those of `Reward`.
        options: every option with its default.
        error: why the reward cannot be used; empty where it can.
    """

    name: str
    source: str
    doc: str = ""
    columns: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def register_reward(name: str) -> Callable[[_Function], _Function]:
    """Give the decorated function a reward name in this process.

    A function that is defined again, by a reload or in a notebook, takes its own place.

    Raises:
        RewardSpecError: the name is not made of letters, digits, `_`, `-` and `.`, or it is another
            function's.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise RewardSpecError(
            f"register_reward got {name!r}; expected a name, as in @register_reward('concise')."
        )

    def register(function: _Function) -> _Function:
        owner = address(_registered.get(name, function))
        if owner != address(function):
            raise RewardSpecError(
                f"reward name {name!r} is taken by {owner}; register {address(function)} under "
                "another name."
            )
        _registered[name] = function
        return function

    return register


def load_reward(
    spec: str | Mapping[str, Mapping[str, Any] | None] | Callable[..., Any],
    *,
    relative_to: Path | None = None,
) -> Reward:
    """Return the reward that `spec` names, with its signature and options checked.

    Args:
        spec: a function, or text, tried in this order: a registered name or one of the entry-point
            group `grpo_hf.rewards`; `./file.py:function`; `package.module:function`. With options
            it is text, `name(key=value)`, or a mapping with one key, `{"name": {"key": value}}`.
        relative_to: folder that relative files are relative to; by default the current one.

    Raises:
        RewardNotFound: nothing has this name.
        RewardSpecError: two provide it, it cannot be imported, or its signature or options do not
            fit.
    """
    if isinstance(spec, Reward):
        return spec
    if isinstance(spec, str):
        name, options = split_spec(spec.strip())
    elif _is_name_with_options(spec):
        ((key, given),) = spec.items()
        name = str(key)
        options = dict(given or {})
    elif callable(spec):
        source = definition_of(spec).__module__
        return checked_reward(spec, callable_name(spec), address(spec), {}, source)
    else:
        raise RewardSpecError(
            f"reward {spec!r}: expected a function, a name, or one {{name: {{option: value}}}}."
        )
    function, short_name, source = _find(name, relative_to or Path())
    return checked_reward(function, short_name, name, options, source)


def _is_name_with_options(spec: Any) -> TypeGuard[Mapping[Any, Any]]:
    """Whether a spec is a mapping from one name to its options, as YAML has it."""
    if not isinstance(spec, Mapping) or len(spec) != 1:
        return False
    return all(isinstance(options, Mapping | None) for options in spec.values())


def installed_rewards() -> list[InstalledReward]:
    """Return every reward that has a name, sorted by it; one that cannot be used has its error."""
    listing = []
    for name in _known_names():
        try:
            reward = load_reward(name)
        except RewardError as error:
            source = ", ".join(_providers(name).values())
            listing.append(InstalledReward(name, source, error=str(error)))
            continue
        defaults = {}
        for option, default in reward.known_options.items():
            if default is not inspect.Parameter.empty:
                defaults[option] = default
        listing.append(InstalledReward(name, reward.source, reward.doc, reward.columns, defaults))
    return listing


def split_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Split `name(key=value, ...)` into name and options, which are literals: nothing is evaluated.

    Literals are those of Python, and `true`, `false` and `null` of YAML and JSON.

    Raises:
        RewardSpecError: the options cannot be read.
    """
    if not text.endswith(")"):
        return text, {}
    # The first bracket that opens a call counts: the path of a file may hold brackets as well.
    for bracket in re.finditer(r"\(", text):
        options = _literal_options(text[bracket.start() :])
        if options is not None:
            return text[: bracket.start()].rstrip(), options
    raise RewardSpecError(
        f"reward {text!r}: its options cannot be read; expected name(key=value, other='text'), "
        "each key once and each value a literal."
    )


def _literal_options(brackets: str) -> dict[str, Any] | None:
    """Read `(key=value, ...)`; None where it is no call with literals by keyword."""
    # A literal may be no Python, too deep, or a dictionary with a list for a key.
    with suppress(SyntaxError, ValueError, TypeError):
        call = ast.parse(f"options{brackets}", mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            options = {}
            for keyword in call.keywords:
                # `**more` has no name.
                if keyword.arg is not None:
                    options[keyword.arg] = ast.literal_eval(_PythonNames().visit(keyword.value))
            if len(options) == len(call.keywords):
                return options
    return None


class _PythonNames(ast.NodeTransformer):
    """Put Python's constants in the place of the names that YAML and JSON have for them."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_CONSTANTS[node.id]) if node.id in _CONSTANTS else node


def _find(name: str, folder: Path) -> tuple[Any, str, str]:
    """Return the function that `name` means, its short name and its source."""
    providers = _providers(name)
    if len(providers) > 1:
        owners = [f"{source} ({target})" for target, source in providers.items()]
        raise RewardSpecError(
            f"reward {name!r} is provided twice, by {' and by '.join(owners)}. Remove one, or name "
            f"the one that you mean as {next(iter(providers))!r}."
        )
    for target, source in providers.items():
        function = _registered.get(name) or _imported(target, f"reward {target} of {source}")
        return function, name, source
    named = named_function(name, folder)
    if named is not None:
        return named
    if name.endswith(".py") and (file := folder / Path(name).expanduser()).is_file():
        own = _functions_of(import_file(file))
        fitting = []
        for key, function in own.items():
            # Beside rewards a file has helpers, which take no completions.
            with suppress(RewardError):
                checked_reward(function, key, key, {}, name)
                fitting.append(key)
        choices = ", ".join(f"{name}:{key}" for key in fitting or own)
        raise RewardNotFound(
            f"reward {name!r} is a file; name one of its functions: {choices or 'none is there'}."
        )
    known = _known_names()
    raise RewardNotFound(
        f"reward {name!r} is not known.{did_you_mean(name, known)} Installed: "
        f"{', '.join(known) or 'none'} (see `grpo-hf rewards list`). Name a function of your own "
        "as './my_rewards.py:my_function' or 'package.module:function'."
    )


def named_function(name: str, folder: Path, kind: str = "reward") -> tuple[Any, str, str] | None:
    """Return the function that `./file.py:function` or `package.module:function` names.

    Args:
        folder: what files are relative to.
        kind: what it is called in errors.

    Returns:
        The function, its short name and its source; None where `name` has neither form.

    Raises:
        RewardNotFound: there is no such function.
        RewardSpecError: it cannot be imported.
    """
    place, _, attribute = name.rpartition(":")
    if place.endswith(".py"):
        file = folder / Path(place).expanduser()
        module = import_file(file, kind)
        # What was typed for the current folder, or is absolute, is named as it was typed.
        shown = str(file) if file == Path(place).expanduser() else _as_typed(file)
        return _attribute(module, attribute, f"{kind} {shown}"), attribute, shown
    if all(part.isidentifier() for part in place.split(".")):
        return _imported(name, f"{kind} {name}"), attribute, place
    return None


def _as_typed(file: Path) -> str:
    """Return the path of a file as a user would type it here.

    A file that was given as a flag is named from the folder of the recipe: `orders/../mine.py`.
    """
    if ".." not in file.parts:
        return str(file)
    # Links keep the names that a user knows.
    typed = os.path.relpath(file)
    # Beyond a link to a folder, `..` is the parent of another one.
    if Path(typed).resolve() != file.resolve():
        return str(file)
    return typed if typed.startswith("..") else os.path.join(".", typed)


def _known_names() -> list[str]:
    installed = {entry_point.name for entry_point in entry_points(group=_GROUP)}
    return sorted(installed | _registered.keys())


def _providers(name: str) -> dict[str, str]:
    """Return who provides a name, from `module:function` to source.

    A function that provides it twice, by an entry point and by registering, is one provider.
    """
    providers = {}
    for entry_point in entry_points(group=_GROUP, name=name):
        if entry_point.dist is not None:
            target = f"{entry_point.module}:{entry_point.attr}"
            providers[target] = f"{entry_point.dist.name} {entry_point.dist.version}"
    if name in _registered:
        function = _registered[name]
        source = f"registered in {definition_of(function).__module__}"
        providers.setdefault(address(function), source)
    return providers


def _imported(target: str, what: str) -> Any:
    module_name, _, attribute = target.rpartition(":")
    with importing(what, module_name):
        module = importlib.import_module(module_name)
    return _attribute(module, attribute, what)


def _functions_of(module: ModuleType) -> dict[str, Any]:
    """Return the public functions of a module: its own ones, or where it has none those it imports.

    What a module imports is seldom meant.
    """
    public = {}
    for key, value in vars(module).items():
        if inspect.isroutine(value) and not key.startswith("_"):
            public[key] = value
    own = {}
    for key, value in public.items():
        if getattr(value, "__module__", None) == module.__name__:
            own[key] = value
    return own or public


def _attribute(module: ModuleType, name: str, what: str) -> Any:
    try:
        return attrgetter(name)(module)
    except AttributeError:
        own = _functions_of(module)
        raise RewardNotFound(
            f"{what}: no function {name!r} there.{did_you_mean(name, own)} Expected one "
            f"of: {', '.join(own) or 'none is there'}."
        ) from None
