"""What a reward refers to outside of itself, and whether that can change while a run goes on.

TRL calls a reward in the trainer's process, where it sees what other code changes, and other code
sees what it changes. In another process it would see neither. So a reward may leave only if all
that it refers to are constants: numbers, texts, modules, functions and classes that refer to such
again. A name that is bound to a constant may still be bound anew; those are watched. What is not
known to be constant is taken to change.
"""

import dis
import enum
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from ..errors import did_you_mean
from .bytecode import REACHES_ALL, attributes_in, codes_of, names_bound_in, sets_of_own
from .constants import (
    attributes_of,
    home_of,
    is_descriptor,
    is_installed,
    is_library,
    module_of,
    parts_of,
    root_of,
)

# Modules whose functions tell of, or change, the process that a reward runs in.
_OF_PROCESS = {
    *("sys", "importlib", "inspect", "gc", "contextvars"),
    *("decimal", "locale", "logging", "warnings"),
    *("torch", "accelerate", "transformers", "peft"),
}
# And of the system's functions these.
_OF_PROCESS_IN_OS = {
    *("environ", "environb", "getenv", "getenvb", "putenv", "unsetenv", "umask", "nice"),
    *("getcwd", "getcwdb", "chdir", "fchdir"),
}
# By these a function reaches what its code does not name, or names as text.
_BY_TEXT = REACHES_ALL | {"eval", "exec", "compile", "__import__", "getattr", "setattr", "delattr"}
# Attributes of modules are looked up so deep, as in `numpy.random.mtrand.rand`.
_MODULE_DEPTH = 3
_MISSING = object()
# The rewards of these packages keep no state.
_KNOWN = {"grpo_hf", "trl"}
# How the reward itself is called.
_ITSELF = "it"


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
        undefined: the same, where it is a name that its file binds nowhere: a typing error.
        bindings: the names that are bound to constants.
    """

    changeable: str = ""
    undefined: str = ""
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
    walk = _Walk(module_of(inspect.unwrap(function)))
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
            self._look(_ITSELF, function)

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
        own_name = str(getattr(value, "__name__", ""))
        if name != _ITSELF and _is_of_process(home_of(value), own_name):
            self._stop(f"it refers to {name}, which is about the process that it is called in")
        elif isinstance(value, FunctionType):
            self._look_at_function(value)
        elif isinstance(value, partial):
            self._look(name, value.func)
            for argument in (*value.args, *value.keywords.values()):
                self._look(f"an argument of {name}", argument)
        elif isinstance(value, type):
            self._look_at_class(value)
        elif type(value).__name__ == "_lru_cache_wrapper":
            self._look_at_cache(name, value.__wrapped__)
        elif not isinstance(value, ModuleType):
            self._look_at_value(name, value)

    def _look_at_cache(self, name: str, function: Any) -> None:
        # What it once returned may be changed by whoever holds it.
        if self._is_own(function):
            self._stop(f"it refers to {name}, which keeps what it has returned")

    def _look_at_value(self, name: str, value: Any) -> None:
        if value is _MISSING:
            self._stop(f"it refers to {name}, which has no value yet")
            return
        parts = parts_of(value)
        if parts is None:
            self._stop(f"it refers to {name}, {_described(value)}, which can change")
            return
        for part in parts:
            self._look(name, part)
        for attribute in attributes_of(value):
            current = partial(getattr, value, attribute, _MISSING)
            self._bound(f"{name}.{attribute}", current)
        if self._is_own(type(value)):
            self._look(type(value).__name__, type(value))

    def _look_at_function(self, function: FunctionType) -> None:
        is_own = self._is_own(function)
        cells = function.__closure__ or ()
        wraps = any(self._is_wrapped(_content(cell)) for cell in cells)
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            if is_own or self._is_wrapped(_content(cell)):
                self._bound(name, partial(_content, cell))
        if not is_own and (wraps or self._is_wrapped(getattr(function, "__wrapped__", None))):
            self._look_at_decorator(function, wraps=wraps)
        if not is_own:
            return
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._look("a default value", default)
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            current = partial(getattr, function, name)
            self.found.bindings.append(Binding(f"{function.__name__}.{name}", current, current()))
        for name in vars(function).keys() - {"reward_settings", "__wrapped__"}:
            self._stop(f"it refers to the attribute {name} of a function")
        for code in codes_of(function.__code__):
            self._look_at_code(code, function.__globals__)

    def _look_at_decorator(self, function: FunctionType, *, wraps: bool) -> None:
        """Look at what a library has made of a function: it may hold more than that.

        Args:
            wraps: whether the function itself is held.
        """
        held = [_content(cell) for cell in function.__closure__ or ()]
        mutable = [value for value in held if not callable(value) and parts_of(value) is None]
        # Methods of data classes hold the threads in which they run.
        is_data = module_of(function) in ("dataclasses", "reprlib")
        if (mutable or not wraps) and not is_data:
            self._stop(f"it refers to {function.__name__}, whose decorator may keep a state")

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
                # The level and the names come before it; a level is that of a relative import.
                if instructions[place - 2].argval:
                    self._stop(f"it imports .{name} when it is called, which may keep a state")
                self._look_at_import(name, code.co_names)
            elif operation in ("STORE_ATTR", "DELETE_ATTR"):
                sets_attributes = True
                if not sets_of_own(instructions[:place]):
                    self._stop(f"it sets the attribute {name} of something that it shares")
        for name, chains in reads.items():
            self._look_at_global(name, code.co_filename, namespace, chains, sets_attributes)

    def _look_at_global(
        self,
        name: str,
        file: str,
        namespace: dict[str, Any],
        chains: list[tuple[str, ...]],
        sets_attributes: bool,
    ) -> None:
        """Look at a global variable.

        Args:
            file: where the code that reads it stands.
            chains: the attributes that follow it in the code, as in `numpy.linalg.norm`.
            sets_attributes: whether the code sets attributes of anything.
        """
        value = namespace.get(name, _MISSING)
        if value is _MISSING:
            self._look_at_builtin(name, file, namespace)
            return
        self._bound(name, partial(namespace.get, name, _MISSING))
        if isinstance(value, ModuleType):
            for chain in chains:
                self._look_at_attribute(value, chain)
        # `reward.calls += 1` keeps a state where nobody would look for it.
        elif sets_attributes and isinstance(value, FunctionType | type) and self._is_own(value):
            self._stop(f"it may set attributes of {name}")

    def _look_at_builtin(self, name: str, file: str, namespace: dict[str, Any]) -> None:
        builtins = namespace.get("__builtins__", {})
        known = builtins if isinstance(builtins, dict) else vars(builtins)
        if name in _BY_TEXT:
            self._stop(f"it calls {name}()")
        elif name not in known and not name.startswith("__"):
            bound = names_bound_in(file)
            if bound is None or name in bound:
                self._stop(f"it refers to {name}, which has no value yet")
                return
            similar = did_you_mean(name, sorted({*namespace, *known}))
            reason = f"it refers to {name}, which {Path(file).name} defines nowhere.{similar}"
            self._stop(reason)
            self.found.undefined = reason if reason == self.found.changeable else ""

    def _look_at_import(self, name: str, names: tuple[str, ...]) -> None:
        """Look at a module that a function imports when it is called."""
        module = sys.modules.get(name)
        if module is not None:
            self._look_at_module(module, names, _MODULE_DEPTH)
        elif not is_installed(name):
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
            if not is_library(module.__name__):
                self._stop(f"it hands on the module {module.__name__}")
            return
        # Some modules import their parts when they are asked for.
        value = getattr(module, chain[0], _MISSING)
        name = f"{module.__name__}.{chain[0]}"
        is_of_process = _is_of_process(root_of(module.__name__), chain[0])
        if is_of_process and not isinstance(value, ModuleType | str):
            self._stop(f"it refers to {name}, which is about the process that it is called in")
        elif isinstance(value, ModuleType):
            self._look_at_attribute(value, chain[1:])
        elif is_library(module.__name__):
            self._look(name, value)
        else:
            self._bound(name, partial(getattr, module, chain[0], _MISSING))

    def _look_at_class(self, kind: type) -> None:
        """Look at the attributes of a class, which its objects share."""
        if not self._is_own(kind):
            return
        for other in (type(kind), *kind.__bases__):
            self._look(other.__name__, other)
        if issubclass(kind, enum.Enum):
            for member in kind:
                self._look(f"{kind.__name__}.{member.name}", member)
        names: dict[str, None] = {}
        # Those of a base, too: an attribute that is set on the class itself hides them.
        for each in filter(self._is_own, kind.__mro__):
            names |= dict.fromkeys(vars(each))
        for name in names:
            attribute = inspect.getattr_static(kind, name)
            value = getattr(attribute, "__func__", getattr(attribute, "fget", attribute))
            value = value.func if isinstance(value, cached_property) else value
            is_code = isinstance(value, FunctionType)
            # Members were looked at, and the rest of an enumeration is machinery.
            is_machinery = name.startswith(("__", "_abc_", "_field")) or issubclass(kind, enum.Enum)
            if not is_code and (is_machinery or is_descriptor(value)):
                continue
            current = partial(inspect.getattr_static, kind, name, _MISSING)
            self.found.bindings.append(Binding(f"{kind.__name__}.{name}", current, attribute))
            # A data class has methods that were made of text.
            if not is_code or value.__code__.co_filename != "<string>":
                self._look(f"{kind.__name__}.{name}", value)

    def _is_wrapped(self, value: Any) -> bool:
        while isinstance(value, partial):
            value = value.func
        if isinstance(value, MethodType):
            value = value.__func__
        return isinstance(value, FunctionType) and self._is_own(value)

    def _is_own(self, value: FunctionType | type) -> bool:
        """Return whether a function or class is of the user's program, and no library's."""
        module = module_of(value)
        # A package that is installed, and holds the reward, holds what it shares with the run.
        is_beside = root_of(module) == root_of(self._module) and root_of(module) not in _KNOWN
        return is_beside or not is_library(module)


def _is_of_process(module: str, name: str) -> bool:
    """Return whether what a module has under a name belongs to the process."""
    if module in ("os", "posix", "nt"):
        return name in _OF_PROCESS_IN_OS
    return module in _OF_PROCESS


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    # A variable of the function around it that has no value yet.
    except ValueError:
        return _MISSING


def _described(value: Any) -> str:
    kind = type(value).__name__
    return f"an {kind}" if kind[0] in "aeiouAEIOU" else f"a {kind}"
