r"""Pay for Python code that passes the row's tests in a sandbox (MBPP, arXiv 2108.07732).

The code is the completion's last closed fence of Python, or the whole completion if it has no fence
at all. A test is a text of Python statements, such as `assert f(2) == 4`. It passes if it ends
without an exception.

A model can learn to pass tests without solving the task, so the tests and the code run in two
processes (`_remote_tests.py`). Calls and results travel between them as plain data, and values are
compared in the process where no line of the model's code runs.

    Prevented: leaving early (sys.exit, os._exit, atexit); printing results; redefining names of the
    tests (set, len, math); patching modules; returning an object that equals everything; reading
    the tests from files, frames, streams or the judge's memory; and ending the judge, which only
    loses the points.
    Not prevented: returning the expected values without computing them where the prompt shows them;
    a test that compares two results of the model's code with each other; a test that any object
    passes (`assert f(2)`); and, with `sandbox: none`, an attack on the program that called it.

Tests receive None, numbers, text, bytes, lists, tuples, sets, dictionaries, ranges, deques,
fractions, decimals and dates by value, and as these types: a Counter arrives as a dict. Changes
that a call makes to lists, dictionaries and sets among its arguments arrive too. Any other object
stays with the model's code; the tests can call it, index it, iterate over it and read and set its
attributes. The code has the standard library and the packages that are installed beside grpo-hf;
where the log says that Python was copied, it has the standard library alone.
"""

import inspect
import json
import secrets
import sys
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.rewards import _remote_tests
from grpo_hf.rewards._code import last_block
from grpo_hf.rewards._options import check_choice, check_flag, check_number
from grpo_hf.rewards._tested_names import modules_to_import, names_to_fetch
from grpo_hf.scoring.reward import reward_settings
from grpo_hf.scoring.sandbox import LEVELS, Limits, confinement, run_sandboxed

_PYTHON = {"python", "py", "python3"}
# The judge, the model's code, and a few threads or processes that the code starts.
_PROCESSES = 8
_MOST_MEMORY_MB = 1 << 20


def _check_options(sandbox: str, timeout: float, partial: bool, memory_mb: float) -> None:
    check_choice("python_tests", "sandbox", sandbox, LEVELS)
    confinement(sandbox)
    check_number("python_tests", "timeout", timeout, above=0)
    check_flag("python_tests", "partial", partial)
    check_number("python_tests", "memory_mb", memory_mb, above=0, most=_MOST_MEMORY_MB)


# The run's limit stays as far behind `timeout` as 60 seconds are behind its default. So the sandbox
# has time to start and to end, and the tests that have passed by `timeout` count.
@reward_settings(
    batched=False, in_process=False, timeout=60.0, check=_check_options, gold="test_list"
)
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
    r"""Return the share of the row's tests that the completion's code passes, from 0.0 to 1.0.

    Args:
        completions: texts, or lists of messages.
        test_list: per row a list of tests, each a text of Python statements.
        sandbox: "auto" takes the best tier that holds on this machine and refuses to run without
            one; the name of a tier takes that one; "none" gives resource limits only.
        timeout: seconds for a completion with all its tests; tests that have passed by then count.
        partial: False pays 1.0 if all tests pass, else 0.0.
        memory_mb: MB of address space for each process.
        columns: `test_setup_code` (statements) and `test_imports` (a list of statements) run before
            the tests; both are optional.

    Returns:
        One reward per completion. It is None where the row has no tests; where a test is not
        Python; where the tests name nothing that code could define (a function called `sum` or
        `set` is always Python's); and where a test passes the code an object of a class that the
        tests define.

    Raises:
        RewardSpecError: an option is impossible, or the sandbox cannot be started.

    >>> tests = ["assert double(2) == 4", "assert double(-1) == -2"]
    >>> doubles = "```python\ndef double(x):\n    return x * 2\n```"
    >>> squares = "def double(x): return x ** 2"
    >>> python_tests([doubles, squares, "exit()"], [tests] * 3, sandbox="none")
    [1.0, 0.5, 0.0]
    """
    _check_options(sandbox, timeout, partial, memory_mb)
    limits = Limits(seconds=timeout, memory=int(memory_mb * 2**20), processes=_PROCESSES)
    rewards: list[float | None] = []
    for row, (completion, tests) in enumerate(zip(completions, test_list, strict=True)):
        imports = _statements(columns, "test_imports", row)
        setup = "\n".join(imports + _statements(columns, "test_setup_code", row))
        if not _are_tests(tests, setup):
            rewards.append(None)
            continue
        code = last_block(completion_text(completion), _PYTHON)
        share = _share_passed(code, setup, list(tests), limits, sandbox)
        if share is None or partial:
            rewards.append(share)
        else:
            rewards.append(float(share == 1.0))
    return rewards


def _statements(columns: dict[str, Any], name: str, row: int) -> list[str]:
    """Return the row's value in a column that the dataset may lack, as a list of texts."""
    if columns.get(name) is None:
        return []
    value = columns[name][row]
    if isinstance(value, str):
        return [value]
    return list(value or [])


def _are_tests(tests: Any, setup: str) -> bool:
    if not isinstance(tests, list | tuple) or not tests:
        return False
    try:
        for source in (setup, *tests):
            # `dont_inherit`: a `__future__` import of this file must not change the tests.
            compile(source, "test", "exec", dont_inherit=True)
    except (SyntaxError, TypeError, ValueError):
        return False
    return bool(names_to_fetch("\n".join([setup, *tests])))


def _share_passed(
    code: str, setup: str, tests: list[str], limits: Limits, sandbox: str
) -> float | None:
    """Run the tests; return None if one passes the code an object that cannot travel."""
    nonce = secrets.token_hex(16)
    done = run_sandboxed(
        [sys.executable, "-I", "judge.py"],
        files={"judge.py": inspect.getsource(_remote_tests)},
        stdin=json.dumps(_task(nonce, code, setup, tests)),
        limits=limits,
        level=sandbox,
        # Else numpy starts a thread per core, and the limit on processes counts threads.
        environment={"OMP_NUM_THREADS": "1"},
    )
    reports = _reports(done.stdout, nonce)
    if "ready" not in reports:
        raise RuntimeError(
            f"the sandbox did not start ({done.reason}, exit code {done.returncode}): "
            f"{done.stderr[-500:]}"
        )
    if "unsupported" in reports:
        return None
    passed = 0
    # The judge counts the setup as number 0.
    for number in range(1, len(tests) + 1):
        passed += f"passed {number}" in reports
    return passed / len(tests)


def _task(nonce: str, code: str, setup: str, tests: list[str]) -> dict[str, Any]:
    sources = [setup, *tests]
    names = names_to_fetch("\n".join(sources))
    return {
        "nonce": nonce,
        "code": code,
        "setup": setup,
        "tests": tests,
        "names": sorted(names),
        "modules": sorted(modules_to_import(sources, names)),
    }


def _reports(stdout: str, nonce: str) -> set[str]:
    """Return what the judge printed.

    The model's code can write to the judge's stream (it finds the stream under /proc), but it does
    not know the nonce with which the judge begins each line.
    """
    reports = set()
    for line in stdout.splitlines():
        if line.startswith(nonce):
            reports.add(line.removeprefix(nonce).strip())
    return reports
