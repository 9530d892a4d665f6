"""The output folder: it belongs to one run, and no other run may write into it.

From the first moment a run holds a lock on a file in it, which the system releases when the process
ends, however that happens. When the training begins, the file says so, and stays.
"""

import atexit
import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ..errors import OutputExistsError
from ..run_files import METRICS_FILE, RUN_FILE, written_or_said
from ..run_folders import noted_in, run_at_work
from .resume import AUTO, TRUE, wish_of

# What a run leaves behind; recipe.yaml and notes of the user are not among it.
_RUN_TRACES = (METRICS_FILE, "adapter_config.json", "*.safetensors", "*.bin", "checkpoint-*")
_GO_ON = '--resume_from_checkpoint auto (in Python train("auto"))'
# The locks that this process holds, until it ends.
_held: dict[Path, IO[str]] = {}
# The folders that it has made.
_made: set[Path] = set()


def claim_output_folder(
    folder: Path, accelerator: Any = None, *, resume: str | bool | None = None
) -> bool:
    """Check that a run may write into the folder, and create the folder.

    All processes check before the first of them writes. A run that resumes from a checkpoint in
    this folder owns it, unless another process writes there now.

    Args:
        accelerator: of a run that begins now; None: a program only makes sure of its folder.
        resume: what the run is told to go on from, as `train` takes it.

    Returns:
        Whether a run has begun in the folder before.

    Raises:
        OutputExistsError: the folder holds a run already, or cannot be written to.
    """
    trace = _first_trace(folder)
    # Without this barrier a slow process could take the files of the first one for another run's.
    if accelerator is not None:
        accelerator.wait_for_everyone()
    if trace is not None and not _resumes_here(folder, resume):
        at_work = run_at_work(folder)
        if at_work is not None:
            raise OutputExistsError(_taken(folder, at_work))
        advice = "It has no checkpoint: remove or rename it"
        if _resumes_here(folder, AUTO):
            advice = f"It has no checkpoint: begin it anew there with {_GO_ON}, remove or rename it"
        if any(folder.glob("checkpoint-*")):
            # A cell of a notebook that is run a second time has no command line.
            advice = f"Continue it with {_GO_ON}, remove or rename the folder"
        raise OutputExistsError(
            f"{folder} holds a run already{_named(trace)}, which is not overwritten. {advice}, or "
            "give this run another --output_dir."
        )
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        # Only a write tells: permissions say nothing about a read-only disk.
        probe = folder / ".writable"
        probe.touch()
        # Another process may have removed it already.
        probe.unlink(missing_ok=True)
        if accelerator.is_main_process if accelerator else os.environ.get("RANK", "0") == "0":
            _hold(folder, begins=accelerator is not None)
            if is_new:
                _made.add(folder.resolve())
    # Ours is an OSError as well.
    except OutputExistsError:
        raise
    except OSError as error:
        raise OutputExistsError(
            f"{folder} cannot be written to ({error.strerror}). Give another --output_dir."
        ) from error
    return trace is not None


def _named(trace: Path) -> str:
    # It begins with a dot, so a user has never seen it.
    return "" if trace.name == RUN_FILE else f" ({trace.name})"


def _hold(folder: Path, *, begins: bool) -> None:
    """Lock a folder for this process, and note in it that a run begins.

    Raises:
        OutputExistsError: another process holds it.
        OSError: the file cannot be written.
    """
    place = folder.resolve() / RUN_FILE
    if place not in _held:
        # Kept open: closing the file would release the lock.
        file = place.open("a+", encoding="utf-8")
        if not _is_locked(file):
            file.close()
            raise OutputExistsError(_taken(folder, run_at_work(folder)))
        if not _held:
            _let_go_in_children()
            atexit.register(_leave_nothing)
        _held[place] = file
    if begins:
        _note(_held[place])


def _note(held: IO[str], **more: Any) -> None:
    """Write into a lock which process holds it, in the place of what it said before."""
    held.truncate(0)
    json.dump({"process": os.getpid(), "machine": socket.gethostname()} | more, held)
    held.flush()


def note_end(folder: Path, step: int) -> None:
    """Note in a folder that this process holds that its run is over, with all that follows."""
    held = _held.get(folder.resolve() / RUN_FILE)
    if held is not None:
        with written_or_said(str(folder / RUN_FILE)):
            _note(held, end=step)


def end_of(folder: Path) -> int | None:
    """Return the step at which the run of a folder was over; None if it was not."""
    return noted_in(folder).get("end")


def _taken(folder: Path, at_work: str | None) -> str:
    """Return what is said where another run trains now; who removed its folder would end it."""
    who = "" if at_work is None else f": a run is training there ({at_work})"
    return (
        f"another run writes into {folder} now{who}. Give this run another --output_dir, or end "
        "that one first."
    )


def _leave_nothing() -> None:
    """Remove locks under which no run began, and the folders that were made for them."""
    for place, file in _held.items():
        with suppress(OSError):
            if not os.fstat(file.fileno()).st_size:
                place.unlink()
                if place.parent in _made:
                    # It stays where it holds anything.
                    place.parent.rmdir()


def _let_go_in_children() -> None:
    """Close the locks in every fork of this process, which may live longer than this one."""

    def let_go() -> None:
        for file in _held.values():
            file.close()
        _held.clear()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=let_go)


def _is_locked(file: IO[str]) -> bool:
    """Lock a file for this process; return whether that is done, or cannot be done here."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # Not every file system of a network has locks.
    except OSError:
        return True
    return True


def _first_trace(folder: Path) -> Path | None:
    """Return a file or folder that a run left here, or None."""
    # Empty, it is of a program that has not begun to train.
    marker = folder / RUN_FILE
    if marker.is_file() and marker.stat().st_size:
        return marker
    for pattern in _RUN_TRACES:
        # Sorted, so that all processes and all repetitions name the same one.
        for trace in sorted(folder.glob(pattern)):
            return trace
    return None


def _resumes_here(folder: Path, resume: str | bool | None) -> bool:
    """Whether a run resumes from a checkpoint of this folder, or may begin in it again."""
    wish = wish_of(resume)
    if wish == AUTO:
        # Weights without a checkpoint are what another run was for.
        has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
        return any(folder.glob("checkpoint-*")) or not has_weights
    return wish == TRUE or (bool(wish) and Path(wish).resolve().parent == folder.resolve())
