r"""Pay for Rust code that compiles with the row's tests, satisfies clippy and passes the tests.

The code is the completion's last closed fence of Rust, or the whole completion if it has no fence
at all. It becomes the library of a crate without dependencies. The row's tests (the text of a test
module, with `use super::*;`) follow it there, in a module whose name the code cannot know, so tests
that the model writes count for nothing. Everything runs in one sandbox (`grpo_hf.scoring.sandbox`)
that sees the Rust toolchain but no CARGO_HOME: no token, no downloaded crate. Each test runs in a
process of its own, and the exit code of that process says whether the test passed.

Tests and code share that process. Code that could leave it early, read the tests or redefine the
assertions is therefore not run and scores 0.0: `unsafe`, `std::process`, `std::fs`, `std::env`,
`std::os`, macros of its own, `include!`, nested block comments, and giving an item the name of a
standard macro.

Not prevented: a type that the code redefines. `fn f() -> Same`, where a `Same` equals every number,
passes `assert_eq!(f(), 4)` but no `let x: i32 = f();`, so good tests name their types. Also not
prevented, with `sandbox: none`: an attack on the program that called it.
"""

import functools
import itertools
import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards._code import last_block
from grpo_hf.rewards._options import check_choice, check_number, check_whole
from grpo_hf.scoring.reward import reward_settings
from grpo_hf.scoring.sandbox import LEVELS, Finished, Limits, confinement, run_sandboxed

_RUST = {"rust", "rs"}

# Whitespace and comments, which Rust allows between any two tokens.
_GAP = r"(?:\s|//[^\n]*\n|/\*.*?\*/)*+"
# Modules of `std` by which code can leave the process or look at what is around it.
_OUTSIDE = r"(?:r#)?(?:process|fs|env|os|intrinsics)"
_FORBIDDEN = re.compile(
    # std::process, process::exit, {process as p}
    rf"::{_GAP}{_OUTSIDE}\b|\b{_OUTSIDE}{_GAP}(?:::|as\b)"
    rf"|\b(?:macro_rules|include|include_str|include_bytes|asm|global_asm){_GAP}!"
    r"|\b(?:no_mangle|link_section|export_name)\b"
    # use mine::always as assert
    rf"|\bas{_GAP}(?:r#)?(?:assert|assert_eq|assert_ne|panic|matches|vec|unreachable)\b",
    re.DOTALL,
)
_COMMENT_MARK = re.compile(r"/\*|\*/")
_SILENCES_CLIPPY = re.compile(rf"\[{_GAP}(?:allow|expect|cfg_attr)\b")
# A solution is far shorter, and a bound keeps the patterns above quick.
_LONGEST_CODE = 20_000  # characters

# Limits of the sandbox, for the compiler and the linker. A test needs less memory: the script sets
# its limit.
_COMPILER_MEMORY = 4 << 30  # bytes of each process
_PROCESSES = 64
_DISK = 512 << 20  # bytes
# The check of the toolchain has time to spare, because a slow machine is not a broken one.
_CHECK_TIMEOUT = 110  # seconds
_CHECK_TEST_TIMEOUT = 60  # seconds
_CHECK_MEMORY_MB = 1024
_MOST_SECONDS = 1 << 20
_MOST_MEMORY_MB = 1 << 20
_CHECK_CODE = "pub fn one() -> u8 {\n    1\n}\n"
_CHECK_TESTS = "#[test] fn is_one() { assert_eq!(one(), 1); }"

_MANIFEST = """[package]
name = "candidate"
version = "0.0.0"
edition = "2021"

[lib]
doctest = false

[lints.rust]
unsafe_code = "forbid"

[profile.dev]
debug = 0
incremental = false
"""

# The model's code runs in the loop only, and what it prints goes nowhere. So each line on standard
# output was written by the script itself.
_SCRIPT = r"""
export CARGO_HOME="$HOME/cargo"
mkdir work && cp -R bare tested work && cd work || exit 1  # where cargo may write
(cd tested && cargo test --offline --lib --no-run --message-format json --target-dir ../built) \
    >messages 2>errors
binary=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' messages | head -n 1)
if [ -z "$binary" ]; then tail -c 2000 errors >&2; exit 0; fi
echo compiled
cd bare
if [ "$CLIPPY" = 1 ] \
    && cargo clippy --offline --target-dir ../built -- -D warnings -A dead_code >/dev/null 2>&1
then echo clean; fi
cd ..
"$binary" --list --format terse 2>/dev/null | sed -n "s/^\($MODULE::.*\): test$/\1/p" >names
wc -l <names
while read -r name; do
    timeout -s KILL "$TEST_SECONDS" prlimit --as="$TEST_MEMORY" --cpu="$TEST_SECONDS" -- \
        "$binary" --exact "$name" --test-threads 1 </dev/null >/dev/null 2>&1 && echo passed
done <names
echo done
"""


