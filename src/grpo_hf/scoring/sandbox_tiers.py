"""Chooses how code of a model is confined on this machine, by trying it.

The tiers, best first: bubblewrap; namespaces that `sandbox_launch.py` makes itself; Landlock and
seccomp; and, for root alone, a copy of Python in a jail (chroot) as a user who owns nothing. A tier
is taken if a probe runs in it and can neither write outside, read what is private, reach a
listener, end a process nor be root. Where no tier holds nothing is run.
"""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock

from ..errors import RewardSpecError, did_you_mean
from .sandbox_jail import python_is_open_to_all

logger = logging.getLogger(__name__)

TIERS = ("bubblewrap", "namespaces", "landlock", "jail")
LEVELS = ("auto", *TIERS, "none")
_WORDS = {
    "bubblewrap": "by bubblewrap",
    "namespaces": "in namespaces of its own, behind a seccomp filter",
    "landlock": "by Landlock and a seccomp filter",
    "jail": "in a jail (chroot) as a user who owns nothing, behind a seccomp filter",
}
# What a program says about what it could do; each word completes "the code could ...".
PROBE = """
import json, os, signal, socket, sys
told = json.loads(sys.argv[1])
open("mine", "w").close()
if os.fork() == 0:
    os._exit(0)
os.wait()
could = []
def attempt(what, action):
    try:
        action()
        could.append(what)
    except OSError:
        pass
attempt("write outside its folder", lambda: open(told["outside"], "w"))
attempt("read a private file", lambda: open(told["secret"]).read())
attempt("use the network", lambda: socket.create_connection(("127.0.0.1", told["port"]), 1))
if os.getuid() == 0:
    could.append("be root")
print(json.dumps(could), flush=True)
attempt("", lambda: os.kill(told["victim"], signal.SIGKILL))
"""
Attempt = Callable[[list[str], str], tuple[str, str]]
# Completions are judged in threads: one of them tries the tiers, and the others wait for it.
_choosing = Lock()
# Tells a process that scores what the trainer's has said.
_SAID = "GRPO_HF_SANDBOX_SAID"
_said = set(os.environ.get(_SAID, "").splitlines())


def chosen_tier(level: str, attempt: Attempt) -> str:
    """Return the tier for a level: the best that holds for "auto", else the one that was named.

    Args:
        level: one of `LEVELS`.
        attempt: runs a command in a tier, and returns its output and what went wrong.

    Raises:
        RewardSpecError: the level is not known, or cannot be had on this machine.
    """
    if level not in LEVELS:
        raise RewardSpecError(
            f"sandbox {level!r} is not known.{did_you_mean(str(level), LEVELS)} Choose one of: "
            f"{', '.join(LEVELS)}."
        )
    with _choosing:
        if level == "none":
            _say_what_is_open()
            return level
        if level == "auto":
            return _best_tier(attempt)
        found = fault(level, attempt)
    if found:
        raise RewardSpecError(
            f"sandbox={level!r} does not work here: {found}. sandbox='auto' takes the best way "
            "that does."
        )
    return level


@cache
def _best_tier(attempt: Attempt) -> str:
    faults: list[str] = []
    for tier in TIERS:
        found = fault(tier, attempt)
        if not found:
            _say_how(tier, faults)
            return tier
        faults.append(f"{tier}: {found}")
    raise RewardSpecError(
        "this machine has no way to confine code that the model writes, so it is not run. "
        "`apt install bubblewrap` helps where user namespaces are allowed. Tried: "
        f"{'; '.join(faults)}. To run it without protection, write sandbox: none."
    )


def _say_how(tier: str, faults: list[str]) -> None:
    because = f" ({'; '.join(faults)})" if faults else ""
    packages = ""
    if tier == "jail" or (tier == "landlock" and needs_a_copy()):
        packages = " It has a copy of Python with the standard library, and no other packages."
    _say_once(f"Code that the model writes is confined {_WORDS[tier]}{because}.{packages}")


def _say_what_is_open() -> None:
    who = "root" if os.geteuid() == 0 else "the user who started this program"
    _say_once(
        f"sandbox: none was chosen, so code that the model writes runs as {who}. It can read and "
        "change every file of that user (keys, checkpoints, Python itself), use the network, end "
        "any process of that user, and fill the disk elsewhere than in its folder. Only time, "
        "memory of each process, output and its own folder are limited."
    )


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        logger.warning(text)


def said_so_far() -> dict[str, str]:
    """Return what a process that scores for this one is told in its environment."""
    return {_SAID: "\n".join(sorted(_said))}


def needs_a_copy() -> bool:
    """Return whether the user that the code runs as cannot run this Python where it lies."""
    return os.geteuid() == 0 and not python_is_open_to_all()


@cache
def fault(tier: str, attempt: Attempt) -> str:
    """Return why a tier cannot be used here, and nothing if it can."""
    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    if tier == "bubblewrap":
        missing = [tool for tool in ("bwrap", "setpriv", "prlimit") if not shutil.which(tool)]
        if missing:
            return f"{' and '.join(missing)} is not installed"
    if tier == "jail" and os.geteuid() != 0:
        return "only root can change a program's root folder and user"
    return _what_a_probe_could_do(tier, attempt)


def _what_a_probe_could_do(tier: str, attempt: Attempt) -> str:
    victim = subprocess.Popen(["sleep", "60"])
    try:
        with (
            tempfile.TemporaryDirectory(prefix="grpo-hf-probe-") as folder,
            socket.create_server(("127.0.0.1", 0)) as server,
        ):
            Path(folder).chmod(0o777)
            secret = Path(folder) / "secret"
            secret.touch(0o600)
            told = {
                "outside": f"{folder}/outside",
                "secret": str(secret),
                "port": server.getsockname()[1],
                "victim": victim.pid,
            }
            command = [sys.executable, "-I", "-S", "-c", PROBE, json.dumps(told)]
            output, wrong = attempt(command, tier)
        lines = output.splitlines()
        if not lines:
            return wrong or "the probe did not start"
        could = json.loads(lines[0])
        if victim.poll() is not None:
            could.append("end a process outside")
        return f"the code could {' and '.join(could)}" if could else ""
    finally:
        victim.kill()
        victim.wait()
