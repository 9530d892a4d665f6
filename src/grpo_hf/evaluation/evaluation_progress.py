"""How far an evaluation has come: a bar in a terminal, a line now and then elsewhere."""

import sys
import threading
import time
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .answers import own_places

# What is counted, in words: a bare "32 of 60" reads as if so many were right.
_ANSWERED, _JUDGED = "answered", "judged"
# Seconds between two lines where there is no terminal.
_BETWEEN_LINES = 10.0


class EvaluationProgress:
    """Shows the problems that are answered, on standard error, by the main process.

    Args:
        name: of the set.
        problems: in it.
        silent: whether nothing is shown.
    """

    def __init__(self, name: str, problems: int, *, silent: bool = False) -> None:
        self._silent = silent or not PartialState().is_main_process
        self._name = name
        # What this process answers; the others answer as many.
        self._problems = len(own_places(problems))
        self._pass, self._counted = "", _ANSWERED
        self._task: Any = None
        self._done = 0
        self._began = time.monotonic()
        # When the first problems of a pass were done, and how many: they may have been kept from
        # an earlier attempt, so that the pace is that of the others.
        self._first = (self._began, 0)
        self._bar: Progress | None = None
        self._over = threading.Event()

    def __enter__(self) -> "EvaluationProgress":
        if not self._silent and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f} of {task.fields[of]} {task.fields[counted]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        elif not self._silent:
            # The first batch may take longer than a user's patience.
            print(f"{self._name}: {self._problems} problems", file=sys.stderr, flush=True)
            # By the clock and not by the batch, because one batch may take minutes.
            threading.Thread(target=self._say_now_and_then, daemon=True).start()
        return self

    def __exit__(self, *details: Any) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.stop()

    def update(self, side: str, kind: str, count: int) -> None:
        """Take note of `count` more problems that one side has answered in one way."""
        if self._silent:
            return
        name = f"{self._name}, {side}, {kind}"
        if name != self._pass:
            self._pass, self._done = name, 0
            self._counted = _JUDGED if kind == "judging" else _ANSWERED
            if self._bar is not None:
                # Without a total the bar moves: until the first batch is done nothing else does.
                self._task = self._bar.add_task(
                    name, total=None, of=self._problems, counted=self._counted
                )
        if not self._done:
            self._first = (time.monotonic(), count)
        self._done += count
        if self._bar is not None and self._done:
            self._bar.update(self._task, completed=self._done, total=self._problems)

    def _say_now_and_then(self) -> None:
        while not self._over.wait(_BETWEEN_LINES):
            now = time.monotonic()
            what = self._pass or self._name
            line = f"{what}: {self._done} of {self._problems} {self._counted}"
            line += f", {round(now - self._began)} s"
            since, kept = self._first
            if kept < self._done < self._problems:
                left = (now - since) * (self._problems - self._done) / (self._done - kept)
                line += f", {round(left)} s left of this part"
            print(line, file=sys.stderr, flush=True)
