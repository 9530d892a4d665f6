"""Answers on disk while an evaluation is under way, so that one that was killed goes on.

Each process appends its answers, batch by batch, to a file of its own. They count for an evaluation
with the same settings, and for no other.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ..run_files import append_lines, read_lines, reason_of, warn_once, write_whole

T = TypeVar("T")
# An answer: {"side", "kind", "row", "texts", "right", "turns", "cut"}, and "rewards" of a greedy
# one or "sample_rewards" of samples.
Answer = dict[str, Any]
Key = tuple[str, str, int]


def key_of(answer: Answer) -> Key:
    """Return what an answer is about: side, kind (greedy or samples) and row."""
    return answer["side"], answer["kind"], answer["row"]


def by_main(work: Callable[[], T]) -> T:
    """Let the main process do something with files, and return in all processes what it found.

    Raises:
        OSError: it failed there. All processes raise it, as none may wait for one that has left.
    """
    state = PartialState()
    if state.num_processes == 1:
        return work()
    told: list[Any] = [None, None]
    if state.is_main_process:
        try:
            told[0] = work()
        except OSError as error:
            told[1] = error
    found, failed = broadcast_object_list(told)
    if failed is not None:
        raise failed
    result: T = found
    return result


class KeptAnswers:
    """The answers of an evaluation, those of an earlier attempt among them.

    No process waits for another here, nor fails where the disk does.

    Args:
        folder: for the files, while the evaluation is under way.
        settings: what decides the answers; the number of processes is among it.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._state = PartialState()
        # Its own alone: another process may be on another machine, which has the others.
        file = folder / f"{self._state.process_index}.jsonl"
        self._file: Path | None = file
        self._answers: dict[Key, Answer] = {}
        # As JSON gives them back.
        head = json.loads(json.dumps({"settings": settings}))
        try:
            kept = read_lines(file) if file.is_file() else []
            if kept[:1] == [head]:
                self._answers = {key_of(answer): answer for answer in kept[1:]}
            else:
                write_whole(file, json.dumps(head) + "\n")
        except OSError as error:
            warn_once(
                f"{file} is not to be used ({reason_of(error)}). The evaluation goes on, and "
                "cannot be resumed."
            )
            self._file = None

    def done(self, side: str, kind: str) -> set[int]:
        """Return the rows that this process has answered, in an earlier attempt or in this one."""
        return {row for a, b, row in self._answers if (a, b) == (side, kind)}

    def keep(self, answers: Iterable[Answer]) -> None:
        """Write the answers of a batch."""
        lines = []
        for answer in answers:
            self._answers[key_of(answer)] = answer
            lines.append(json.dumps(answer, ensure_ascii=False) + "\n")
        # Where the disk is full, the evaluation goes on and cannot be resumed.
        if self._file is not None:
            append_lines(self._file, lines)

    def all(self) -> dict[Key, Answer]:
        """Return the answers of all processes."""
        answers = {}
        for answer in gather_object(list(self._answers.values())):
            answers[key_of(answer)] = answer
        return answers

    def remove(self) -> None:
        """Remove the files; the evaluation is done in all processes."""
        if self._state.is_local_main_process:
            shutil.rmtree(self._folder, ignore_errors=True)
