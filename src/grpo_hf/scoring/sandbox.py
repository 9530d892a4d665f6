"""Runs code that a model wrote, so that the worst it can do is to fail.

The code has one writable folder, sees the system's programs and Python but none of the user's
files, has no network, no environment of ours, no rights of root, and no way to signal anything
outside; when the run ends, so does everything that it started. How that is done depends on the
machine: `sandbox_tiers.py` tries the ways, best first, and docs/reliability.md says which attack
each withstands. Where none holds, nothing is run, unless the level "none" was written. The kernel
is shared on all tiers: its bugs are not fenced off. Linux only.
"""

import json
import math
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ..errors import RewardSpecError
from . import sandbox_launch
from .sandbox_filter import seccomp_filter
from .sandbox_jail import copied_python, folder_for_all, jail_with_python, open_to_all
from .sandbox_talk import READ_SIZE, Limits, talk_to
from .sandbox_tiers import LEVELS, chosen_tier, needs_a_copy

__all__ = ["LEVELS", "Finished", "Limits", "confinement", "run_sandboxed"]

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_UNSHARE = (
    "--unshare-ipc",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-uts",
    "--unshare-cgroup-try",
)
_INSIDE = sandbox_launch.INSIDE  # the writable folder, as code in a file system of its own sees it
_OWN_FILE_SYSTEM = ("bubblewrap", "namespaces")


@dataclass(frozen=True)
class Finished:
    """How a run ended.

    `reason` is "exited", "timed out", "too much output" or "too much disk". A signal is a negative
    `returncode`, or with bubblewrap 128 and the signal's number.
    """

    returncode: int
    stdout: str
    stderr: str
    reason: str


