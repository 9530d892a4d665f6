"""Answers on disk while an evaluation is under way, so that one that was killed goes on.

Each process appends its answers, batch by batch, to a file of its own. They count for an evaluation
with the same settings, and for no other.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from ..run_files import append_lines, read_lines, write_whole

# An answer: {"side", "kind", "row", "texts", "right", "answers", "rewards"}.
Answer = dict[str, Any]
Key = tuple[str, str, int]

_SETTINGS = "settings.json"


def key_of(answer: Answer) -> Key:
    """Return what an answer is about: side, kind (greedy or samples) and row."""
    return answer["side"], answer["kind"], answer["row"]


class KeptAnswers:
    """The answers of an evaluation, those of an earlier attempt among them.

    Args:
        folder: for the files, while the evaluation is under way.
        settings: what decides the answers.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._state = PartialState()
        self._mine: list[Answer] = []
        # Before the others read them.
        if self._state.is_main_process:
            self._begin(settings)
        self._state.wait_for_everyone()
        self._earlier: dict[Key, Answer] = {}
        for file in sorted(folder.glob("*.jsonl")):
            for answer in read_lines(file):
                self._earlier[key_of(answer)] = answer
        # None may append before all have read.
        self._state.wait_for_everyone()

    def done(self, side: str, kind: str) -> set[int]:
        """Return the rows that an earlier attempt has answered."""
        return {row for a, b, row in self._earlier if (a, b) == (side, kind)}

    def keep(self, answers: Iterable[Answer]) -> None:
        """Write the answers of a batch."""
        answers = list(answers)
        self._mine += answers
        lines = []
        for answer in answers:
            lines.append(json.dumps(answer, ensure_ascii=False) + "\n")
        # Where the disk is full, the evaluation goes on and cannot be resumed.
        append_lines(self._folder / f"{self._state.process_index}.jsonl", lines)

    def all(self) -> dict[Key, Answer]:
        """Return the answers of all processes."""
        answers = dict(self._earlier)
        for answer in gather_object(self._mine):
            answers[key_of(answer)] = answer
        return answers

    def remove(self) -> None:
        """Remove the files; the evaluation is done."""
        self._state.wait_for_everyone()
        if self._state.is_main_process:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self, settings: dict[str, Any]) -> None:
        file = self._folder / _SETTINGS
        text = json.dumps(settings, indent=1, sort_keys=True)
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            shutil.rmtree(self._folder, ignore_errors=True)
            write_whole(file, text)
