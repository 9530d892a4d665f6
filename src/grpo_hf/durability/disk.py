"""A disk that fails while weights are saved: what cannot be written, what to free, what is left."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import SaveError
from .whole_checkpoints import find, step_of

# What a disk answers that is full, read-only, gone or broken.
_OF_DISKS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.EFBIG,
    errno.ESTALE,
    errno.ENOTCONN,
}
# torch and safetensors write by libraries of their own, whose errors have no number.
_FULL = ("No space left", "os error 28", "file write failed", "unexpected pos")
# The message names so many old checkpoints.
_NAMED = 3
_MIB = 2**20


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Say of a disk that fails in a block what to free, and from where the run can go on.

    Args:
        folder: the output folder of the run.

    Raises:
        SaveError: the disk of the folder failed, or it cannot be written to.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _reason(error, folder)
        if reason is None:
            raise
        advice = f"{_space(folder)} {_what_is_left(folder)}"
        raise SaveError(f"the run cannot be saved in {folder}: {reason}. {advice}") from error


def _reason(error: Exception, folder: Path) -> str | None:
    """Return what a disk said, or None where the error is about something else."""
    if isinstance(error, OSError):
        here = error.filename is not None and _is_inside(error.filename, folder)
        # An error of the network is an OSError as well.
        is_of_disk = error.errno in _OF_DISKS or (here and error.errno is not None)
        return error.strerror if is_of_disk else None
    if any(text in str(error) for text in _FULL):
        # torch says no more than that it could not write.
        is_full = "No space" in str(error) or _free(folder) < _MIB
        return os.strerror(errno.ENOSPC) if is_full else str(error).splitlines()[0]
    return None


def _is_inside(file: object, folder: Path) -> bool:
    return str(Path(os.fsdecode(file)).absolute()).startswith(str(folder.absolute()))  # type: ignore[arg-type]


def _free(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder is, or would be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _space(folder: Path) -> str:
    """Say how much is free there, and in the folder for temporary files."""
    temporary = Path(tempfile.gettempdir())
    shown = f"Free: {_free(folder) / _MIB:,.0f} MiB there"
    return f"{shown}, {_free(temporary) / _MIB:,.0f} MiB in {temporary}."


def _what_is_left(folder: Path) -> str:
    """Say which checkpoint is the newest whole one, and which older ones take how much."""
    newest = find(folder).newest
    if newest is None:
        return "No checkpoint was saved before. Free space, and start again."
    older = [each for each in sorted(folder.glob("checkpoint-*"), key=step_of) if each != newest]
    advice = "Free space"
    if older:
        sizes = []
        for checkpoint in older[:_NAMED]:
            sizes.append(f"{checkpoint.name} ({_size(checkpoint) / _MIB:,.1f} MiB)")
        advice += f", as by removing {', '.join(sizes)}, set --save_total_limit"
    return (
        f"The last whole checkpoint, {newest.name}, is untouched. {advice}, and go on from it with "
        f"--resume_from_checkpoint {newest}"
    )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
