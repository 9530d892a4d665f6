"""What the compiled code of a function says that its signature does not."""

import dis
import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

# By these a function reaches any variable, under names that nobody can read in its code.
REACHES_ALL = {"globals", "locals", "vars"}
# So many attributes are followed, as in `numpy.random.mtrand.rand`.
_LONGEST_CHAIN = 3


def may_look_up(function: Any, keyword: str) -> bool:
    """Return whether a function looks a keyword up in its `**keywords`.

    That is sure to be wrong only if it looks nothing up, or other names alone.
    """
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    if code is None:
        return True
    if not code.co_flags & inspect.CO_VARKEYWORDS:
        return False
    has_positional = bool(code.co_flags & inspect.CO_VARARGS)
    keywords = code.co_varnames[code.co_argcount + code.co_kwonlyargcount + has_positional]
    # A function inside, or a look at all variables, may read them as well.
    if keywords in code.co_cellvars or REACHES_ALL & set(code.co_names):
        return True
    instructions = list(dis.get_instructions(code))
    for place, instruction in enumerate(instructions):
        # Some versions of Python load two variables by one instruction.
        loaded = instruction.argval
        names = loaded if isinstance(loaded, tuple) else (loaded,)
        if instruction.opname.startswith("LOAD_FAST") and keywords in names:
            looked_up = _looked_up(instructions[place + 1 : place + 3])
            if looked_up in (None, keyword):
                return True
    return False


def _looked_up(following: list[dis.Instruction]) -> Any:
    """Return the text in `keywords["text"]` or `keywords.get("text")`, or None for another use.

    Args:
        following: the two instructions after the one that loads `keywords`.
    """
    values = [instruction.argval for instruction in following]
    if following[0].opname == "LOAD_CONST" and following[1].opname in (
        "BINARY_SUBSCR",
        "BINARY_OP",
    ):
        return values[0]
    return values[1] if values[0] == "get" and following[1].opname == "LOAD_CONST" else None


def codes_of(code: CodeType) -> Iterator[CodeType]:
    """Return a piece of code and those of functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_of(constant)


def names_bound_in(file: str) -> set[str] | None:
    """Return the global names that the code of a file binds, or None where that cannot be told.

    It cannot where there is no such file, as in a notebook, and where names come from elsewhere:
    by `import *`, or by what reaches all variables.
    """
    try:
        module = compile(Path(file).read_bytes(), file, "exec")
    except (OSError, SyntaxError, ValueError):
        return None
    names = set()
    for code in codes_of(module):
        if (REACHES_ALL | {"exec", "eval", "setattr", "__import__"}) & set(code.co_names):
            return None
        for instruction in dis.get_instructions(code):
            # Python 3.12 has no operation of its own for it.
            if "IMPORT_STAR" in f"{instruction.opname} {instruction.argrepr}":
                return None
            is_global = instruction.opname == "STORE_GLOBAL"
            if is_global or (code is module and instruction.opname == "STORE_NAME"):
                names.add(str(instruction.argval))
    return names


def attributes_in(following: list[dis.Instruction]) -> tuple[str, ...]:
    """Return the attributes that instructions load one from the other."""
    chain: list[str] = []
    for instruction in following[:_LONGEST_CHAIN]:
        if instruction.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
            break
        chain.append(instruction.argval)
    return tuple(chain)


def sets_of_own(before: list[dis.Instruction]) -> bool:
    """Return whether an attribute is set of a variable of the function itself, other than `cls`.

    Args:
        before: the instructions before the one that sets it.
    """
    place = len(before) - 1
    # `a.b += 1` keeps a copy of `a` below the sum.
    if before[place].opname in ("SWAP", "ROT_TWO"):
        while place and before[place].opname not in ("COPY", "DUP_TOP"):
            place -= 1
        place -= 1
    loading = before[place]
    names = loading.argval if isinstance(loading.argval, tuple) else (loading.argval,)
    return loading.opname.startswith("LOAD_FAST") and names[-1] != "cls"
