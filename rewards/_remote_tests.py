"""Runs a row's tests in one process and the model's code in another; the sandbox starts it as a program (python_tests).

The tests' process never runs a line that the model wrote. A name of the tests that the model's code defines is there a
`Remote`: calling it sends the arguments over a pipe as plain data and waits for the result, again plain data. So an
assertion compares values of Python's own types with Python's own operators, and the model's code meets neither the
expected values nor the list of results. What it can do in its own process (leave it, print, patch modules) is no pass.

    judge (this process)                              candidate (its child, forked before the tests were read)
    f(2) in `assert f(2) == 4`   -- call f, [2] -->    runs the model's f
    4 == 4, in this process      <-- value 4    --

Only the standard library is imported: the file is copied into the sandbox.
"""

import ast
import builtins
import collections
import contextlib
import ctypes
import datetime
import decimal
import fractions
import importlib
import json
import operator
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_LONGEST_MESSAGE = 16 << 20
_PR_SET_DUMPABLE = 4

# Types that travel by value, with the arguments that make an equal object. A subclass travels as its first base here.
_PLAIN: dict[type, Callable[[Any], list[Any]]] = {
    tuple: lambda value: [list(value)],
    set: lambda value: [list(value)],
    frozenset: lambda value: [list(value)],
    dict: lambda value: [[[key, item] for key, item in value.items()]],
    bytes: lambda value: [list(value)],
    bytearray: lambda value: [list(value)],
    collections.deque: lambda value: [list(value)],
    range: lambda value: [value.start, value.stop, value.step],
    complex: lambda value: [value.real, value.imag],
    fractions.Fraction: lambda value: [value.numerator, value.denominator],
    decimal.Decimal: lambda value: [str(value)],
    datetime.date: lambda value: [value.year, value.month, value.day],
    datetime.datetime: lambda value: [*value.timetuple()[:6], value.microsecond],
    datetime.timedelta: lambda value: [value.days, value.seconds, value.microseconds],
}
_BY_NAME = {kind.__name__: kind for kind in _PLAIN}

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, args, options: function(*args, **options),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "contains": operator.contains,
    "len": len,
    "iter": iter,
    "next": next,
    "eq": operator.eq,
}


class Unsupported(TypeError):
    """The tests pass a value that cannot travel: an object of a class of their own."""


class CandidateError(Exception):
    """The model's code raised an exception that is not one of Python's own."""


class Peer:
    """One end of the pipe: asks the other end for operations on its objects, and answers for its own.

    Args:
        read, write: file descriptors.
        serves_all: the candidate's end answers every operation; the judge's end only calls functions that it passed.
    """

    def __init__(self, read: int, write: int, serves_all: bool) -> None:
        self.input, self.output = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self.serves_all = serves_all
        self.objects: dict[int, Any] = {}

    def ask(self, operation: str, *args: Any) -> Any:
        self._send({"do": operation, "args": [self.encode(arg) for arg in args]})
        while True:
            message = self._receive()
            if "do" in message:
                self._answer(message)
            elif "error" in message:
                raise _exception(message["error"], message["text"])
            else:
                if operation == "call":
                    _copy_changes(args[1], [self.decode(arg) for arg in message["args"]])
                return self.decode(message["value"])

    def serve(self) -> NoReturn:
        while True:
            self._answer(self._receive())

    def _answer(self, message: dict[str, Any]) -> None:
        try:
            if not self.serves_all and message["do"] != "call":
                raise Unsupported(f"{message['do']} is not offered here")
            args = [self.decode(arg) for arg in message["args"]]
            value = self.encode(_OPERATIONS[message["do"]](*args))
            reply = {
                "value": value,
                "args": [self.encode(a) for a in args[1]] if message["do"] == "call" else [],
            }
        except (
            BaseException
        ) as error:  # SystemExit too: what the model's function raises is an answer like any other
            reply = {
                "error": [kind.__name__ for kind in type(error).__mro__],
                "text": str(error)[:1000],
            }
        self._send(reply)

    def _send(self, message: dict[str, Any]) -> None:
        self.output.write(json.dumps(message).encode() + b"\n")
        self.output.flush()

    def _receive(self) -> dict[str, Any]:
        line = self.input.readline(_LONGEST_MESSAGE)
        if not line.endswith(b"\n"):
            raise EOFError("the other process has ended, or sent too much")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message

    def encode(self, value: Any) -> Any:
        """`value` as JSON: plain data by value, the other end's objects by their number there, ours by theirs here."""
        for kind in type(value).__mro__:
            if kind in (bool, type(None)):
                return value
            if kind is int:
                return int(value)
            if kind is str:
                return str.__str__(value)
            if kind is float:
                return {"float": float(value).hex()}
            if kind is list:
                return [self.encode(item) for item in value]
            if kind in _PLAIN and not getattr(value, "tzinfo", None):
                return {
                    "plain": kind.__name__,
                    "args": [self.encode(arg) for arg in _PLAIN[kind](value)],
                }
        if isinstance(value, Remote):
            return {"yours": object.__getattribute__(value, "_number")}
        if not self.serves_all:
            if value in vars(builtins).values():
                return {"builtin": value.__name__}
            if not callable(value):
                raise Unsupported(f"a {type(value).__name__} cannot be passed to the model's code")
        self.objects[id(value)] = value
        return {"mine": id(value)}

    def decode(self, data: Any) -> Any:
        if isinstance(data, list):
            return [self.decode(item) for item in data]
        if not isinstance(data, dict):
            return data
        if "float" in data:
            return float.fromhex(data["float"])
        if "plain" in data:
            return _BY_NAME[data["plain"]](*self.decode(data["args"]))
        if "yours" in data:
            return self.objects[data["yours"]]
        if "builtin" in data and self.serves_all:
            return getattr(builtins, data["builtin"])
        return Remote(self, int(data["mine"]))


