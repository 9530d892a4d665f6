"""Rows of gpu_check.py: what was checked, its value and bar, and what came of it."""

import contextlib
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .common import Row

MET = "met"
MISSED = "missed"
# A figure without a bar.
MEASURED = "measured"
FAILED = "failed"
LEFT_OUT = "left out"

# These make the exit code 1.
BAD = (MISSED, FAILED)

# Characters of an error that a row keeps.
LONGEST_NOTE = 300


@dataclass(frozen=True)
class Work:
    """Work says what a part runs on.

    Attributes:
        folder: for files of this run, shared by its parts.
        device: "cuda" or "cpu".
        size: "full" or "tiny".
    """

    folder: Path
    device: str
    size: str

    def tokenizer(self) -> str:
        """Return the folder of a tokenizer."""
        # Imported here, because the command itself needs no transformers.
        from grpo_hf.demo.tiny_model import tiny_tokenizer

        folder = self.folder / "tokenizer"
        if not folder.exists():
            with written_whole(folder) as unfinished:
                tiny_tokenizer().save_pretrained(unfinished)
        return str(folder)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `path` at the end.

    A part that is stopped while it writes leaves no half of a folder, and of two that write the
    same the first one's stays.
    """
    unfinished = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{path.name}-"))
    yield unfinished
    with contextlib.suppress(OSError):
        os.replace(unfinished, path)


def verdict(
    name: str,
    value: float,
    bar: float | None,
    *,
    note: str = "",
    met: bool | None = None,
    unit: str = "",
    **others: Any,
) -> Row:
    """Return the row of something that was measured.

    Args:
        bar: the most that the value may be, unless `met` decides; None for a figure without a bar.
        others: more entries of the row.
    """
    status = MEASURED
    if bar is not None:
        # Written with <=, so that NaN misses.
        is_met = value <= bar if met is None else met
        status = MET if is_met else MISSED
    row = {"name": name, "status": status, "value": value, "bar": bar, "unit": unit, "note": note}
    return row | others


def left_out(name: str, reason: str) -> Row:
    """Return the row of something that this machine cannot do."""
    return _without_value(name, LEFT_OUT, reason)


def failed(name: str, reason: str) -> Row:
    """Return the row of something that ended with an error."""
    return _without_value(name, FAILED, reason)


def _without_value(name: str, status: str, reason: str) -> Row:
    return {
        "name": name,
        "status": status,
        "value": None,
        "bar": None,
        "unit": "",
        "note": " ".join(reason.split())[:LONGEST_NOTE],
    }


def guarded(name: str, action: Callable[[], Row]) -> Row:
    """Return the row that an action makes, or that it failed: the others go on."""
    try:
        return action()
    # SystemExit is how the benchmarks say that there is nothing to compare.
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return failed(name, f"{type(error).__name__}: {error}")


def one_gpu() -> dict[str, str]:
    """Return the environment variable by which a process sees the first GPU of this one only."""
    return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
