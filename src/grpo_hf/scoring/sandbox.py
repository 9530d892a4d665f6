"""Runs code that a model wrote, so that the worst it can do is to fail.

With bubblewrap the code has an empty folder in memory as its only writable place, sees the system's
programs and Python but none of the user's files, has no network, no environment of ours and process
numbers of its own, so it cannot signal anything outside. Without it what remains is resource
limits, an empty environment and a new session; started by root, the code also runs as a user that
owns nothing, where the program can be run by one. What that leaves open is said by a warning, once.
The kernel is shared on both levels: its bugs are not fenced off.

Linux only: `setpriv` and `prlimit` (util-linux) set the limits, because Python code between fork
and exec can deadlock.
"""

import math
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from ..errors import RewardSpecError, did_you_mean

LEVELS = ("auto", "required", "limits")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_UNSHARE = (
    "--unshare-ipc",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-uts",
    "--unshare-cgroup-try",
)
_INSIDE = "/tmp"  # the writable folder, as bubblewrapped code sees it
_READ_SIZE = 65_536
_WRITE_SIZE = 4_096  # a pipe that is ready takes this much without blocking (PIPE_BUF)


@dataclass(frozen=True)
class Limits:
    """What one run may use.

    Memory is counted per process, so `processes` times `memory` bounds the whole.

    Args:
        seconds: wall time; also the processor time of each process.
        memory: bytes of address space of each process.
        processes: processes and threads.
        disk: bytes of all files together under bubblewrap, else of each file.
        output: bytes of standard output and standard error together; one more ends the run.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    processes: int = 16
    disk: int = 64 << 20
    output: int = 1 << 20


@dataclass(frozen=True)
class Finished:
    """How a run ended.

    `reason` is "exited", "timed out" or "too much output". A signal is a negative `returncode`.
    """

    returncode: int
    stdout: str
    stderr: str
    reason: str


def run_sandboxed(
    command: Sequence[str],
    *,
    files: Mapping[str, str] | None = None,
    stdin: str = "",
    limits: Limits | None = None,
    level: str = "auto",
    readable: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run `command` where it can do no harm, until it ends or breaks a limit.

    Args:
        command: the program and its arguments.
        files: texts by their path relative to the working folder (under bubblewrap the command
            cannot change them).
        stdin: what it reads.
        limits: what it may use.
        level: "auto" takes bubblewrap where it works, and else resource limits with a warning;
            "required" raises
            instead of warning; "limits" takes resource limits and says nothing.
        readable: folders that it may read beside the system's programs and Python's own.
        environment: variables beside PATH, HOME, TMPDIR and LANG; none of the caller's are passed
            on.

    Raises:
        RewardSpecError: the level is not known, or cannot be had here.

    >>> run_sandboxed(["cat", "a.txt"], files={"a.txt": "42"}, level="limits").stdout
    '42'
    """
    limits = limits or Limits()
    bubblewrap = _uses_bubblewrap(level)
    with tempfile.TemporaryDirectory(prefix="grpo-hf-", ignore_cleanup_errors=True) as host_folder:
        folder = Path(host_folder).resolve()
        for name, text in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="replace")
        strangers = bubblewrap or _strangers_can_read(
            (shutil.which(command[0]) or command[0], *readable)
        )
        user = _fresh_user() if strangers else None
        inner = [
            *_privileges(user, bubblewrap),
            *_resource_limits(limits, user, bubblewrap),
            *command,
        ]
        if bubblewrap:
            inner = [*_bubblewrap(folder, files or {}, readable, limits), *inner]
        elif user is not None:
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, user, user)
        home = _INSIDE if bubblewrap else str(folder)
        variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": home,
            "TMPDIR": home,
            "LANG": "C.UTF-8",
        }
        return _run(
            inner, folder, variables | dict(environment or {}), stdin, limits, bubblewrap, user
        )


def _uses_bubblewrap(level: str) -> bool:
    if level not in LEVELS:
        raise RewardSpecError(
            f"sandbox {level!r} is not known.{did_you_mean(str(level), LEVELS)} Choose one of: "
            f"{', '.join(LEVELS)}."
        )
    for tool in ("setpriv", "prlimit"):
        if not shutil.which(tool):
            raise RewardSpecError(
                f"the sandbox needs {tool!r}, which is not installed: install util-linux "
                "(Linux only)."
            )
    if level == "limits":
        return False
    fault = _bubblewrap_fault()
    if fault and level == "required":
        raise RewardSpecError(
            f"sandbox='required' needs bubblewrap, but {fault}. Install it (apt-get install "
            "bubblewrap) and allow unprivileged user namespaces, or choose sandbox='auto', which "
            "then runs with resource limits only."
        )
    if fault:
        _warn(fault)
    return not fault


