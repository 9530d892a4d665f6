"""How far an evaluation has come: a bar in a terminal, a line now and then elsewhere."""

import sys
import threading
import time
from collections.abc import Sequence
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

# Rewards that judge all answers at once say nothing on the way.
JUDGING = "judging"
# Seconds between two lines where there is no terminal.
_BETWEEN_LINES = 10.0
# Characters of a line, for narrow terminals.
_WIDTH = 80


class EvaluationProgress:
    """Shows the problems that are answered, on standard error, by the main process.

    Args:
        name: of the set.
        problems: in it.
        parts: what will be done, in its order: a side, and greedy, samples or judging.
        named: whether each line names the set, if that fits: there are others.
        silent: whether nothing is shown.
    """

    def __init__(
        self,
        name: str,
        problems: int,
        parts: Sequence[tuple[str, str]],
        *,
        named: bool = False,
        silent: bool = False,
    ) -> None:
        self._silent = silent or not PartialState().is_main_process
        self._name = name
        self._named = named
        # What this process answers; the others answer as many.
        self._problems = len(own_places(problems))
        self._parts = list(parts)
        self._part: tuple[str, str] | None = None
        self._task: Any = None
        # Of the part: problems that an earlier attempt has kept, those and the ones since, when it
        # began, and when the last of them was done.
        self._kept = self._done = 0
        self._began = self._part_began = self._last_news = time.monotonic()
        self._bar: Progress | None = None
        self._over = threading.Event()

    def __enter__(self) -> "EvaluationProgress":
        if not self._silent and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[done]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        elif not self._silent:
            # The first batch may take longer than a user's patience.
            self._say(f"{self._name}: {self._problems} problems, {len(self._parts)} parts")
            # By the clock and not by the batch, because one batch may take minutes.
            threading.Thread(target=self._say_now_and_then, daemon=True).start()
        return self

    def __exit__(self, *details: Any) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.stop()

    def update(self, side: str, kind: str, count: int) -> None:
        """Take note of news of a part.

        Args:
            count: problems that are done since the last news. In the first news of a part, those
                that an earlier attempt has kept.
        """
        if self._silent:
            return
        self._last_news = time.monotonic()
        if (side, kind) != self._part:
            self._part = side, kind
            self._part_began = self._last_news
            self._kept = self._done = count
            self._show_beginning()
            return
        self._done += count
        if self._bar is not None and count:
            self._bar.update(
                self._task,
                completed=self._done,
                total=self._problems,
                done=self._count_in_words(),
            )

    def _show_beginning(self) -> None:
        if self._bar is not None:
            # Without a total the bar moves: until the first batch is done nothing else does. What
            # is kept is no measure of its pace.
            total = self._problems if self._kept else None
            self._task = self._bar.add_task(
                self._heading(), completed=self._kept, total=total, done=self._count_in_words()
            )
        elif self._kept:
            going_on = "" if self._kept == self._problems else "going on, "
            self._say_of_part(f"{self._heading()}: {going_on}{self._kept} of {self._problems} kept")

    def _heading(self) -> str:
        """Return the name of the part, with its place among the others."""
        if self._part is None:
            return self._name
        if self._part not in self._parts:
            return f"{self._name}, {self._part[1]}"
        place = self._parts.index(self._part) + 1
        return f"part {place} of {len(self._parts)}, {', '.join(self._part)}"

    def _count_in_words(self) -> str:
        """Return what is done of the part; nothing where nothing is counted."""
        if self._part is None or self._part not in self._parts:
            return ""
        # A bare "32 of 60" reads as if so many were right.
        counted = "judged" if self._part[1] == JUDGING else "answered"
        return f"{self._done} of {self._problems} {counted}"

    def _say_now_and_then(self) -> None:
        while not self._over.wait(_BETWEEN_LINES):
            now = time.monotonic()
            line = f"{self._heading()}: {self._state()}, {round(now - self._began)} s"
            left = round(self._seconds_left(now))
            if left > 0:
                line += f", ends in {left} s"
            self._say_of_part(line)

    def _state(self) -> str:
        if self._part is None or self._part not in self._parts:
            return "under way"
        if self._done == self._kept < self._problems:
            if self._part[1] == JUDGING:
                return "under way"
            kept = f"{self._kept} kept, " if self._kept else ""
            return f"{kept}{'next' if self._kept else 'first'} batch under way"
        return self._count_in_words()

    def _seconds_left(self, now: float) -> float:
        """Return how long the rest of the part takes at its pace so far; 0 where none is known."""
        new, left = self._done - self._kept, self._problems - self._done
        if not new:
            return 0.0
        return (self._last_news - self._part_began) / new * left - (now - self._last_news)

    def _say_of_part(self, line: str) -> None:
        whole = f"{self._name}, {line}"
        in_parts = self._part is not None and self._part in self._parts
        self._say(whole if self._named and in_parts and len(whole) < _WIDTH else line)

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
