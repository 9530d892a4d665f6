"""The files of a run as one value: metrics, answers, evaluations, rollouts, settings, starts."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..reporting.environment import read_starts
from ..reporting.token_credit import CREDIT_FILE
from ..run_files import (
    EVALUATION_FILE,
    EVALUATIONS,
    METRICS_FILE,
    OVER_TIME_FILE,
    in_order,
    read_lines,
)
from ..run_folders import check_run, settings_of

logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class Rollout:
    """Where a group of `credit.jsonl` lies, and its rewards; its tokens are read when needed.

    Args:
        offset: of its line in the file, in bytes.
        prompt: its text.
        rewards: of its completions, None where no reward could judge one.
    """

    file: Path
    offset: int
    step: int
    prompt: str
    rewards: list[float | None]

    def completions(self) -> list[Row]:
        """Read the completions, each with `tokens`, `advantages`, `special` and `reward`."""
        with self.file.open("rb") as lines:
            lines.seek(self.offset)
            row: Row = json.loads(lines.readline())
        return list(row["completions"])


@dataclass(frozen=True)
class RunRecord:
    """What a run has left on disk.

    Args:
        name: as the page calls it; differs from those of the other runs on it.
        steps: a row of metrics for each logged step, oldest first.
        evaluated: a row of metrics for each evaluation during the training, oldest first.
        summary: of the training, as transformers logs it at its end.
        answers: base and adapter on each held-out prompt.
        over_time: a row for each evaluation during the training, with `step` and, in `rows`, the
            answers to a few held-out prompts.
        sets: summaries of `grpo-hf eval`, each with its `rows`.
    """

    folder: Path
    name: str
    steps: list[Row]
    evaluated: list[Row]
    summary: Row
    starts: list[Row]
    recipe: Row
    answers: list[Row] = field(default_factory=list)
    over_time: list[Row] = field(default_factory=list)
    sets: list[Row] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)

    def settings(self) -> Row:
        """Return what the run was told: its recipe, or the settings that were no defaults."""
        if self.recipe or not self.starts:
            return self.recipe
        return dict(self.starts[0].get("settings") or {})


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Read runs; those in folders of one name have their parents' names before it.

    Raises:
        DataError: a folder is not that of a run, or has no logged step.
    """
    parts = 1
    paths = [folder.resolve().parts for folder in folders]
    longest = max(map(len, paths))
    # A run that is given twice never gets a name of its own.
    while len({path[-parts:] for path in paths}) < len(set(paths)) and parts < longest:
        parts += 1
    records = []
    for folder, path in zip(folders, paths, strict=True):
        records.append(read_run(folder, "/".join(path[-parts:])))
    return records


def read_run(folder: Path, name: str) -> RunRecord:
    """Read the files of a run; those that are missing or of another form count as empty.

    Raises:
        DataError: the folder is not that of a run, or has no logged step.
    """
    file = folder / METRICS_FILE
    check_run(folder)
    steps, evaluated, summary = _logged(file)
    if not steps:
        raise DataError(f"{folder}: {METRICS_FILE} has no training step. {_cure(summary)}")
    return RunRecord(
        folder=folder,
        name=name,
        steps=steps,
        evaluated=evaluated,
        summary=summary,
        starts=read_starts(folder),
        recipe=settings_of(folder),
        answers=_answers(folder / EVALUATION_FILE),
        over_time=_over_time(folder / OVER_TIME_FILE),
        sets=list(_sets(folder / EVALUATIONS)),
        rollouts=_rollouts(folder / CREDIT_FILE),
    )


def _logged(file: Path) -> tuple[list[Row], list[Row], Row]:
    """Return the rows of steps, those of evaluations, and the summary of the training.

    A step that is made again takes back what was logged from there on, the summary as well.
    """
    steps: list[Row] = []
    evaluated: list[Row] = []
    summary: Row = {}
    for row in read_lines(file):
        if not isinstance(row.get("step"), int):
            continue
        if any(name.startswith("eval_") for name in row):
            # An evaluation has a row for rewards, one for accuracies, and one for each of its sets.
            if evaluated and evaluated[-1]["step"] == row["step"]:
                row = evaluated.pop() | row
            evaluated.append(row)
        elif "train_runtime" in row:
            summary = row
        else:
            steps.append(row)
            summary = {}
            while evaluated and evaluated[-1]["step"] >= row["step"]:
                evaluated.pop()
    return in_order(steps, step_of=_step_of), in_order(evaluated, step_of=_step_of), summary


def _step_of(row: Row) -> int:
    return int(row["step"])


def _cure(summary: Row) -> str:
    """Return what to do about a run without a logged step."""
    if not summary:
        return "Ask again once the run has logged one."
    return (
        f"The run ended at step {summary.get('step')}, before the first one that logging_steps "
        "logs. A run with --logging_steps 1 logs each."
    )


def _answers(file: Path) -> list[Row]:
    rows = read_lines(file) if file.is_file() else []
    known = []
    for row in rows:
        if isinstance(row.get("base"), dict) and isinstance(row.get("adapter"), dict):
            known.append(row)
    return known


def _over_time(file: Path) -> list[Row]:
    known = []
    for row in read_lines(file) if file.is_file() else []:
        if isinstance(row.get("step"), int) and isinstance(row.get("rows"), list):
            rows = [each for each in row["rows"] if isinstance(each, dict)]
            known.append(row | {"rows": rows})
    return in_order(known, step_of=_step_of)


def _sets(folder: Path) -> Iterator[Row]:
    """Yield the evaluations of a run, in the order of their names."""
    for file in sorted(folder.glob("*.json")):
        try:
            summary = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            logger.warning(f"{file} cannot be read ({error}), and is left out of the report.")
            continue
        if isinstance(summary, dict) and isinstance(summary.get("base"), dict):
            rows = file.with_suffix(".jsonl")
            yield (
                {"set": file.stem} | summary | {"rows": read_lines(rows) if rows.is_file() else []}
            )


def _rollouts(file: Path) -> list[Rollout]:
    """Return where the groups of a credit file lie; those of a long run are too many to keep."""
    found: list[Rollout] = []
    if not file.is_file():
        return []
    offset = 0
    with file.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
                rewards = [completion["reward"] for completion in row["completions"]]
                step = int(row["step"])
                if rewards:
                    found.append(Rollout(file, offset, step, str(row["prompt"]), rewards))
            except (ValueError, KeyError, TypeError):
                # A torn line, as a killed process leaves it.
                pass
            offset += len(line)
    return in_order(found, step_of=lambda rollout: rollout.step)
