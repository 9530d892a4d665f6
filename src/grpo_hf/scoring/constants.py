"""Which values never change, and which modules are no program's own.

What is not known to be constant is taken to change.
"""

import enum
import importlib.util
import json
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import cache
from importlib import metadata
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType, MappingProxyType, ModuleType
from typing import Any

# Values of these types never change.
_CONSTANTS = (
    *(bool, int, float, complex, str, bytes, range, slice, re.Pattern, Decimal, Fraction),
    *(date, time, timedelta, tzinfo, PurePath, enum.Enum, type(None), type(...)),
)
_STANDARD = sysconfig.get_path("stdlib")


def parts_of(value: Any) -> Iterator[Any] | None:
    """Return what a constant is made of, or None if the value can change."""
    if isinstance(value, _CONSTANTS):
        # An object of a subclass may have attributes of its own; those of members are watched.
        is_plain = isinstance(value, enum.Enum) or not getattr(value, "__dict__", None)
        return iter(()) if is_plain or is_library(type(value).__module__) else None
    if _is_frozen_data(value):
        return iter(())
    if isinstance(value, tuple | frozenset):
        return iter(value)
    if isinstance(value, Mapping) and isinstance(value, MappingProxyType):
        return iter(value.values())
    owner = getattr(value, "__self__", None)
    # A built-in function has its module or class there; a method its object.
    if owner is not None and not isinstance(owner, ModuleType | type):
        return iter([owner])
    return iter(()) if _is_library_callable(value) or _is_type_of_library(value) else None


def _is_library_callable(value: Any) -> bool:
    """Return whether a value is a function of another kind, such as one written in C."""
    is_plain = root_of(type(value).__module__) in ("builtins", "numpy", "operator", "_operator")
    return callable(value) and is_plain and not hasattr(value, "pyfunc")


def _is_type_of_library(value: Any) -> bool:
    """Return whether a value is a type, a number of numpy's, or something as fixed."""
    kind = type(value)
    if kind.__module__ in ("typing", "operator"):
        return True
    # Scalars, unlike arrays, cannot be written to; `numpy.vectorize` holds a function.
    mutable = ("__setitem__", "pyfunc")
    return kind.__module__ == "numpy" and not any(hasattr(value, name) for name in mutable)


def attributes_of(value: Any) -> list[str]:
    """Return the names of the attributes of a member of an enumeration, or of frozen data.

    Nobody is meant to set them, but it can be done, so they are constants that are watched.
    """
    if isinstance(value, enum.Enum):
        return list(vars(value))
    return [each.name for each in fields(value)] if _is_frozen_data(value) else []


def _is_frozen_data(value: Any) -> bool:
    parameters = getattr(type(value), "__dataclass_params__", None)
    return parameters is not None and parameters.frozen


def is_descriptor(value: Any) -> bool:
    return hasattr(type(value), "__get__") and not isinstance(value, FunctionType)


def home_of(value: Any) -> str:
    """Return the name of the top package of a function or class, or nothing."""
    if not isinstance(value, FunctionType | BuiltinFunctionType | type):
        return ""
    return root_of(str(getattr(value, "__module__", None) or ""))


def root_of(module: str) -> str:
    return module.partition(".")[0]


def module_of(value: Any) -> str:
    """Return the name of the module in which a function or class is written."""
    # A decorator of a library calls itself by the name and module of what it wraps.
    if isinstance(value, FunctionType):
        return str(value.__globals__.get("__name__", ""))
    return str(getattr(value, "__module__", None) or type(value).__module__)


def is_installed(module: str) -> bool:
    """Return whether a module that is not imported yet belongs to Python or to a library."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return True
    return spec is None or _is_of_library(spec.origin or "")


def is_library(module: str) -> bool:
    """Return whether a module is part of Python or of a published package, this one among them."""
    if module.partition(".")[0] in {"grpo_hf", *sys.stdlib_module_names}:
        return True
    # A notebook, and a module that a program made itself, have no file.
    return _is_of_library(getattr(sys.modules.get(module), "__file__", None) or "")


def _is_of_library(file: str) -> bool:
    # An environment may be built on the packages of another one.
    folders = ("site-packages", "dist-packages")
    parts = Path(file).parts
    for place, part in enumerate(parts[:-1]):
        if part in folders:
            return _is_published(parts[place + 1].partition(".")[0])
    return file.startswith(_STANDARD)


@cache
def _is_published(package: str) -> bool:
    """Return whether an installed package came from an index, rather than from its own source.

    A project's own package may be installed as well (`pip install .`). pip then notes where it came
    from in `direct_url.json` (PEP 610). A folder that no installer knows is somebody's own, too.
    """
    names = _distributions().get(package, [])
    for name in names:
        source = metadata.distribution(name).read_text("direct_url.json") or "{}"
        if not {"dir_info", "vcs_info"}.isdisjoint(json.loads(source)):
            return False
    return bool(names)


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