def _check_options(
    compiles: float,
    clippy: float,
    passes: float,
    *,
    sandbox: str,
    timeout: float,
    test_timeout: int,
    memory_mb: int,
) -> None:
    parts = {"compiles": compiles, "clippy": clippy, "passes": passes}
    for name, part in parts.items():
        check_number("rust_cargo", name, part, least=0)
    # Decimal fractions like 0.7 + 0.2 + 0.1 add up to 1 only nearly.
    if abs(sum(parts.values()) - 1) > 1e-6:
        raise RewardSpecError(f"rust_cargo: {parts} must add up to 1.")
    check_choice("rust_cargo", "sandbox", sandbox, LEVELS)
    confinement(sandbox)
    check_number("rust_cargo", "timeout", timeout, above=0)
    # `timeout` and `prlimit` in the script take whole numbers.
    check_whole("rust_cargo", "test_timeout", test_timeout, most=_MOST_SECONDS)
    check_whole("rust_cargo", "memory_mb", memory_mb, most=_MOST_MEMORY_MB)


# The run's limit stays as far behind `timeout` as 180 seconds are behind its default. So there is
# time for the check of the toolchain, and the tests that have passed by `timeout` count.
@reward_settings(batched=False, in_process=False, timeout=180.0, check=_check_options, gold="tests")
def rust_cargo(
    completions: list[Completion],
    tests: list[Any],
    *,
    compiles: float = 0.2,
    clippy: float = 0.1,
    passes: float = 0.7,
    sandbox: str = "auto",
    timeout: float = 60.0,
    test_timeout: int = 5,
    memory_mb: int = 1024,
    **columns: Any,
) -> list[float | None]:
    r"""Return the sum of what compiling, clippy and passed tests pay.

    That is `compiles` where code and tests compile together, plus `clippy` if clippy is silent and
    a test passes, plus `passes` times the share of tests passed.

    Args:
        completions: texts, or lists of messages.
        tests: per row the text of a Rust test module.
        compiles: paid where code and tests compile together. The three parts add up to 1.
        clippy: paid where `cargo clippy` reports nothing (unused private items aside) and at least
            one test passes. With 0, clippy need not be installed.
        passes: paid in full where every test passes.
        sandbox: "auto" takes the best tier that holds on this machine and refuses to run without
            one; the name of a tier takes that one; "none" gives resource limits only.
        timeout: seconds for a completion with all its tests; tests that have passed by then count.
        test_timeout: whole seconds for one test.
        memory_mb: MB of address space for a test (the compiler gets 4 GB).

    Returns:
        One reward per completion; None where the row's tests contain no `#[test]`.

    Raises:
        RewardSpecError: an option is impossible, a tool is missing, or the sandbox cannot be
            started.

    >>> tests = "#[test] fn doubles() { let x: i32 = double(2); assert_eq!(x, 4); }"
    >>> code = "pub fn double(x: i32) -> i32 {\n    x * 2\n}"
    >>> rust_cargo([code], [tests], sandbox="none")  # doctest: +SKIP
    [1.0]
    >>> _reward(Finished(0, "compiled\nclean\n4\npassed\npassed\n", "", "timed out"), 0.2, 0.1, 0.7)
    0.65
    """
    _check_options(
        compiles,
        clippy,
        passes,
        sandbox=sandbox,
        timeout=timeout,
        test_timeout=test_timeout,
        memory_mb=memory_mb,
    )
    _check_toolchain(clippy > 0, sandbox)
    test_limits = _TestLimits(test_timeout, memory_mb)
    rewards: list[float | None] = []
    for completion, row_tests in zip(completions, tests, strict=True):
        code = last_block(completion_text(completion), _RUST)
        if not isinstance(row_tests, str) or "#[test]" not in row_tests:
            rewards.append(None)
        elif _is_forbidden(code):
            rewards.append(0.0)
        else:
            done = _run(code, row_tests, clippy > 0, sandbox, timeout, test_limits)
            rewards.append(_reward(done, compiles, clippy, passes))
    return rewards


