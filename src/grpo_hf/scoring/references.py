"""What a reward refers to outside of itself, and whether that can change while a run goes on.

TRL calls a reward in the trainer's process, where it sees what other code changes, and other code
sees what it changes. In another process it would see neither. So a reward may leave only if all
that it refers to are constants: numbers, texts, modules, functions and classes that refer to such
again. A name that is bound to a constant may still be bound anew; those are watched.
"""

import dis
import enum
import importlib.util
import inspect
import io
import logging
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any

from .bytecode import REACHES_ALL, attributes_in, codes_of

# Values of these types never change.
_CONSTANTS = (
    bool | int | float | complex | str | bytes | range | slice | re.Pattern | Decimal | Fraction
) | (date | time | timedelta | tzinfo | PurePath | enum.Enum | type(None) | type(...))
# What is written there has no part in what a reward returns.
_OUTPUTS = logging.Logger | io.TextIOBase
# Attributes of modules are looked up so deep, as in `numpy.random.mtrand.rand`.
_MODULE_DEPTH = 3
_MISSING = object()
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


@dataclass(frozen=True)
class Binding:
    """A name that a reward refers to, and the constant that it was bound to.

    Args:
        name: of the variable.
        current: returns what it is bound to now.
        value: what it was bound to.
    """

    name: str
    current: Callable[[], Any]
    value: Any

    @property
    def is_rebound(self) -> bool:
        """Return whether the name means something else now."""
        return self.current() is not self.value


@dataclass
class References:
    """What a function refers to.

    Args:
        changeable: why it has to be called where it was defined; empty if it need not.
        bindings: the names that are bound to constants.
    """

    changeable: str = ""
    bindings: list[Binding] = field(default_factory=list)

    def rebound(self) -> str:
        """Return the first name that has been bound anew, or nothing."""
        for binding in self.bindings:
            if binding.is_rebound:
                return binding.name
        return ""


def references_of(function: Any) -> References:
    """Return what a reward refers to, through the functions and classes that it calls."""
    # A decorator of a library's is not what the user wrote.
    walk = _Walk(_module_of(inspect.unwrap(function)))
    # Attributes of the user's objects are read here, which may run code of theirs.
    try:
        walk.look_at_callee(function)
    except Exception as error:
        return References(f"what it refers to cannot be read ({type(error).__name__}: {error})")
    return walk.found