@cache
def _bubblewrap_fault() -> str:
    """Why bubblewrap cannot be used here; nothing if it can."""
    if not shutil.which("bwrap"):
        return "bwrap is not installed"
    command = [*_bubblewrap(Path("/"), {}, (), Limits()), *_privileges(_fresh_user(), True), "true"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return "bwrap did not answer within 20 s"
    last_line = done.stderr.strip().rpartition("\n")[2]
    return (
        ""
        if done.returncode == 0
        else f"bwrap does not work here ({last_line or f'exit code {done.returncode}'})"
    )


@cache
def _warn(fault: str) -> None:
    warnings.warn(
        f"code that the model writes runs with resource limits only, because {fault}. It CAN read "
        "files that it has the rights for, use the network, and (unless this program is root and "
        "can hand it to another user) signal your processes. Install bubblewrap (apt-get install "
        "bubblewrap), or refuse with sandbox='required'.",
        stacklevel=4,
    )


def _fresh_user() -> int | None:
    """Choose a user id for one run where root may choose one, as limits are counted per user."""
    mapped = sum(
        int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines()
    )
    if os.geteuid() or mapped > 2**31:
        return None if os.geteuid() else 2**30 + secrets.randbelow(2**30)  # nobody's
    taken = {
        process.info["uids"].real
        for process in psutil.process_iter(["uids"])
        if process.info["uids"]
    }
    return secrets.choice([uid for uid in range(40_000, 60_000) if uid not in taken])


def _privileges(user: int | None, bubblewrap: bool) -> list[str]:
    command = ["setpriv", "--no-new-privs"]
    if user is not None:
        command += [f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all"]
    elif _root_can_give_up_rights():
        command += ["--inh-caps=-all", "--bounding-set=-all"]
    if not bubblewrap:
        command += ["--pdeathsig", "KILL"]  # under bubblewrap --die-with-parent does it
    return [*command, "--"]


@cache
def _root_can_give_up_rights() -> bool:
    """Return whether we are root and may run a command without root's special rights."""
    command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--", "true"]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


@cache
def _strangers_can_read(paths: tuple[str, ...]) -> bool:
    """Return whether a user that owns nothing can run a command: not one in root's home, say."""
    user = _fresh_user()
    if user is None:
        return False
    # setpriv keeps its rights until it starts the next program: only what that one starts is a
    # stranger.
    check = ["sh", "-c", 'for path; do test -r "$path" || exit 1; done', "sh", *paths]
    return subprocess.run([*_privileges(user, False), *check], capture_output=True).returncode == 0


def _resource_limits(limits: Limits, user: int | None, bubblewrap: bool) -> list[str]:
    # The kernel counts processes per user and user namespace. Only a user of its own has none
    # running already.
    running = 0 if bubblewrap or user is not None else _own_threads()
    return [
        "prlimit",
        f"--as={limits.memory}",
        f"--nproc={running + limits.processes}",
        f"--cpu={math.ceil(limits.seconds) + 1}",
        f"--fsize={limits.disk}",
        "--core=0",
        "--nofile=256",
        "--",
    ]


def _own_threads() -> int:
    processes = psutil.process_iter(["uids", "num_threads"])
    return sum(
        p.info["num_threads"] or 0
        for p in processes
        if p.info["uids"] and p.info["uids"].real == os.getuid()
    )


def _bubblewrap(
    folder: Path, files: Mapping[str, str], readable: Sequence[str], limits: Limits
) -> list[str]:
    command = [
        shutil.which("bwrap") or "bwrap",
        "--die-with-parent",
        "--new-session",
        *_UNSHARE,
        "--cap-drop",
        "ALL",
    ]
    if os.geteuid() == 0:  # setpriv then gives up root for good
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--perms", "1777", "--size", str(limits.disk), "--tmpfs", _INSIDE]
    # After /tmp, because a virtual environment may lie there.
    for path in (*_SYSTEM, sys.prefix, sys.base_prefix, *readable):
        command += [*_parents(path), "--ro-bind-try", path, path]
    for name in files:
        path = f"{_INSIDE}/{name}"
        command += [*_parents(path), "--ro-bind", str(folder / name), path]
    return [*command, "--remount-ro", "/", "--chdir", _INSIDE, "--"]


def _parents(path: str) -> list[str]:
    """Folders that bwrap would make itself, but readable for root alone."""
    return [part for parent in reversed(Path(path).parents[:-1]) for part in ("--dir", str(parent))]


def _run(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    stdin: str,
    limits: Limits,
    bubblewrap: bool,
    user: int | None,
) -> Finished:
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        command, cwd=folder, env=environment, start_new_session=True, **pipes
    )
    output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    deadline = time.monotonic() + limits.seconds
    try:
        reason = _talk(
            process, memoryview(stdin.encode(errors="replace")), output, deadline, limits.output
        )
        if reason == "exited":
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        reason = "timed out"
    finally:
        if bubblewrap:
            process.kill()  # its namespace ends with it, and everything in it
        else:
            _end(process, user)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    stdout, stderr = (bytes(text).decode(errors="replace") for text in output.values())
    return Finished(process.returncode, stdout, stderr, reason)


def _talk(
    process: subprocess.Popen[bytes],
    pending: memoryview,
    output: dict[str, bytearray],
    deadline: float,
    most: int,
) -> str:
    """Feed stdin and collect what is printed until the process ends or a limit is broken."""
    with selectors.DefaultSelector() as selector:
        for name in output:
            selector.register(getattr(process, name), selectors.EVENT_READ, name)
        selector.register(process.stdin, selectors.EVENT_WRITE, "stdin")  # type: ignore[arg-type]
        while len(selector.get_map()) > (
            "stdin" in {key.data for key in selector.get_map().values()}
        ):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return "timed out"
            ready = selector.select(min(remaining, 0.05))
            if not ready and process.poll() is not None:
                break  # something that it left behind holds the streams open
            for key, _ in ready:
                if key.data == "stdin":
                    with suppress(BrokenPipeError):
                        pending = pending[os.write(key.fd, pending[:_WRITE_SIZE]) :]
                        if pending:
                            continue
                else:
                    text = os.read(key.fd, _READ_SIZE)
                    output[key.data] += text
                    if text:
                        continue
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
            if sum(map(len, output.values())) > most:
                return "too much output"
    return "exited"


def _end(process: subprocess.Popen[bytes], user: int | None) -> None:
    """Kill the process, its children and session, and all that a user of its own runs."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if user is not None:
        subprocess.run([*_privileges(user, False), "sh", "-c", "kill -9 -1"], capture_output=True)
