"""The files that a run writes beside its weights, and the lines that it prints.

A disk that is full, read-only or gone costs a line of a log and not the run: that is said once.
What a killed process left half written is skipped by who reads it.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Row = TypeVar("Row")

# The numbers of a run, a line each time it logs.
METRICS_FILE = "metrics.jsonl"
# The settings that a recipe gave it.
RECIPE_FILE = "recipe.yaml"
# Both answers to each prompt of the comparison at its end, and the folder of other evaluations.
EVALUATION_FILE = "evaluation.jsonl"
EVALUATIONS = "evaluations"
# The name, among evaluations, of the prompts that a run kept from its training.
HELD_OUT_SET = "held_out"
# As a reader knows them.
HELD_OUT = "held-out prompts"
# Answers to a few held-out prompts at each evaluation during the training.
OVER_TIME_FILE = "answers_over_time.jsonl"
# What the watch over its rewards has found.
GAMING_FILE = "gaming.json"
REPORT_FILE = "report.html"
# Completions on which a reward failed, each with its traceback or reason.
FAILURES_FILE = "failures.jsonl"
# The file that a run holds a lock on, and nobody else's business.
RUN_FILE = ".run"


def append_lines(file: Path, lines: Iterable[str]) -> bool:
    """Append lines, each with its newline, or say once why that cannot be done.

    A file that ends within a line, which a killed process has left, goes on with a new line.

    Returns:
        Whether all lines are in the file; if not, none of them is.
    """
    folder = file.parent
    if not folder.is_dir():
        warn_once(f"{folder} has vanished, and is made again; the run goes on.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _append(file, "".join(lines).encode("utf-8", errors="replace"))
    except OSError as error:
        warn_once(f"{file} cannot be written ({reason_of(error)}). The run goes on.")
        return False
    return True


@contextmanager
def written_or_said(what: str) -> Iterator[None]:
    """Say once why a block could not write something, and go on."""
    try:
        yield
    except OSError as error:
        warn_once(f"{what} cannot be written ({reason_of(error)}). The run goes on.")


def write_or_say(file: Path, text: str) -> None:
    """Write a file completely, or leave it as it was and say once why."""
    with written_or_said(str(file)):
        write_whole(file, text)


def write_whole(file: Path, text: str) -> None:
    """Write a file completely or not at all.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_bytes(text.encode("utf-8", errors="replace"))
        # Renaming within a folder is atomic, so a reader never sees half of the text.
        os.replace(partial, file)
    except OSError:
        # On a full disk it would take the space that others need.
        partial.unlink(missing_ok=True)
        raise


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a jsonl file that a run has written, without torn lines.

    Raises:
        OSError: it cannot be read.
    """
    # Only a newline ends a line: `splitlines` would also cut at U+2028 in a text.
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    torn = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            torn.append(number)
    if torn:
        logger.warning(
            f"{file} has torn lines, which are left out: number {', '.join(map(str, torn))}. A "
            "process that was killed, or a full disk, leaves such lines."
        )
    return rows


def in_order(rows: Iterable[Row], step_of: Callable[[Row], int]) -> list[Row]:
    """Return rows in the order of their steps, without those that a resumed run has made anew.

    A run that goes on from an earlier checkpoint takes back what came after it: of the steps 5, 10,
    15, 10 the first two and the last one are its history, whatever it reaches later.

    Args:
        rows: in the order in which they were written.
        step_of: returns the step of a row.

    >>> in_order([5, 10, 15, 10], lambda step: step)
    [5, 10]
    """
    kept: list[Row] = []
    for row in rows:
        while kept and step_of(kept[-1]) >= step_of(row):
            kept.pop()
        kept.append(row)
    return kept


def say(text: str) -> None:
    """Print a line at once; where nobody can read it, or not all of it, the run goes on."""
    try:
        _print(text)
    except BrokenPipeError:
        warn_once("Nobody reads the output any more. The run goes on without its lines.")
        # Python would flush the broken pipe at the end, and leave with an error code for that.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        warn_once(f"The output cannot be written ({reason_of(error)}). The run goes on.")


def _print(text: str) -> None:
    # Flushed, so that a file or a pipe shows a line when its step is done.
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        # Half a character of the data, or one that the locale lacks, as Latin-1 does boxes.
        encoding = sys.stdout.encoding
        print(text.encode(encoding, errors="replace").decode(encoding), flush=True)


def say_first(text: str, *, to_stderr: bool = False) -> None:
    """Print a line in the first process only, where all of them have the same to say."""
    # The launcher sets RANK, or accelerate. It would know it too, but it is slow to import.
    if os.environ.get("RANK", "0") != "0":
        return
    if to_stderr:
        print(text, file=sys.stderr, flush=True)
    else:
        say(text)


def reason_of(error: OSError) -> str:
    """Return what the system says of an error, which is the same for all files and steps."""
    return os.strerror(error.errno) if error.errno else type(error).__name__


@cache
def warn_once(text: str) -> None:
    """Log a warning; the same text again says nothing."""
    logger.warning(text)


def _append(file: Path, content: bytes) -> None:
    """Append bytes, or leave the file as it was.

    Raises:
        OSError: they cannot be written.
    """
    # Unbuffered: a buffer would try once more to write its rest when the file is closed.
    with file.open("a+b", buffering=0) as lines:
        size = lines.seek(0, os.SEEK_END)
        if size:
            lines.seek(size - 1)
            if lines.read(1) != b"\n":
                content = b"\n" + content
        try:
            while content:
                # On a nearly full disk a part may fit.
                content = content[lines.write(content) :]
        except OSError:
            # What does not shrink has a torn line then, as a killed process leaves it.
            with suppress(OSError):
                lines.truncate(size)
            raise
