"""Run a row's tests in one process and the model's code in another.

`python_tests` starts this file as a program in the sandbox. Only the standard library is imported,
because the file is copied there alone.

The process of the tests never runs a line that the model wrote. A name that the tests use and the
model's code defines is a `Remote` there: a call to it sends the arguments over a pipe as plain data
and waits for the result, which is plain data too. So an assertion compares values of Python's own
types with Python's own operators, and the model's code sees neither the expected values nor the
list of results. Whatever it does in its own process (leave it, print, patch modules), it cannot
make a test pass that way.

    judge (this process)                        candidate (its child, forked before the
                                                tests were read)
    f(2) in `assert f(2) == 4`   call f, [2] -> runs the model's f
    4 == 4, in this process      <- value 4
"""

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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

# A message is one line. A longer one is refused, so that the model's code cannot fill the memory
# of the judge.
_LONGEST_MESSAGE = 16 << 20  # bytes
_LONGEST_ERROR_TEXT = 1000  # characters
# From Linux's <sys/prctl.h>; Python has no name for it.
_PR_SET_DUMPABLE = 4


def _pairs(value: dict[Any, Any]) -> list[list[Any]]:
    pairs = []
    for key, item in value.items():
        pairs.append([key, item])
    return pairs


# Types that JSON has, and floats. A float travels in hexadecimal: it arrives to the last bit, and
# infinity and NaN, which JSON lacks, arrive too.
_SCALARS: dict[type, Callable[[Any], Any]] = {
    bool: lambda value: value,
    type(None): lambda value: value,
    int: int,
    str: str.__str__,
    float: lambda value: {"float": float(value).hex()},
}