class Remote:
    """An object of the other process. It has no operators and equals nothing but an object of that process."""

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def _ask(self, operation: str, *args: Any) -> Any:
        return object.__getattribute__(self, "_peer").ask(operation, self, *args)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._ask("call", list(args), options)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", key, value)

    def __contains__(self, item: Any) -> bool:
        return self._ask("contains", item) is True

    def __len__(self) -> int:
        return int(self._ask("len"))

    def __iter__(self) -> Iterator[Any]:
        iterator = self._ask("iter")
        peer = object.__getattribute__(self, "_peer")
        while True:
            try:
                item = peer.ask("next", iterator)
            except StopIteration:
                return
            yield item

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._ask("eq", other) is True

    __hash__ = None  # type: ignore[assignment]


def _copy_changes(args: list[Any], after: list[Any]) -> None:
    """What the call did to the lists, dictionaries and sets among its arguments, done to the originals."""
    for arg, new in zip(args, after, strict=True):
        if type(arg) is type(new) and arg != new:
            if isinstance(arg, (list, bytearray)):
                arg[:] = new
            elif isinstance(arg, (dict, set)):
                arg.clear()
                arg.update(new)


def _exception(names: list[str], text: str) -> Exception:
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            try:
                return kind(text)
            except TypeError:  # UnicodeDecodeError takes five arguments
                continue
    return CandidateError(text)


def names_to_fetch(source: str) -> set[str]:
    """Names that tests take from the model's code: what they read and neither define, import nor find in Python.

    What Python itself has is not taken from the model's code, which could define a `set` that makes all things equal;
    but if a single name of Python is all that the tests read, it is what they test.

    >>> sorted(names_to_fetch("import math\\nx = 2\\nassert set(f(x)) == set(g(math.pi))"))
    ['f', 'g']
    >>> names_to_fetch("assert sum(10, 15) == 6"), names_to_fetch("assert sum([1]) == len([2])")
    ({'sum'}, set())
    """
    tree = ast.parse(source)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    own = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            own |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            own.add(node.name)
    foreign = {node.id for node in names} - own
    not_pythons = foreign - {*vars(builtins), *sys.stdlib_module_names}
    return not_pythons or (foreign if len(foreign) == 1 else set())


def _be_candidate(read: int, write: int) -> NoReturn:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (
        0,
        1,
        2,
    ):  # the pipe that carries the tests, and the one that carries the results
        os.dup2(nothing, stream)
    namespace: dict[str, Any] = {"__name__": "candidate"}

    def start(code: str) -> None:
        exec(compile(code, "candidate.py", "exec"), namespace)

    def fetch(name: str) -> Any:
        return namespace[name]

    _OPERATIONS.update(start=start, fetch=fetch)
    try:
        Peer(read, write, serves_all=True).serve()
    finally:
        os._exit(0)


def _be_judge(peer: Peer) -> None:
    task = json.loads(sys.stdin.read())
    passed_on = task["nonce"]

    def tell(what: str) -> None:
        print(passed_on, what, flush=True)

    tell("ready")
    sources = [task["setup"], *task["tests"]]
    wanted = names_to_fetch("\n".join(sources))
    read = {
        node.id
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name)
    }
    namespace: dict[str, Any] = {"__name__": "tests"}
    # The model's code often makes the import that the tests then use.
    namespace |= {
        name: importlib.import_module(name) for name in (read & sys.stdlib_module_names) - wanted
    }
    try:
        peer.ask("start", task["code"])
        for name in sorted(wanted):
            with contextlib.suppress(KeyError):  # a test that reads it will fail
                namespace[name] = peer.ask("fetch", name)
    except BaseException:
        return  # the model's code does not even start, so no test passes
    for number, source in enumerate(sources):
        try:
            exec(compile(source, f"test_{number}.py", "exec"), namespace)
        except Unsupported:
            tell("unsupported")
            return
        except BaseException:  # a test may fail in any way
            continue
        tell(f"passed {number}")


def main() -> None:
    sys.set_int_max_str_digits(0)
    to_candidate, to_judge = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(to_candidate[1])
        os.close(to_judge[0])
        _be_candidate(to_candidate[0], to_judge[1])
    os.close(to_candidate[0])
    os.close(to_judge[1])
    # From here on no process of this user may read this one's memory, trace it or open its files through /proc.
    if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_DUMPABLE) failed")
    _be_judge(Peer(to_judge[0], to_candidate[1], serves_all=False))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