def _is_forbidden(code: str) -> bool:
    """Say whether the code has something that is forbidden, or a comment that could hide it.

    >>> _is_forbidden("std::/* a */process::exit(0)"), _is_forbidden("/* a /* b */ */")
    (True, True)
    >>> _is_forbidden("fn f() {}")
    False
    """
    if len(code) > _LONGEST_CODE or _FORBIDDEN.search(code) is not None:
        return True
    # Rust's block comments nest, which no regular expression follows. So nested ones are forbidden,
    # and, by the mark that is appended, so is one that does not end.
    marks = [*_COMMENT_MARK.findall(code), "/*"]
    return ("/*", "/*") in itertools.pairwise(marks)


def _reward(done: Finished, compiles: float, clippy: float, passes: float) -> float:
    """Return the reward for what the script printed."""
    lines = done.stdout.split()
    if "compiled" not in lines:
        return 0.0
    passed = lines.count("passed")
    # The only number is how many tests there are. It is missing if time ran out before.
    tests = int(next(filter(str.isdigit, lines), "0"))
    share = passed / tests if tests else 0.0
    return min(1.0, compiles + clippy * ("clean" in lines and passed > 0) + passes * share)


@dataclass(frozen=True)
class _TestLimits:
    seconds: int
    memory_mb: int


def _run(
    code: str,
    tests: str,
    with_clippy: bool,
    sandbox: str,
    timeout: float,
    test_limits: _TestLimits,
) -> Finished:
    module = f"judge_{secrets.token_hex(8)}"
    sysroot = _sysroot()
    test_module = f"mod {module} {{\nuse super::*;\n{tests}\n}}"
    together = f"{code}\n#[cfg(test)]\n#[allow(unused_imports)]\n{test_module}\n"
    return run_sandboxed(
        ["sh", "-c", _SCRIPT],
        # Clippy reads the bare code, so that it does not judge the tests.
        files={
            "bare/Cargo.toml": _MANIFEST,
            "bare/src/lib.rs": code,
            "tested/Cargo.toml": _MANIFEST,
            "tested/src/lib.rs": together,
        },
        limits=Limits(seconds=timeout, memory=_COMPILER_MEMORY, processes=_PROCESSES, disk=_DISK),
        level=sandbox,
        readable=[sysroot],
        environment={
            "PATH": f"{sysroot}/bin:/usr/local/bin:/usr/bin:/bin",
            "CARGO_BUILD_JOBS": "1",
            # Code that silences clippy's lints does not earn their part.
            "CLIPPY": str(int(with_clippy and not _SILENCES_CLIPPY.search(code))),
            "MODULE": module,
            "TEST_SECONDS": str(test_limits.seconds),
            "TEST_MEMORY": str(test_limits.memory_mb << 20),
        },
    )


@functools.cache
def _sysroot() -> str:
    """Return the folder of the toolchain, whose `cargo` works without the user's files.

    rustup's own `cargo` needs them to find the toolchain.
    """
    if not shutil.which("cargo") or not shutil.which("rustc"):
        raise RewardSpecError(
            "rust_cargo needs cargo and rustc, which are not installed: see https://rustup.rs."
        )
    done = subprocess.run(
        ["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@functools.cache
def _check_toolchain(with_clippy: bool, sandbox: str) -> None:
    """Score a known solution once, so that a broken toolchain is an error and not a low reward."""
    if with_clippy and not shutil.which("cargo-clippy", path=f"{_sysroot()}/bin"):
        raise RewardSpecError(
            "rust_cargo needs clippy, which is not installed: rustup component add clippy, or set "
            "clippy to 0 and the other parts to add up to 1."
        )
    test_limits = _TestLimits(_CHECK_TEST_TIMEOUT, _CHECK_MEMORY_MB)
    done = _run(_CHECK_CODE, _CHECK_TESTS, with_clippy, sandbox, _CHECK_TIMEOUT, test_limits)
    if _reward(done, 0.5, 0.0, 0.5) < 1 or (with_clippy and "clean" not in done.stdout):
        raise RewardSpecError(
            "rust_cargo: a right solution fails here, so no reward can be trusted "
            f"({done.reason}). cargo needs a linker (apt-get install gcc) beside itself. It said: "
            f"{done.stderr[-600:] or done.stdout[-200:]!r}."
        )