# Types that JSON lacks, each with the arguments that construct an equal object at the other end.
_PLAIN: dict[type, Callable[[Any], list[Any]]] = {
    tuple: lambda value: [list(value)],
    set: lambda value: [list(value)],
    frozenset: lambda value: [list(value)],
    dict: lambda value: [_pairs(value)],
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
_PLAIN_BY_NAME = {kind.__name__: kind for kind in _PLAIN}

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
    """One end of the pipe. It asks for operations on the other end's objects and serves its own.

    Args:
        read, write: file descriptors.
        serves_all: the candidate's end answers every operation; the judge's end only calls
            functions that the tests passed as arguments.
    """

    def __init__(self, read: int, write: int, serves_all: bool) -> None:
        self.input = os.fdopen(read, "rb")
        self.output = os.fdopen(write, "wb")
        self.serves_all = serves_all
        self.objects: dict[int, Any] = {}

    def ask(self, operation: str, *args: Any) -> Any:
        """Return what the other end's operation returns, or raise what it raises."""
        self._send({"do": operation, "args": self._encode_all(args)})
        while True:
            message = self._receive()
            # A function that was passed as an argument is called before the answer arrives.
            if "do" in message:
                self._answer(message)
            elif "error" in message:
                raise _exception(message["error"], message["text"])
            else:
                if operation == "call":
                    _copy_changes(args[1], self._decode_all(message["args"]))
                return self.decode(message["value"])

    def serve(self) -> NoReturn:
        """Answer the other end until it closes the pipe, which raises EOFError."""
        while True:
            self._answer(self._receive())

    def _answer(self, message: dict[str, Any]) -> None:
        try:
            reply = self._perform(message)
        # SystemExit too: what the model's function raises is an answer like any other.
        except BaseException as error:
            reply = _error_reply(error)
        self._send(reply)

    def _perform(self, message: dict[str, Any]) -> dict[str, Any]:
        operation = message["do"]
        if not self.serves_all and operation != "call":
            raise Unsupported(f"{operation} is not offered here")
        args = self._decode_all(message["args"])
        value = self.encode(_OPERATIONS[operation](*args))
        # A call may change its arguments in place, so they travel back.
        changed_args = self._encode_all(args[1]) if operation == "call" else []
        return {"value": value, "args": changed_args}

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
        """Return `value` as JSON data: plain data by value, any other object by a number.

        A subclass of a plain type travels as the first plain type among its bases.
        """
        for kind in type(value).__mro__:
            if kind in _SCALARS:
                return _SCALARS[kind](value)
            if kind is list:
                return self._encode_all(value)
            # A time zone is no plain data, so a datetime that has one is passed by number.
            if kind in _PLAIN and not getattr(value, "tzinfo", None):
                args = self._encode_all(_PLAIN[kind](value))
                return {"plain": kind.__name__, "args": args}
        return self._encode_reference(value)

    def _encode_reference(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {"yours": object.__getattribute__(value, "_number")}
        if not self.serves_all:
            # Python's own functions, such as a `key=len`, need no call back to the judge.
            if value in vars(builtins).values():
                return {"builtin": value.__name__}
            if not callable(value):
                raise Unsupported(f"a {type(value).__name__} cannot be passed to the model's code")
        # The reference in `objects` keeps the object alive, so no other object gets its id.
        self.objects[id(value)] = value
        return {"mine": id(value)}

    def decode(self, data: Any) -> Any:
        """Return the value that `encode` at the other end was given, or a `Remote` for it."""
        if isinstance(data, list):
            return self._decode_all(data)
        if not isinstance(data, dict):
            return data
        if "float" in data:
            return float.fromhex(data["float"])
        if "plain" in data:
            return _PLAIN_BY_NAME[data["plain"]](*self.decode(data["args"]))
        if "yours" in data:
            return self.objects[data["yours"]]
        if "builtin" in data and self.serves_all:
            return getattr(builtins, data["builtin"])
        return Remote(self, int(data["mine"]))

    def _encode_all(self, values: Iterable[Any]) -> list[Any]:
        # Not map(): it would end early, without an error, where a value's own code raises
        # StopIteration.
        encoded = []
        for value in values:
            encoded.append(self.encode(value))
        return encoded

    def _decode_all(self, values: Iterable[Any]) -> list[Any]:
        decoded = []
        for value in values:
            decoded.append(self.decode(value))
        return decoded


class Remote:
    """An object of the other process.

    It has no operators, and it equals nothing but an object of that process.
    """

    # `__setattr__` and `__getattr__` below belong to the object of the other process, so these two
    # attributes are set and read past them.
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

    # Python would ask the model's `__len__` instead.
    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._ask("eq", other) is True

    # Two equal objects would need equal hashes, which the model's code would have to supply.
    __hash__ = None  # type: ignore[assignment]


def _copy_changes(args: list[Any], after: list[Any]) -> None:
    """Repeat on the caller's lists, dictionaries and sets what the call did to their copies."""
    for arg, new in zip(args, after, strict=True):
        if type(arg) is type(new) and arg != new:
            if isinstance(arg, (list, bytearray)):
                arg[:] = new
            elif isinstance(arg, (dict, set)):
                arg.clear()
                arg.update(new)


def _error_reply(error: BaseException) -> dict[str, Any]:
    """Return the message that makes the other end raise the same exception, or one like it.

    >>> _error_reply(KeyError("x"))["error"]
    ['KeyError', 'LookupError', 'Exception', 'BaseException', 'object']
    """
    names = []
    for kind in type(error).__mro__:
        names.append(kind.__name__)
    return {"error": names, "text": str(error)[:_LONGEST_ERROR_TEXT]}


def _exception(names: list[str], text: str) -> Exception:
    """Return an exception of the first class among `names` that is Python's own."""
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            try:
                return kind(text)
            # Some need more than a text: UnicodeDecodeError takes five arguments.
            except TypeError:
                continue
    return CandidateError(text)


def _be_candidate(read: int, write: int) -> NoReturn:
    """Run the model's code on request, with nothing to read from or write to but the pipes."""
    nothing = os.open(os.devnull, os.O_RDWR)
    # Standard input carries the tests, and standard output the results.
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    namespace: dict[str, Any] = {"__name__": "candidate"}

    def start(code: str) -> None:
        exec(compile(code, "candidate.py", "exec"), namespace)

    _OPERATIONS.update(start=start, fetch=namespace.__getitem__)
    try:
        Peer(read, write, serves_all=True).serve()
    finally:
        # Not sys.exit(): the model's `atexit` functions are not to run.
        os._exit(0)


def _be_judge(peer: Peer) -> None:
    """Read the task from standard input, and print which of its tests pass.

    Each printed line begins with the task's nonce, which the model's code does not know.
    """
    task = json.loads(sys.stdin.read())
    print(task["nonce"], "ready", flush=True)
    namespace: dict[str, Any] = {"__name__": "tests"}
    # The model's code often makes the import that the tests then use.
    for name in task["modules"]:
        namespace[name] = importlib.import_module(name)
    try:
        peer.ask("start", task["code"])
        for name in task["names"]:
            # The code may lack the name; the tests that read it will fail.
            with contextlib.suppress(KeyError):
                namespace[name] = peer.ask("fetch", name)
    # The model's code does not even start, so no test passes.
    except BaseException:
        return
    _run_tests([task["setup"], *task["tests"]], namespace, task["nonce"])


def _run_tests(sources: list[str], namespace: dict[str, Any], nonce: str) -> None:
    for number, source in enumerate(sources):
        try:
            exec(compile(source, f"test_{number}.py", "exec"), namespace)
        except Unsupported:
            print(nonce, "unsupported", flush=True)
            return
        # A test may fail in any way, by SystemExit too; the next one is run.
        except BaseException:
            continue
        print(nonce, f"passed {number}", flush=True)


def main() -> None:
    """Fork the candidate, then judge it."""
    # Integers travel as text, which Python else refuses for more than 4,300 digits.
    sys.set_int_max_str_digits(0)
    to_candidate = os.pipe()
    to_judge = os.pipe()
    if os.fork() == 0:
        os.close(to_candidate[1])
        os.close(to_judge[0])
        _be_candidate(to_candidate[0], to_judge[1])
    os.close(to_candidate[0])
    os.close(to_judge[1])
    # From here on, no process of this user may read this process's memory, trace it or open its
    # files through /proc.
    if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_DUMPABLE) failed")
    _be_judge(Peer(to_judge[0], to_candidate[1], serves_all=False))
    sys.stdout.flush()
    # Not sys.exit(): nothing that the tests registered is to run or wait.
    os._exit(0)


if __name__ == "__main__":
    main()
