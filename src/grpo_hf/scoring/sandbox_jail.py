"""Puts a copy of Python where a user who owns nothing can run it.

Python in a home folder (pyenv, conda, uv) cannot be run by another user. The copy is the
interpreter with its standard library and the shared libraries that these need, each at its old
place below a new root, so it runs with the new root as its own (chroot) and without.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

_LEFT_OUT = ("site-packages", "test", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3")
# How many files a copy has, in a file of it.
_COUNT = "files"
_DEVICES = {"null": (1, 3), "zero": (1, 5), "urandom": (1, 9)}


def open_to_all(path: str) -> bool:
    """Return whether a user who owns nothing can reach and read what is at `path`.

    >>> open_to_all("/usr/bin"), open_to_all("/not/there")
    (True, False)
    """
    real = Path(os.path.realpath(path))
    places = {Path(path).absolute(), real}
    for place in places | {parent for one in places for parent in one.parents}:
        try:
            mode = place.stat().st_mode
        except OSError:
            return False
        if stat.S_ISDIR(mode) and not mode & stat.S_IXOTH:
            return False
    return bool(real.stat().st_mode & stat.S_IROTH)


def folder_for_all() -> str:
    """Return the folder of temporary files, or one like it that every user can reach."""
    for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if open_to_all(folder):
            return folder
    return tempfile.gettempdir()


def python_is_open_to_all() -> bool:
    """Return whether every user can run this Python where it lies."""
    return all(open_to_all(path) for path in (sys.executable, sys.prefix, sys.base_prefix))


def copied_python(jail: Path) -> str:
    """Return the path of the interpreter that was copied into the jail, as seen from outside."""
    return str(jail) + _interpreter()


def _interpreter() -> str:
    return os.path.realpath(sys.executable)


@cache
def jail_with_python() -> Path:
    """Return a root folder that holds a copy of Python; it is made once for each interpreter."""
    real = _interpreter()
    key = hashlib.sha256(f"{real} {os.stat(real).st_mtime_ns} {_COUNT}".encode()).hexdigest()[:12]
    root = Path(folder_for_all()) / f"grpo-hf-python-{key}-{os.geteuid()}"
    with suppress(FileNotFoundError):
        found = root.lstat()
        if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o755:
            if _is_complete(root):
                return root
            shutil.rmtree(root, ignore_errors=True)
    # Copied under another name, so that no other process sees half of it.
    making = Path(tempfile.mkdtemp(prefix="grpo-hf-making-", dir=root.parent))
    try:
        _fill(making)
        (making / _COUNT).write_text(str(_files_below(making)))
        making.chmod(0o755)
        with suppress(OSError):  # another process was faster
            making.rename(root)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return root


def _is_complete(root: Path) -> bool:
    """Return whether a copy has all its files: systems remove old ones from /tmp, one by one.

    A module that is missing would cost right answers their reward, and nothing would be said.
    """
    try:
        return _files_below(root) >= int((root / _COUNT).read_text())
    except (OSError, ValueError):
        return False


def _files_below(root: Path) -> int:
    files = 0
    for folder, folders, names in os.walk(root):
        if folder == str(root):
            # What is in these belongs to the runs.
            folders[:] = [name for name in folders if name not in ("tmp", "dev")]
        else:
            files += len(names)
    return files


def _fill(root: Path) -> None:
    library = sysconfig.get_path("stdlib")
    ignored = shutil.ignore_patterns(*_LEFT_OUT, "config-*")
    shutil.copytree(library, f"{root}{library}", symlinks=False, ignore=ignored)
    for source in (_interpreter(), *_shared_libraries(library)):
        target = Path(str(root) + source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    # Everyone may go through it, and nobody may see which folders of other runs are in it.
    (root / "tmp").mkdir(mode=0o711)
    (root / "dev").mkdir()
    for name, (major, minor) in _DEVICES.items():
        with suppress(OSError):
            os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            os.chmod(root / "dev" / name, 0o666)


def _shared_libraries(library: str) -> Iterator[str]:
    """Yield the files that the interpreter and its extension modules load."""
    objects = [_interpreter(), *map(str, Path(library).glob("lib-dynload/*.so"))]
    done = subprocess.run(["ldd", *objects], capture_output=True, text=True)
    yield from sorted(set(re.findall(r"(/[^\s:]+\.so[^\s:]*)(?= \()", done.stdout)))
