"""A checkpoint is whole, or it is not there.

It is written beside the others under another name, flushed to the disk, and gets a manifest with
the sizes and checksums of its files; then it takes its name. So a process may be killed at any
moment: what has the name of a checkpoint and fits its manifest is whole.

    RUN/checkpoint-20/manifest.json     {"step": 20, "settings": {}, "files": {}, "sha256": its own}
    RUN/.unfinished/checkpoint-30/      what a killed process leaves; the next save removes it
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

MANIFEST = "manifest.json"
# Where a checkpoint is written, and where one goes that another of its step replaces.
UNFINISHED = ".unfinished"
_REPLACED = ".replaced"
# What transformers 5.23 needs to go on, beside the random states and the weights. DeepSpeed and
# FSDP keep optimizers in files and folders of their own.
_STATES = ("optimizer.pt", "scheduler.pt")
_OF_ENGINES = ("global_step*", "pytorch_model_fsdp*", "optimizer.bin", "optimizer_*")
# PEFT writes an adapter that is not called `default` into a folder of its name.
_WEIGHTS = ("**/adapter_model.*", "model.safetensors*", "pytorch_model*.bin", *_OF_ENGINES)
# What a file system answers that does not flush folders, as some of networks.
_NOT_FOR_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM}
# How many files are flushed and read at the same time.
_AT_ONCE = 4
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Found:
    """The checkpoints of a run's folder.

    Args:
        newest: the newest whole one, if any.
        skipped: newer ones that are not whole, each with the reason.
    """

    newest: Path | None
    skipped: dict[Path, str]


@contextmanager
def written_whole(
    run: Path, step: int, settings: dict[str, Any], accelerator: Any
) -> Iterator[Path]:
    """Yield a folder in which `checkpoint-STEP` is written; it is in the run's folder afterwards.

    Where the block raises, the run's folder is as it was. Machines without a common disk have a
    part of the checkpoint each, with a manifest of its own.

    Args:
        run: the folder of the run.
        settings: what the manifest holds of the run.
        accelerator: of the run, whose processes all write.
    """
    unfinished = run / UNFINISHED
    if accelerator.is_local_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    name = f"checkpoint-{step}"
    try:
        yield unfinished
        accelerator.wait_for_everyone()
        # The first process comes before those that find nothing left on a common disk.
        for is_turn in (accelerator.is_main_process, accelerator.is_local_main_process):
            if is_turn and (unfinished / name).is_dir():
                seal(unfinished / name, {"step": step, "settings": settings})
                _put(unfinished / name, run / name)
            accelerator.wait_for_everyone()
    finally:
        if accelerator.is_local_main_process:
            # On a full disk it would take the space that others need.
            shutil.rmtree(unfinished, ignore_errors=True)


def copy_card(run: Path, checkpoint: Path) -> None:
    """Give a checkpoint the card of its run, to which PEFT adds a few lines.

    PEFT makes a card from a template where it finds none. That takes a third of a small save, and
    says nothing of the run.
    """
    card, copy = run / "README.md", checkpoint / "README.md"
    if card.is_file() and not copy.exists():
        checkpoint.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(card, copy)


def recover(run: Path) -> None:
    """Finish what a process was killed in that had written a checkpoint, and was naming it.

    The caller holds the lock of the folder: what lies there unfinished may be another run's, which
    writes it now.
    """
    for folder in (run / UNFINISHED, run / _REPLACED):
        # The newer one comes first, and what it replaces only where it is not whole.
        left = [folder] if folder.name == _REPLACED else list(folder.glob("checkpoint-*"))
        for checkpoint in left:
            manifest = manifest_of(checkpoint)
            place = run / f"checkpoint-{manifest['step']}" if manifest else None
            if place is not None and not place.exists() and not why_not_whole(checkpoint):
                checkpoint.rename(place)
        shutil.rmtree(folder, ignore_errors=True)


def seal(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Flush the files of a checkpoint to the disk, and write its manifest last."""
    there = _files_of(checkpoint)
    # A file system writes what it is asked for at the same time in fewer turns.
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        fingerprints = list(threads.map(_flushed, there))
    names = [str(file.relative_to(checkpoint)) for file in there]
    files = dict(zip(names, fingerprints, strict=True))
    facts = {**facts, "files": files}
    manifest = checkpoint / MANIFEST
    sealed = {**facts, "sha256": _checksum(facts)}
    manifest.write_text(json.dumps(sealed, indent=1), encoding="utf-8")
    _flush(manifest)
    # A file is on the disk when its name is, in each of the folders above it.
    for folder in [*(each for each in checkpoint.rglob("*") if each.is_dir()), checkpoint]:
        _flush(folder)