@dataclass(frozen=True)
class _Run:
    """One run, as the tiers need to know it."""

    command: list[str]
    files: Mapping[str, str]
    limits: Limits
    readable: tuple[str, ...]
    environment: dict[str, str]
    user: int | None


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
        files: texts by their path relative to the working folder. The command cannot change them,
            unless it runs as the user who called (Landlock without root, or no protection).
        stdin: what it reads.
        limits: what it may use.
        level: "auto" takes the best tier that holds here and raises if there is none; the name of
            a tier takes that; "none" gives resource limits only, with a warning.
        readable: folders that it may read beside the system's programs and Python's own.
        environment: variables beside PATH, HOME, TMPDIR and LANG; none of the caller's are passed
            on.

    Raises:
        RewardSpecError: the level is not known, or cannot be had here.

    >>> run_sandboxed(["cat", "a.txt"], files={"a.txt": "42"}, level="none").stdout
    '42'
    """
    tier = confinement(level)
    shown = (*_SYSTEM, *_of_python(), *readable)
    variables = dict(environment or {})
    run = _Run(list(command), files or {}, limits or Limits(), shown, variables, _fresh_user(tier))
    return _run_in(tier, run, stdin)


def confinement(level: str = "auto") -> str:
    """Return the tier that a level means on this machine, after trying it once per process.

    Raises:
        RewardSpecError: the level is not known, or cannot be had here.
    """
    return chosen_tier(level, _attempt)


def _attempt(command: list[str], tier: str) -> tuple[str, str]:
    """Run a probe in a tier; return its output and, if it did not start, why."""
    run = _Run(command, {}, Limits(), (*_SYSTEM, *_of_python()), {}, _fresh_user(tier))
    try:
        done = _run_in(tier, run, "")
    except (OSError, RuntimeError, RewardSpecError, subprocess.SubprocessError) as error:
        return "", str(error)
    last_line = done.stderr.strip().rpartition("\n")[2]
    return done.stdout, last_line or f"{done.reason}, exit code {done.returncode}"


def _run_in(tier: str, run: _Run, stdin: str) -> Finished:
    jail = jail_with_python() if tier == "jail" else None
    home = str(jail / "tmp") if jail is not None else folder_for_all()
    with tempfile.TemporaryDirectory(
        prefix="grpo-hf-", dir=home, ignore_cleanup_errors=True
    ) as made:
        folder = Path(made).resolve() / "work"
        _write_files(folder, run)
        inside = _INSIDE if tier in _OWN_FILE_SYSTEM else str(folder)
        if jail is not None:
            inside = f"/{folder.relative_to(jail.resolve())}"
        variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": inside,
            "TMPDIR": inside,
            "LANG": "C.UTF-8",
        } | run.environment
        if tier == "bubblewrap":
            return _under_bubblewrap(run, folder, variables, stdin)
        plan = _plan(tier, run, (folder, inside))
        return _launched(plan, folder, variables, stdin, run.limits)


def _write_files(folder: Path, run: _Run) -> None:
    folder.mkdir()
    for name, text in run.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", errors="replace")
    if run.user is None:
        return
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    # With the sticky bit the user may make files here, and not remove those of root.
    os.chown(folder, -1, run.user)
    folder.chmod(0o1770)
    folder.parent.chmod(0o711)


def _fresh_user(tier: str) -> int | None:
    """Choose a user id for one run where root may choose one, as limits are counted per user."""
    if tier == "none" or os.geteuid() != 0:
        return None
    mapped = 0
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        mapped += int(line.split()[2])
    # Where the system has all ids, these are nobody's; a container may have 65,536 of them.
    if mapped > 2**31:
        return 2**30 + secrets.randbelow(2**30)
    taken = {
        process.info["uids"].real
        for process in psutil.process_iter(["uids"])
        if process.info["uids"]
    }
    return secrets.choice([uid for uid in range(40_000, 60_000) if uid not in taken])


def _under_bubblewrap(run: _Run, folder: Path, variables: dict[str, str], stdin: str) -> Finished:
    code = seccomp_filter(namespaces=True)
    with tempfile.TemporaryFile() as rules:
        rules.write(code)
        rules.seek(0)
        command = [
            *_bubblewrap(folder, run, rules.fileno() if code else None),
            *_privileges(run.user),
            *_prlimit(run.limits),
            *run.command,
        ]
        plan = {"tier": "bubblewrap", "user": run.user, "command": command}
        return _launched(plan, folder, variables, stdin, run.limits, rules.fileno())


def _bubblewrap(folder: Path, run: _Run, rules: int | None) -> list[str]:
    command = [
        shutil.which("bwrap") or "bwrap",
        "--die-with-parent",
        "--new-session",
        *_UNSHARE,
        "--cap-drop",
        "ALL",
    ]
    if rules is not None:
        command += ["--seccomp", str(rules)]
    if os.geteuid() == 0:  # setpriv then gives up root for good
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--perms", "1777", "--size", str(run.limits.disk), "--tmpfs", _INSIDE]
    # After /tmp, because a virtual environment may lie there.
    for path in run.readable:
        command += [*_parents(path), "--ro-bind-try", path, path]
    for name in run.files:
        path = f"{_INSIDE}/{name}"
        command += [*_parents(path), "--ro-bind", str(folder / name), path]
    return [*command, "--remount-ro", "/", "--chdir", _INSIDE, "--"]


def _parents(path: str) -> list[str]:
    """Folders that bwrap would make itself, but readable for root alone."""
    return [part for parent in reversed(Path(path).parents[:-1]) for part in ("--dir", str(parent))]


def _privileges(user: int | None) -> list[str]:
    command = ["setpriv", "--no-new-privs"]
    if user is not None:
        command += [f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all"]
    return [*command, "--"]


def _prlimit(limits: Limits) -> list[str]:
    options = []
    for name, most in _resource_limits(limits, 0).items():
        options.append(f"--{name.removeprefix('RLIMIT_').lower()}={most}")
    return ["prlimit", *options, "--"]


def _resource_limits(limits: Limits, running: int) -> dict[str, int]:
    return {
        "RLIMIT_AS": limits.memory,
        "RLIMIT_NPROC": running + limits.processes,
        "RLIMIT_CPU": math.ceil(limits.seconds) + 1,
        "RLIMIT_FSIZE": limits.disk,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 256,
    }


def _own_threads() -> int:
    processes = psutil.process_iter(["uids", "num_threads"])
    return sum(
        p.info["num_threads"] or 0
        for p in processes
        if p.info["uids"] and p.info["uids"].real == os.getuid()
    )


def _launched(
    plan: dict[str, Any],
    folder: Path,
    variables: dict[str, str],
    stdin: str,
    limits: Limits,
    *descriptors: int,
) -> Finished:
    """Run a plan under `sandbox_launch.py`, which inherits the descriptors."""
    status, written = os.pipe()
    try:
        plan = plan | {"status": written, "parent": os.getpid()}
        launcher = [sys.executable, "-I", "-S", sandbox_launch.__file__, json.dumps(plan)]
        try:
            returncode, output, reason = talk_to(
                launcher, folder, variables, stdin, limits, (written, *descriptors)
            )
        finally:
            os.close(written)
        report = json.loads(os.read(status, READ_SIZE).partition(b"\n")[0] or "{}")
    finally:
        os.close(status)
    if "fault" in report:
        raise RuntimeError(f"the sandbox ({plan['tier']}) cannot be set up: {report['fault']}.")
    if reason == "exited":
        reason = report.get("reason", reason)
    return Finished(report.get("returncode", returncode or -9), *output, reason)


def _plan(tier: str, run: _Run, folders: tuple[Path, str]) -> dict[str, Any]:
    folder, inside = folders
    root = ""
    command = run.command
    readable = list(run.readable)
    if tier == "namespaces":
        root = str(folder.parent / "root")
        Path(root).mkdir()
    elif tier == "jail" or (tier == "landlock" and needs_a_copy()):
        root, command = _for_a_stranger(tier, run)
        readable.append(root)
    # The kernel counts processes per user. Only a user of its own, or a namespace, has none yet.
    running = 0 if run.user is not None else 1 if tier == "namespaces" else _own_threads()
    same_user = run.user is None and tier == "landlock"
    code = seccomp_filter(tier == "namespaces", same_user) if tier != "none" else b""
    if not code and tier in ("landlock", "jail"):
        raise RewardSpecError("seccomp is not known for this kind of processor")
    return {
        "tier": tier,
        "user": run.user,
        "folder": str(folder) if tier == "namespaces" else inside,
        "root": root,
        "files": list(run.files),
        "readable": readable,
        "limits": _resource_limits(run.limits, running),
        "disk": run.limits.disk,
        "filter": code.hex(),
        "command": command,
    }


def _for_a_stranger(tier: str, run: _Run) -> tuple[str, list[str]]:
    """Return the copy's root and the command with Python replaced by the copy."""
    program, *arguments = run.command
    root = jail_with_python()
    if program == sys.executable:
        copy = copied_python(root)
        return str(root), [copy.removeprefix(str(root)) if tier == "jail" else copy, *arguments]
    if tier == "jail":
        raise RewardSpecError(
            f"only Python runs in the sandbox that this machine allows (jail), not {program!r}: "
            "`apt install bubblewrap` helps where user namespaces are allowed."
        )
    for path in run.readable:
        if os.path.exists(path) and not open_to_all(path) and path not in _of_python():
            raise RewardSpecError(
                f"the sandbox (landlock) runs {program!r} as a user who owns nothing, and that "
                f"user cannot read {path}: install it where every user can, or `apt install "
                "bubblewrap` where user namespaces are allowed."
            )
    return str(root), run.command


def _of_python() -> tuple[str, str]:
    return sys.prefix, sys.base_prefix
