r"""Pays for Rust code that compiles with the row's tests, that clippy finds no fault with, and that passes the tests.

The code is the completion's last closed fence of Rust, or the whole completion if it has no fence at all. It becomes
the library of a crate without dependencies; the row's tests (the text of a test module, with `use super::*;`) follow it
there, in a module whose name the code cannot know, so tests that the model writes count for nothing. All of it runs in
one sandbox (`grpo_hf.scoring.sandbox`) that sees the Rust toolchain but no CARGO_HOME: no token, no downloaded crate. Each test
runs in a process of its own, and its exit code says whether it passed.

Tests and code share that process. Code that could leave it early, read the tests or redefine the assertions is
therefore not run and scores 0.0: `unsafe`, `std::process`, `std::fs`, `std::env`, `std::os`, macros of its own,
`include!`, nested block comments, and giving an item the name of a standard macro. Not prevented: a type that the code
redefines. `fn f() -> Same`, where a `Same` equals every number, passes `assert_eq!(f(), 4)` but no `let x: i32 = f();`,
so good tests name their types. And without bubblewrap an attack on the program that called the sandbox (`sandbox.py`
says what is open then).
"""

import functools
import itertools
import re
import secrets
import shutil
import subprocess
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.errors import RewardSpecError
from grpo_hf.rewards._code import last_block
from grpo_hf.scoring.reward import reward_settings
from grpo_hf.scoring.sandbox import Finished, Limits, run_sandboxed

_RUST = {"rust", "rs"}

_GAP = r"(?:\s|//[^\n]*\n|/\*.*?\*/)*+"
_OUTSIDE = r"(?:r#)?(?:process|fs|env|os|intrinsics)"
_FORBIDDEN = re.compile(
    rf"::{_GAP}{_OUTSIDE}\b|\b{_OUTSIDE}{_GAP}(?:::|as\b)"  # std::process, process::exit, {{process as p}}
    rf"|\b(?:macro_rules|include|include_str|include_bytes|asm|global_asm){_GAP}!"
    r"|\b(?:no_mangle|link_section|export_name)\b"
    rf"|\bas{_GAP}(?:r#)?(?:assert|assert_eq|assert_ne|panic|matches|vec|unreachable)\b",
    re.DOTALL,
)
_SILENCES_CLIPPY = re.compile(rf"\[{_GAP}(?:allow|expect|cfg_attr)\b")
_LONGEST_CODE = 20_000  # characters

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

