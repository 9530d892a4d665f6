"""Programs that see small, full or read-only disks, which no other process sees."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

_NEW_MOUNTS = 0x20000  # CLONE_NEWNS of sched.h


def run_with_mounts(mounts: str, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code after shell commands that mount, in a namespace of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    script = f'set -e; {mounts}; exec "$@"'
    unshare = ["unshare", "--mount", "--pid", "--fork", "bash", "-c", script, "bash"]
    program = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run([*unshare, *program], capture_output=True, text=True, timeout=120)
    if "unshare failed" in done.stderr or "mount: " in done.stderr:
        pytest.skip("this container may not mount")
    return done


def mount_for_this_process(folder: Path, size: str) -> bool:
    """Mount a disk of its own for this process and its children; return whether that is allowed."""
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(_NEW_MOUNTS) != 0:
        return False
    private = ["mount", "--make-rprivate", "/"]
    disk = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    return all(subprocess.run(command).returncode == 0 for command in (private, disk))