def why_not_whole(checkpoint: Path) -> str:
    """Return what is wrong with a checkpoint, or nothing.

    One that another program wrote has no manifest: then its files are there, and can be opened.
    """
    if not checkpoint.is_dir():
        return "no such checkpoint folder"
    manifest = manifest_of(checkpoint)
    if manifest is None:
        return _why_not_complete(checkpoint)
    for name, expected in manifest["files"].items():
        try:
            reason = _why_not_as_written(checkpoint / name, expected)
        # A bad block of a disk, or a file of another user.
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        if reason:
            return f"{name} {reason}"
    return ""


def manifest_of(checkpoint: Path) -> dict[str, Any] | None:
    """Return what the manifest of a checkpoint says, or None if it has none that is whole."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict):
        return None
    # One flipped bit in a setting's name would let another run go on from here.
    checksum = manifest.pop("sha256", None)
    return manifest if checksum == _checksum(manifest) else None


def find(run: Path, most: int | None = None) -> Found:
    """Return the newest whole checkpoint of a run's folder, and why newer ones are not taken.

    Args:
        most: the last step that is looked at; by default all are.
    """
    skipped: dict[Path, str] = {}
    for checkpoint in sorted(run.glob("checkpoint-*"), key=step_of, reverse=True):
        # Files, and folders of the user's own, may begin with the same word.
        if not checkpoint.is_dir() or step_of(checkpoint) < 0:
            continue
        if most is not None and step_of(checkpoint) > most:
            continue
        reason = why_not_whole(checkpoint)
        if not reason:
            return Found(checkpoint, skipped)
        skipped[checkpoint] = reason
    return Found(None, skipped)


def remove_beyond(limit: int | None, newest: Path, best: Path | None) -> None:
    """Remove checkpoints beside the one that was just written, until no more are left than allowed.

    Those of later steps go first, which are torn, or of a future that was left behind; then the
    oldest.

    Args:
        limit: how many are kept; None, or none above 0: all of them.
        newest: the one that was just written, which stays.
        best: one that stays as well.
    """
    if limit is None or limit <= 0:
        return
    there = [each for each in newest.parent.glob("checkpoint-*") if step_of(each) >= 0]
    # The best one is called as it was when it was written: by a relative path, or an absolute one.
    kept = {each.resolve() for each in (newest, best) if each is not None}
    others = [each for each in there if each.resolve() not in kept]
    others.sort(key=lambda each: (step_of(each) <= step_of(newest), step_of(each)))
    for checkpoint in others[: max(0, len(there) - limit)]:
        shutil.rmtree(checkpoint, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step in the name of a checkpoint, or -1."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def _why_not_complete(checkpoint: Path) -> str:
    """Return what is missing of a checkpoint without a manifest, or nothing."""
    # Ours, and its manifest was lost.
    if any(checkpoint.glob("run_state*.pt")):
        return f"{MANIFEST} is missing or torn"
    of_engine = any(any(checkpoint.glob(pattern)) for pattern in _OF_ENGINES)
    for name in ("trainer_state.json", *(() if of_engine else _STATES)):
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    if not any(any(checkpoint.glob(pattern)) for pattern in _WEIGHTS):
        return "it holds no weights"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for file in checkpoint.rglob("*.safetensors"):
            with safe_open(file, framework="numpy"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        return f"a file of it cannot be read ({error})"
    # A zip file that was cut off has no index.
    states = [*checkpoint.glob("rng_state*.pth"), checkpoint / "optimizer.pt"]
    torn = [file.name for file in states if file.is_file() and not is_zipfile(file)]
    return f"{torn[0]} is torn" if torn else ""


def _why_not_as_written(file: Path, expected: dict[str, Any]) -> str:
    """Return what is wrong with a file of a manifest, or nothing."""
    if not file.is_file():
        return "is missing"
    if file.stat().st_size != expected["size"]:
        return f"has {file.stat().st_size:,} bytes instead of {expected['size']:,}"
    return "" if _fingerprint(file) == expected else "is not what was written"


def _files_of(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != MANIFEST]


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    return {"size": file.stat().st_size, "sha256": digest.hexdigest()}


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _flushed(file: Path) -> dict[str, Any]:
    """Have a file written to the disk, and return its size and checksum."""
    _flush(file)
    return _fingerprint(file)


def _put(finished: Path, place: Path) -> None:
    """Give a checkpoint its name; one of that name is removed when the new one is there."""
    old = place.parent / _REPLACED
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    finished.rename(place)
    _flush(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NOT_FOR_FOLDERS):
            raise
    finally:
        os.close(descriptor)