class _Walk:
    """A walk through everything that a reward refers to, until something can change."""

    def __init__(self, module: str) -> None:
        self.found = References()
        self._module = module
        self._seen: set[int] = set()

    def look_at_callee(self, function: Any) -> None:
        """Look at the reward itself."""
        inner = function
        while isinstance(inner, partial):
            inner = inner.func
        if isinstance(inner, MethodType):
            self._stop(f"it is a method of {_described(inner.__self__)}")
        elif not isinstance(inner, FunctionType | BuiltinFunctionType):
            self._stop("it is an object, which may keep a state")
        else:
            self._look("it", function)

    def _stop(self, reason: str) -> None:
        self.found.changeable = self.found.changeable or reason

    def _bound(self, name: str, current: Callable[[], Any]) -> None:
        """Look at what a name is bound to, and note the name if that is a constant."""
        value = current()
        self.found.bindings.append(Binding(name, current, value))
        self._look(name, value)

    def _look(self, name: str, value: Any) -> None:
        """Look at a value; `name` is how the reward calls it."""
        if self.found.changeable or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, FunctionType):
            self._look_at_function(value)
        elif isinstance(value, partial):
            self._look(name, value.func)
            for argument in (*value.args, *value.keywords.values()):
                self._look(f"an argument of {name}", argument)
        elif isinstance(value, type):
            self._look_at_class(value)
        # `lru_cache` wraps what it calls, and remembers what that returned.
        elif type(value).__name__ == "_lru_cache_wrapper":
            self._look(name, value.__wrapped__)
        elif not isinstance(value, ModuleType):
            self._look_at_value(name, value)

    def _look_at_value(self, name: str, value: Any) -> None:
        if value is _MISSING:
            self._stop(f"it refers to {name}, which has no value yet")
            return
        parts = _parts(value)
        if parts is None:
            self._stop(f"it refers to {name}, {_described(value)}, which can change")
            return
        for part in parts:
            self._look(name, part)

    def _look_at_function(self, function: FunctionType) -> None:
        is_own = self._is_own(function)
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            # A library's decorator holds what it wraps, and machinery of its own.
            if is_own or self._is_wrapped(_content(cell)):
                self._bound(name, partial(_content, cell))
        if not is_own:
            return
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._look("a default value", default)
        for name in vars(function).keys() - {"reward_settings", "__wrapped__"}:
            self._stop(f"it refers to the attribute {name} of a function")
        for code in codes_of(function.__code__):
            self._look_at_code(code, function.__globals__)

    def _look_at_code(self, code: CodeType, namespace: dict[str, Any]) -> None:
        """Look at the global variables that a piece of code reads and writes."""
        reads: dict[str, list[tuple[str, ...]]] = {}
        sets_attributes = False
        instructions = list(dis.get_instructions(code))
        for place, instruction in enumerate(instructions):
            operation, name = instruction.opname, instruction.argval
            if operation in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                self._stop(f"it changes the global variable {name}")
            elif operation in ("STORE_DEREF", "DELETE_DEREF") and name in code.co_freevars:
                self._stop(f"it changes {name}, a variable of the function around it")
            elif operation in ("LOAD_GLOBAL", "LOAD_NAME"):
                reads.setdefault(name, []).append(attributes_in(instructions[place + 1 :]))
            elif operation == "IMPORT_NAME":
                self._look_at_import(name, code.co_names)
            sets_attributes = sets_attributes or operation in ("STORE_ATTR", "DELETE_ATTR")
        for name, chains in reads.items():
            self._look_at_global(name, namespace, chains, sets_attributes)

    def _look_at_global(
        self,
        name: str,
        namespace: dict[str, Any],
        chains: list[tuple[str, ...]],
        sets_attributes: bool,
    ) -> None:
        """Look at a global variable.

        Args:
            chains: the attributes that follow it in the code, as in `numpy.linalg.norm`.
            sets_attributes: whether the code sets attributes of anything.
        """
        value = namespace.get(name, _MISSING)
        if value is _MISSING:
            self._look_at_builtin(name, namespace)
            return
        self._bound(name, partial(namespace.get, name, _MISSING))
        if isinstance(value, ModuleType):
            for chain in chains:
                self._look_at_attribute(value, chain)
        # `reward.calls += 1` keeps a state where nobody would look for it.
        elif sets_attributes and isinstance(value, FunctionType | type) and self._is_own(value):
            self._stop(f"it may set attributes of {name}")

    def _look_at_builtin(self, name: str, namespace: dict[str, Any]) -> None:
        builtins = namespace.get("__builtins__", {})
        known = builtins if isinstance(builtins, dict) else vars(builtins)
        if name in REACHES_ALL:
            self._stop(f"it calls {name}()")
        elif name not in known and not name.startswith("__"):
            self._stop(f"it refers to {name}, which has no value yet")

    def _look_at_import(self, name: str, names: tuple[str, ...]) -> None:
        """Look at a module that a function imports when it is called."""
        module = sys.modules.get(name)
        if module is not None:
            self._look_at_module(module, names, _MODULE_DEPTH)
        elif not _is_installed(name):
            self._stop(f"it imports {name} when it is called, which may keep a state")

    def _look_at_module(self, module: ModuleType, names: tuple[str, ...], depth: int) -> None:
        """Look at all attributes of a module that the code names, for whatever it names them."""
        for name in names:
            if depth and hasattr(module, name):
                self._look_at_attribute(module, (name,))
                part = getattr(module, name)
                if isinstance(part, ModuleType):
                    self._look_at_module(part, names, depth - 1)

    def _look_at_attribute(self, module: ModuleType, chain: tuple[str, ...]) -> None:
        """Look at what `module.a.b` means in the code, given `("a", "b")`."""
        if not chain:
            # Handed on as it is: anybody may look at anything in it.
            if not _is_library(module.__name__):
                self._stop(f"it hands on the module {module.__name__}")
            return
        # Some modules import their parts when they are asked for.
        value = getattr(module, chain[0], _MISSING)
        name = f"{module.__name__}.{chain[0]}"
        if isinstance(value, ModuleType):
            self._look_at_attribute(value, chain[1:])
        elif _is_library(module.__name__):
            self._look(name, value)
        else:
            self._bound(name, partial(getattr, module, chain[0], _MISSING))

    def _look_at_class(self, kind: type) -> None:
        """Look at the attributes of a class, which its objects share."""
        # What the members of these hold is fixed, and the rest of them is machinery.
        if not self._is_own(kind) or issubclass(kind, enum.Enum):
            return
        for base in kind.__bases__:
            self._look(base.__name__, base)
        for name, value in list(vars(kind).items()):
            value = getattr(value, "__func__", getattr(value, "fget", value))
            value = value.func if isinstance(value, cached_property) else value
            is_machinery = name.startswith(("__", "_abc_", "_field"))
            if isinstance(value, FunctionType):
                # A data class has methods that were made of text.
                if value.__code__.co_filename != "<string>":
                    self._look(name, value)
            elif not is_machinery and not _is_descriptor(value):
                self._bound(f"{kind.__name__}.{name}", partial(vars(kind).get, name))

    def _is_wrapped(self, value: Any) -> bool:
        while isinstance(value, partial):
            value = value.func
        if isinstance(value, MethodType):
            value = value.__func__
        return isinstance(value, FunctionType) and self._is_own(value)

    def _is_own(self, value: FunctionType | type) -> bool:
        """Return whether a function or class is of the user's program, and no library's."""
        module = _module_of(value)
        return module == self._module or not _is_library(module)


