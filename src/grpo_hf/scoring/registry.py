"""The one door for rewards: every way to name one ends in the same checked `Reward`."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ..errors import RewardError, RewardNotFound, RewardSpecError, did_you_mean
from .reward import Reward, address, checked_reward, definition_of

_GROUP = "grpo_hf.rewards"
_FILE_MODULE = "grpo_hf_file"

_Function = TypeVar("_Function", bound=Callable[..., Any])
_registered: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class InstalledReward:
    """A reward that can be named: its options with their defaults, or `error`, the reason why it cannot be used."""

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
        RewardSpecError: the name is not made of letters, digits, `_`, `-` and `.`, or it is another function's.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise RewardSpecError(
            f"register_reward got {name!r}; expected a name, as in @register_reward('concise')."
        )

    def register(function: _Function) -> _Function:
        owner = address(_registered.get(name, function))
        if owner != address(function):
            raise RewardSpecError(
                f"reward name {name!r} is taken by {owner}; register {address(function)} under another name."
            )
        _registered[name] = function
        return function

    return register


def load_reward(
    spec: str | Mapping[str, Mapping[str, Any] | None] | Callable[..., Any],
    *,
    relative_to: Path | None = None,
) -> Reward:
    """The reward that `spec` names, its signature and options checked.

    Args:
        spec: a function, or text, tried in this order: a registered name or one of the entry-point group
            `grpo_hf.rewards`; `./file.py:function`; `package.module:function`. With options it is text,
            `name(key=value)`, or a mapping with one key, `{"name": {"key": value}}`.
        relative_to: folder that relative files are relative to; by default the current one.

    Raises:
        RewardNotFound: nothing has this name.
        RewardSpecError: two provide it, it cannot be imported, or its signature or options do not fit.
    """
    if isinstance(spec, Reward):
        return spec
    if isinstance(spec, str):
        name, options = split_spec(spec.strip())
    elif (
        isinstance(spec, Mapping)
        and len(spec) == 1
        and all(isinstance(v, Mapping | None) for v in spec.values())
    ):
        name, options = next((str(name), dict(options or {})) for name, options in spec.items())
    elif callable(spec):
        definition = definition_of(spec)
        return checked_reward(spec, definition.__name__, address(spec), {}, definition.__module__)
    else:
        raise RewardSpecError(
            f"reward {spec!r}: expected a function, a name, or one {{name: {{option: value}}}}."
        )
    function, short_name, source = _find(name, relative_to or Path())
    return checked_reward(function, short_name, name, options, source)


def installed_rewards() -> list[InstalledReward]:
    """Every reward that has a name, sorted by it; what cannot be used is listed with its error."""
    listing = []
    for name in _known_names():
        try:
            reward = load_reward(name)
        except RewardError as error:
            listing.append(
                InstalledReward(name, ", ".join(_providers(name).values()), error=str(error))
            )
        else:
            defaults = {
                k: v for k, v in reward._known_options.items() if v is not inspect.Parameter.empty
            }
            listing.append(
                InstalledReward(name, reward.source, reward.doc, reward.columns, defaults)
            )
    return listing


def split_spec(text: str) -> tuple[str, dict[str, Any]]:
    """`name(key=value, ...)` as name and options, which are literals: nothing is evaluated.

    Raises:
        RewardSpecError: the options cannot be read.
    """
    if not text.endswith(")"):
        return text, {}
    for bracket in re.finditer(
        r"\(", text
    ):  # the first that opens a call: a path may hold brackets as well
        with suppress(SyntaxError, ValueError, TypeError):  # TypeError: a literal {[]: 1}
            call = ast.parse(f"options{text[bracket.start() :]}", mode="eval").body
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
                options = {key.arg: ast.literal_eval(key.value) for key in call.keywords if key.arg}
                if len(options) == len(call.keywords):
                    return text[: bracket.start()].rstrip(), options
    raise RewardSpecError(
        f"reward {text!r}: its options cannot be read; expected name(key=value, other='text'), each key once and each "
        "value a literal."
    )


def _find(name: str, folder: Path) -> tuple[Any, str, str]:
    """The function that `name` means, its short name and its source."""
    providers = _providers(name)
    if len(providers) > 1:
        owners = " and by ".join(f"{source} ({target})" for target, source in providers.items())
        raise RewardSpecError(
            f"reward {name!r} is provided twice, by {owners}. Remove one, or name the one that you mean as "
            f"{next(iter(providers))!r}."
        )
    for target, source in providers.items():
        return _registered.get(name) or _imported(target, f"{target} of {source}"), name, source
    place, _, attribute = name.rpartition(":")
    if place.endswith(".py"):
        file = folder / Path(place).expanduser()
        return _attribute(import_file(file), attribute, str(file)), attribute, str(file)
    if all(part.isidentifier() for part in place.split(".")):
        return _imported(name, name), attribute, place
    known = _known_names()
    raise RewardNotFound(
        f"reward {name!r} is not known.{did_you_mean(name, known)} Installed: {', '.join(known) or 'none'} (see "
        "`grpo-hf rewards list`). Name a function of your own as './my_rewards.py:my_function' or "
        "'package.module:function'."
    )


def _known_names() -> list[str]:
    return sorted(
        {entry_point.name for entry_point in entry_points(group=_GROUP)} | _registered.keys()
    )


def _providers(name: str) -> dict[str, str]:
    """Who provides a name: `module:function` to source. The same function twice is no contradiction."""
    providers = {
        f"{entry_point.module}:{entry_point.attr}": f"{entry_point.dist.name} {entry_point.dist.version}"
        for entry_point in entry_points(group=_GROUP, name=name)
        if entry_point.dist is not None
    }
    if name in _registered:
        function = _registered[name]
        providers.setdefault(
            address(function), f"registered in {definition_of(function).__module__}"
        )
    return providers


def _imported(target: str, what: str) -> Any:
    module_name, _, attribute = target.rpartition(":")
    with _importing(what, module_name):
        module = importlib.import_module(module_name)
    return _attribute(module, attribute, what)


def import_file(file: Path) -> ModuleType:
    """The file as a module, run once per process, under a name on which all processes agree."""
    path = file.resolve()
    if not path.is_file():
        siblings = [sibling.name for sibling in path.parent.glob("*.py")]
        here = Path(path.name).resolve()
        hint = (
            f" It is relative to the recipe; the one in the current folder is {here}."
            if here.is_file()
            else ""
        )
        raise RewardNotFound(
            f"there is no reward file {path}.{hint or did_you_mean(path.name, siblings)}"
        )
    digest = hashlib.sha256(str(path).encode()).hexdigest()[
        :16
    ]  # hash() of text differs from process to process
    name = "_".join([_FILE_MODULE, re.sub(r"\W", "_", path.stem), digest])
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None  # the path ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(module_spec)
    with _importing(str(path), name):
        try:
            module_spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def file_modules() -> list[str]:
    """The files that rewards of this process come from; another process imports them before it unpickles one."""
    modules = [
        module for name, module in list(sys.modules.items()) if name.startswith(_FILE_MODULE)
    ]
    return [str(module.__file__) for module in modules]


@contextmanager
def _importing(what: str, module: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        # A module that is there and lacks one of its own imports was found; it is broken.
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(
            f"{error.name}."
        )
        hint = (
            " Install its package; a file is named as './my_rewards.py:my_function'."
            if missing
            else ""
        )
        message = f"reward {what} cannot be imported: {type(error).__name__}: {error}.{hint}"
        raise (RewardNotFound if missing else RewardSpecError)(message) from error


def _attribute(module: ModuleType, name: str, what: str) -> Any:
    try:
        return attrgetter(name)(module)
    except AttributeError:
        public = [
            key for key, value in vars(module).items() if inspect.isroutine(value) and key[0] != "_"
        ]
        raise RewardNotFound(
            f"reward {what}: no function {name!r} there.{did_you_mean(name, public)} Expected one of: "
            f"{', '.join(public) or 'none is there'}."
        ) from None
