r"""Pays for Python code that passes the row's tests, which run in a sandbox (MBPP, arXiv 2108.07732).

The code is the completion's last closed fence of Python, or the whole completion if it has no fence at all. A test is a
text of Python statements, such as `assert f(2) == 4`, that ends without an exception.

Code learns to pass tests without solving the task, so tests and code run in two processes (`_remote_tests.py`). Calls
and results travel between them as plain data, and the comparison is made where no line of the model's code runs.

    Prevented: leaving early (sys.exit, os._exit, atexit), printing results, redefining names of the tests (set, len,
    math), patching modules, returning an object that equals everything, reading the tests from files, frames, streams
    or the judge's memory, and ending the judge, which only loses the points.
    Not prevented: returning the expected values without computing them where the prompt shows them; a test that
    compares two results of the model's code with each other; a test that any object passes (`assert f(2)`); and,
    without bubblewrap, an attack on the program that called the sandbox (`sandbox.py` says what is open then).

Tests see None, numbers, text, bytes, lists, tuples, sets, dictionaries, ranges, deques, fractions, decimals and dates
by value, and as these types: a Counter arrives as a dict. Changes that a call makes to its lists, dictionaries and sets
arrive too. Any other object stays with the model's code; the tests can call it, index it, iterate over it and read and
set its attributes. The code has the standard library and what is installed beside grpo-hf.
"""

import inspect
import json
import secrets
import sys
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards import _remote_tests
from grpo_hf.rewards._code import last_block
from grpo_hf.scoring.reward import reward_settings
from grpo_hf.scoring.sandbox import Limits, run_sandboxed

_PYTHON = {"python", "py", "python3"}
_PROCESSES = 8  # the judge, the code, and a few threads or processes of the code


@reward_settings(timeout=60.0)
def python_tests(
    completions: list[Completion],
    test_list: list[Any],
    *,
    sandbox: str = "auto",
    timeout: float = 5.0,
    partial: bool = True,
    memory_mb: int = 512,
    **columns: Any,
) -> list[float | None]:
    r"""The share of the row's tests that the completion's code passes, from 0.0 to 1.0.

    Args:
        completions: texts, or lists of messages.
        test_list: per row a list of tests, each a text of Python statements.
        sandbox: "auto" takes bubblewrap where it works, else resource limits with a warning; "required" refuses to run
            without bubblewrap; "limits" takes resource limits.
        timeout: seconds for a completion with all its tests, at most 50; tests that have passed by then count.
        partial: False pays 1.0 for all tests and 0.0 for fewer.
        memory_mb: MB of address space for each process.
        columns: `test_setup_code` (statements) and `test_imports` (a list of them) run before the tests, if they come.

    Returns:
        One reward per completion; None where the row has no tests, a test is no Python, the tests name nothing that
        code could define (a function called `sum` or `set` is always Python's), or one passes the code an object of a
        class that the tests define.

    Raises:
        RewardSpecError: an option is impossible, or the sandbox cannot be had.

    >>> tests = ["assert double(2) == 4", "assert double(-1) == -2"]
    >>> right, half = "```python\ndef double(x):\n    return x * 2\n```", "def double(x): return x ** 2"
    >>> python_tests([right, half, "exit()"], [tests] * 3, sandbox="limits")
    [1.0, 0.5, 0.0]
    """
    for name, value, most in (("timeout", timeout, 50), ("memory_mb", memory_mb, 1 << 20)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise RewardSpecError(
                f"python_tests: {name} is {value!r}. Give a number above 0, up to {most:,}."
            )
    limits = Limits(seconds=timeout, memory=int(memory_mb * 2**20), processes=_PROCESSES)
    rewards: list[float | None] = []
    for row, (completion, tests) in enumerate(zip(completions, test_list, strict=True)):
        setup = "\n".join(
            [*_lines(columns, "test_imports", row), *_lines(columns, "test_setup_code", row)]
        )
        if not _are_tests(tests, setup):
            rewards.append(None)
            continue
        share = _share_passed(
            last_block(completion_text(completion), _PYTHON), setup, list(tests), limits, sandbox
        )
        rewards.append(share if share is None or partial else float(share == 1.0))
    return rewards


def _lines(columns: dict[str, Any], name: str, row: int) -> list[str]:
    value = columns[name][row] if columns.get(name) is not None else None
    return [value] if isinstance(value, str) else list(value or [])


def _are_tests(tests: Any, setup: str) -> bool:
    if not isinstance(tests, list | tuple) or not tests:
        return False
    try:
        for source in (setup, *tests):
            compile(source, "test", "exec", dont_inherit=True)
    except (SyntaxError, TypeError, ValueError):
        return False
    return bool(_remote_tests.names_to_fetch("\n".join([setup, *tests])))


def _share_passed(
    code: str, setup: str, tests: list[str], limits: Limits, sandbox: str
) -> float | None:
    nonce = secrets.token_hex(16)
    task = {"nonce": nonce, "code": code, "setup": setup, "tests": tests}
    done = run_sandboxed(
        [sys.executable, "-I", "judge.py"],
        files={"judge.py": inspect.getsource(_remote_tests)},
        stdin=json.dumps(task),
        limits=limits,
        level=sandbox,
        environment={"OMP_NUM_THREADS": "1"},  # numpy would start a thread per core
    )
    # The code can write to the judge's stream (it finds it under /proc), but it does not know the nonce.
    told = {
        line.removeprefix(nonce).strip()
        for line in done.stdout.splitlines()
        if line.startswith(nonce)
    }
    if "ready" not in told:
        raise RuntimeError(
            f"the sandbox did not start ({done.reason}, exit code {done.returncode}): {done.stderr[-500:]}"
        )
    if "unsupported" in told:
        return None
    # Number 0 is the setup.
    return sum(f"passed {number}" in told for number in range(1, len(tests) + 1)) / len(tests)
