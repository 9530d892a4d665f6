"""What a run is started with: command, versions, machine, commit. Nothing heavy is imported."""

import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from ..run_files import read_lines

ENVIRONMENT_FILE = "environment.jsonl"

_PACKAGES = (
    "grpo-hf",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "vllm",
    "deepspeed",
)
# Flags and settings whose value is nobody's business, and tokens as the Hub writes them.
_SECRET_NAME = re.compile(r"(token|key|secret|password)s?$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\b(hf|sk|wandb)[_-]\w{8,}")
_HIDDEN = "***"
# Seconds that git may take: a repository may lie on a slow disk.
_PATIENCE = 5


def describe_start(args: Any) -> dict[str, Any]:
    """Return what a training is started with.

    Args:
        args: its settings.
    """
    folder = Path.cwd()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(sys.orig_argv),
        "folder": str(folder),
        "commit": commit_of(folder),
        "source": commit_of(Path(__file__).parent),
        "versions": _versions(),
        "machine": _machine(),
        "processes": args.world_size,
        "seed": args.seed,
        "settings": settings_of(args),
    }


def command_line(arguments: Sequence[str]) -> str:
    """Return a command as a shell takes it, without secrets.

    >>> command_line(["python", "a b.py", "--hub_token", "x", "--api_key=y"])
    "python 'a b.py' --hub_token *** --api_key=***"
    """
    shown = []
    hide_next = False
    for argument in arguments:
        name, separator, _ = argument.partition("=")
        if hide_next:
            shown.append(_HIDDEN)
        elif separator and name.startswith("-") and _SECRET_NAME.search(name):
            shown.append(f"{name}={_HIDDEN}")
        else:
            shown.append(shlex.quote(_SECRET_VALUE.sub(_HIDDEN, argument)))
        hide_next = not separator and name.startswith("-") and bool(_SECRET_NAME.search(name))
    return " ".join(shown)


def commit_of(folder: Path) -> dict[str, Any] | None:
    """Return the commit that is checked out in a folder, and whether files differ from it.

    Returns:
        None where there is no git, or no repository.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            # `status` would write to the index, which another process may hold.
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _machine() -> dict[str, Any]:
    """Return what the numbers of a run depend on, and no name of the machine."""
    # Not at the top: who reads what was written needs no torch.
    import torch

    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            devices.append(torch.cuda.get_device_name(index))
    return {
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": psutil.virtual_memory().total,
        "devices": devices,
    }


def _processor() -> str:
    """Return the name of the processor; Linux has it in a file, and platform not."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name[1] if name else platform.processor() or platform.machine()


def settings_of(args: Any) -> dict[str, Any]:
    """Return the settings that are no defaults, as JSON can hold them, without secrets."""
    settings = {}
    for field in fields(args):
        value = getattr(args, field.name, None)
        # A default that is made anew is not worth making to compare it.
        if not field.init or value == field.default or value in ([], {}, ()):
            continue
        settings[field.name] = _plain(field.name, value)
    return settings


def _plain(name: str, value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if value is not None and _SECRET_NAME.search(name) and isinstance(value, str):
        return _HIDDEN
    if isinstance(value, Mapping):
        return {str(key): _plain(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, inner) for inner in value]
    # Enumerations such as the schedule's name, whose value is what a user types.
    value = getattr(value, "value", value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def read_starts(run: Path) -> list[dict[str, Any]]:
    """Return what a run was started with, the first start first; a resumed run has several."""
    file = run / ENVIRONMENT_FILE
    return read_lines(file) if file.is_file() else []
