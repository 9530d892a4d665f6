"""Traces of BIG-Bench Mistake: read, and dealt out for training and for the evaluation."""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo_hf.errors import DataError


@dataclass(frozen=True)
class Trace:
    """Trace is a problem, the steps of an answer to it, and the index of the first wrong step."""

    task: str
    problem: str
    steps: tuple[str, ...]
    mistake: int | None

    @property
    def labels(self) -> list[float]:
        """Return the labels: 1 for each step before the mistake, 0 for the mistake, then none."""
        if self.mistake is None:
            return [1.0] * len(self.steps)
        return [1.0] * self.mistake + [0.0]


def read(folder: Path) -> list[Trace]:
    """Read every trace of every file in a folder.

    Raises:
        DataError: there is no file, or a row has another form.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise DataError(
            f"{folder} holds no *.jsonl; expected BIG-Bench Mistake's files. Check --dataset_path."
        )
    traces = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            traces.append(read_trace(file.stem, line, place=f"{file}:{number}"))
    return traces


def read_trace(task: str, line: str, *, place: str) -> Trace:
    """Read one trace from a line of JSON; `place` names the line in error messages.

    Raises:
        DataError: the row has another form.
    """
    try:
        row = json.loads(line)
        trace = Trace(task, row["input"], tuple(row["steps"]), row["mistake_index"])
    # ValueError: no JSON. KeyError: a missing column. TypeError: no object, or steps is no list.
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{place}: {type(error).__name__} {error}; "
            "expected a JSON row with input, steps and mistake_index."
        ) from error
    in_range = trace.mistake is None or 0 <= trace.mistake < len(trace.steps)
    if not trace.steps or not in_range:
        raise DataError(
            f"{place}: mistake_index is {trace.mistake} of {len(trace.steps)} steps; "
            "expected the index of one, or null."
        )
    return trace


def split(traces: Sequence[Trace], settings: argparse.Namespace) -> tuple[list[Trace], list[Trace]]:
    """Return training traces and held-out traces, drawn from every task in the same way.

    Raises:
        DataError: one of the two is empty, or the held-out traces have no mistake.
    """
    by_task: dict[str, list[Trace]] = {}
    for trace in traces:
        by_task.setdefault(trace.task, []).append(trace)
    # Sorted, because the order of the training traces decides the batches.
    train: list[Trace] = []
    held_out: list[Trace] = []
    for task, own in sorted(by_task.items()):
        # The seed contains the task, so another task in the folder does not change this split.
        random.Random(f"{settings.seed}/{task}").shuffle(own)
        held_out += own[: settings.eval_rows]
        train += own[settings.eval_rows :][: settings.train_rows]
    if not train or not with_mistake(held_out):
        raise DataError(
            f"{len(train)} traces to learn from, {len(held_out)} held out; expected some of both, "
            "and mistakes. Set --train_rows and --eval_rows to fit the data."
        )
    return train, held_out


def with_mistake(traces: Sequence[Trace]) -> list[Trace]:
    """Return the traces that have a mistake."""
    return [trace for trace in traces if trace.mistake is not None]