def _parts(value: Any) -> Iterator[Any] | None:
    """Return what a constant is made of, or None if the value can change."""
    if isinstance(value, _CONSTANTS | _OUTPUTS):
        return iter(())
    if isinstance(value, tuple | frozenset):
        return iter(value)
    if isinstance(value, Mapping) and isinstance(value, MappingProxyType):
        return iter(value.values())
    if is_dataclass(value) and vars(type(value))["__dataclass_params__"].frozen:
        return iter([getattr(value, each.name) for each in fields(value)])
    owner = getattr(value, "__self__", None)
    # A built-in function has its module or class there; a method its object.
    if owner is not None and not isinstance(owner, ModuleType | type):
        return iter([owner])
    return iter(()) if _is_library_callable(value) or _is_type_of_library(value) else None


def _is_library_callable(value: Any) -> bool:
    """Return whether a value is a function of another kind, such as one written in C."""
    has_name = isinstance(getattr(value, "__name__", None), str)
    return callable(value) and has_name and _is_library(type(value).__module__)


def _is_type_of_library(value: Any) -> bool:
    """Return whether a value is a type, a number of numpy's, or something as fixed."""
    kind = type(value)
    if kind.__module__ in ("typing", "operator"):
        return True
    if kind.__module__ == "torch":
        return kind.__name__ in ("dtype", "device", "Size")
    # Scalars, unlike arrays, cannot be written to.
    return kind.__module__ == "numpy" and not hasattr(value, "__setitem__")


def _is_descriptor(value: Any) -> bool:
    return hasattr(type(value), "__get__") and not isinstance(value, FunctionType)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    # A variable of the function around it that has no value yet.
    except ValueError:
        return _MISSING


def _module_of(value: Any) -> str:
    """Return the name of the module in which a function or class is written."""
    # A decorator of a library calls itself by the name and module of what it wraps.
    if isinstance(value, FunctionType):
        return str(value.__globals__.get("__name__", ""))
    return str(getattr(value, "__module__", None) or type(value).__module__)


def _is_installed(module: str) -> bool:
    """Return whether a module that is not imported yet belongs to Python or to a library."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return True
    return spec is None or _is_of_library(spec.origin or "")


def _is_library(module: str) -> bool:
    """Return whether a module is part of Python or of an installed package, this one among them."""
    if module.partition(".")[0] in {"grpo_hf", *sys.stdlib_module_names}:
        return True
    # A notebook, and a module that a program made itself, have no file.
    return _is_of_library(getattr(sys.modules.get(module), "__file__", None) or "")


def _is_of_library(file: str) -> bool:
    # An environment may be built on the packages of another one.
    folders = {"site-packages", "dist-packages"}
    return file.startswith(_LIBRARIES) or not folders.isdisjoint(Path(file).parts)


def _described(value: Any) -> str:
    kind = type(value).__name__
    return f"an {kind}" if kind[0] in "aeiouAEIOU" else f"a {kind}"