# The model's code only runs in the loop, and what it prints goes nowhere: each line on stdout is the script's own.
_SCRIPT = r"""
export CARGO_HOME="$HOME/cargo"
mkdir work && cp -R bare tested work && cd work || exit 1  # where cargo may write
(cd tested && cargo test --offline --lib --no-run --message-format json --target-dir ../built) >messages 2>errors
binary=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' messages | head -n 1)
if [ -z "$binary" ]; then tail -c 2000 errors >&2; exit 0; fi
echo compiled
cd bare
if [ "$CLIPPY" = 1 ] && cargo clippy --offline --target-dir ../built -- -D warnings -A dead_code >/dev/null 2>&1
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


@reward_settings(timeout=120.0)
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
    r"""`compiles`, plus `clippy` if clippy is silent and a test passes, plus `passes` times the share of tests passed.

    Args:
        completions: texts, or lists of messages.
        tests: per row the text of a Rust test module.
        compiles: paid where code and tests compile together. The three parts add up to 1.
        clippy: paid where `cargo clippy` has nothing to say either (unused private items aside) and at least one test
            passes. 0 does without clippy.
        passes: paid in full where every test passes.
        sandbox: "auto" takes bubblewrap where it works, else resource limits with a warning; "required" refuses to run
            without bubblewrap; "limits" takes resource limits.
        timeout: seconds for a completion with all its tests, at most 110; tests that have passed by then count.
        test_timeout: whole seconds for one test.
        memory_mb: MB of address space for a test (the compiler gets 4 GB).

    Returns:
        One reward per completion; None where the row's tests hold no `#[test]`.

    Raises:
        RewardSpecError: an option is impossible, a tool is missing, or the sandbox cannot be had.

    >>> tests = "#[test] fn doubles() { let x: i32 = double(2); assert_eq!(x, 4); }"
    >>> rust_cargo(["pub fn double(x: i32) -> i32 {\n    x * 2\n}"], [tests], sandbox="limits")  # doctest: +SKIP
    [1.0]
    >>> _reward(Finished(0, "compiled\nclean\n4\npassed\npassed\n", "", "timed out"), 0.2, 0.1, 0.7)
    0.65
    """
    parts = {"compiles": compiles, "clippy": clippy, "passes": passes}
    if any(part < 0 for part in parts.values()) or abs(sum(parts.values()) - 1) > 1e-6:
        raise RewardSpecError(f"rust_cargo: {parts} must not be negative and must add up to 1.")
    numbers = {
        "timeout": (timeout, 110),
        "test_timeout": (test_timeout, 110),
        "memory_mb": (memory_mb, 1 << 20),
    }
    for name, (value, most) in numbers.items():
        if not 0 < value <= most or (name != "timeout" and value != int(value)):
            raise RewardSpecError(
                f"rust_cargo: {name} is {value!r}. Give a number above 0, up to {most:,}."
            )
    run = functools.partial(
        _run,
        with_clippy=clippy > 0,
        sandbox=sandbox,
        timeout=timeout,
        test_timeout=test_timeout,
        memory_mb=memory_mb,
    )
    _check_toolchain(clippy > 0, sandbox)
    rewards: list[float | None] = []
    for completion, row_tests in zip(completions, tests, strict=True):
        code = last_block(completion_text(completion), _RUST)
        if not isinstance(row_tests, str) or "#[test]" not in row_tests:
            rewards.append(None)
        elif _is_forbidden(code):
            rewards.append(0.0)
        else:
            rewards.append(_reward(run(code, row_tests), compiles, clippy, passes))
    return rewards


def _is_forbidden(code: str) -> bool:
    """Whether the code has something from the list, or a comment in which it could hide that.

    >>> [_is_forbidden(code) for code in ("std::/* a */process::exit(0)", "/* a /* b */ */", "fn f() {}")]
    [True, True, False]
    """
    # Rust's block comments nest, which no regular expression follows: those are forbidden, and so is an open one.
    marks = [*re.findall(r"/\*|\*/", code[:_LONGEST_CODE]), "/*"]
    nested = any(mark == following == "/*" for mark, following in itertools.pairwise(marks))
    return len(code) > _LONGEST_CODE or nested or _FORBIDDEN.search(code) is not None


def _reward(done: Finished, compiles: float, clippy: float, passes: float) -> float:
    lines = done.stdout.split()
    if "compiled" not in lines:
        return 0.0
    passed, tests = lines.count("passed"), int(next(filter(str.isdigit, lines), "0"))
    share = passed / tests if tests else 0.0
    return min(1.0, compiles + clippy * ("clean" in lines and passed > 0) + passes * share)


def _run(
    code: str,
    tests: str,
    with_clippy: bool,
    sandbox: str,
    timeout: float,
    test_timeout: int,
    memory_mb: int,
) -> Finished:
    module = f"judge_{secrets.token_hex(8)}"
    sysroot = _sysroot()
    together = f"{code}\n#[cfg(test)]\n#[allow(unused_imports)]\nmod {module} {{\nuse super::*;\n{tests}\n}}\n"
    return run_sandboxed(
        ["sh", "-c", _SCRIPT],
        files={
            "bare/Cargo.toml": _MANIFEST,
            "bare/src/lib.rs": code,
            "tested/Cargo.toml": _MANIFEST,
            "tested/src/lib.rs": together,
        },
        limits=Limits(seconds=timeout, memory=4 << 30, processes=64, disk=512 << 20),
        level=sandbox,
        readable=[sysroot],
        environment={
            "PATH": f"{sysroot}/bin:/usr/local/bin:/usr/bin:/bin",
            "CARGO_BUILD_JOBS": "1",
            "CLIPPY": str(int(with_clippy and not _SILENCES_CLIPPY.search(code))),
            "MODULE": module,
            "TEST_SECONDS": str(test_timeout),
            "TEST_MEMORY": str(memory_mb << 20),
        },
    )


@functools.cache
def _sysroot() -> str:
    """The folder of the toolchain itself, because rustup's own `cargo` needs the user's files to find it."""
    if not shutil.which("cargo") or not shutil.which("rustc"):
        raise RewardSpecError(
            "rust_cargo needs cargo and rustc, which are not installed: see https://rustup.rs."
        )
    return subprocess.run(
        ["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True
    ).stdout.strip()


@functools.cache
def _check_toolchain(with_clippy: bool, sandbox: str) -> None:
    """Score a known solution once, so that a broken toolchain is an error and not a low reward."""
    if with_clippy and not shutil.which("cargo-clippy", path=f"{_sysroot()}/bin"):
        raise RewardSpecError(
            "rust_cargo needs clippy, which is not installed: rustup component add clippy, or set clippy to 0 and the "
            "other parts to add up to 1."
        )
    code, tests = (
        "pub fn one() -> u8 {\n    1\n}\n",
        "#[test] fn is_one() { assert_eq!(one(), 1); }",
    )
    done = _run(code, tests, with_clippy, sandbox, timeout=110, test_timeout=60, memory_mb=1024)
    if _reward(done, 0.5, 0.0, 0.5) < 1 or (with_clippy and "clean" not in done.stdout):
        raise RewardSpecError(
            f"rust_cargo: a right solution fails here, so no reward can be trusted ({done.reason}). cargo needs a "
            f"linker (apt-get install gcc) beside itself. It said: {done.stderr[-600:] or done.stdout[-200:]!r}."
        )
