"""`metrics.jsonl`: every number that a run logs."""

import json
import math
from collections import deque
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from .. import run_files
from .phases import CLOCK, PhaseClock

# Lines that wait for a disk that has space again; later ones push out the oldest.
_MOST_WAITING = 10_000


class MetricsFile(TrainerCallback):
    """A callback that appends what is logged to `metrics.jsonl` in the output folder.

    The file has one JSON object per call of the logger. An evaluation before the training waits for
    it: only then the folder is known to belong to this run. Lines that cannot be written wait, and
    come with a later one.
    """

    def __init__(self) -> None:
        self._waiting: deque[str] = deque(maxlen=_MOST_WAITING)
        self._has_begun = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._has_begun = True
        if state.is_world_process_zero:
            self._write(args)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        row = {"step": state.global_step}
        for name, value in logs.items():
            row[name] = finite(value)
        self._waiting.append(json.dumps(row) + "\n")
        if self._has_begun:
            self._write(args)

    def _write(self, args: Any) -> None:
        if not self._waiting:
            return
        # Appending and closing each time leaves a complete file when the run is killed.
        if run_files.append_lines(Path(args.output_dir) / run_files.METRICS_FILE, self._waiting):
            self._waiting.clear()


class PhaseTimes(TrainerCallback):
    """Put the seconds of each phase into what a step logs."""

    def __init__(self, clock: PhaseClock = CLOCK) -> None:
        self._clock = clock
        self._step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # What an earlier training did not log is not this one's.
        self._clock.means(1)
        self._step = state.global_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        # An evaluation and the summary of a training have no loss.
        if not logs or "loss" not in logs:
            return
        logs.update(self._clock.means(state.global_step - self._step))
        self._step = state.global_step


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the logged steps of a run, oldest first; none of one that has logged nothing yet.

    What a resumed run has made anew counts as it was made last.
    """
    if not (folder / run_files.METRICS_FILE).is_file():
        return []
    rows = []
    for row in run_files.read_lines(folder / run_files.METRICS_FILE):
        # Other rows are the summary at the end of training, and evaluations.
        if "reward" in row and isinstance(row.get("step"), int):
            rows.append(row)
    return run_files.in_order(rows, step_of=lambda row: int(row["step"]))


def finite(value: Any) -> Any:
    """Return a value as JSON can hold it: a plain number, and None for NaN and infinity.

    Values that are no numbers stay as they are.
    """
    # Scalars of numpy and torch have `item`, and json can write neither.
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
