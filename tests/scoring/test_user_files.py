"""Files of a user's functions are read from their source, whatever was compiled before."""

import os
import sys
from pathlib import Path

import pytest

from grpo_hf import load_reward
from grpo_hf.scoring.user_files import file_modules


def test_a_file_that_changed_within_a_second_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that is copied with its time. Python's cache would take it for the first."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "mine.py"
    rewards = []
    for value in (1.0, 2.0):
        file.write_text(f"def score(completions): return [{value}]\n")
        os.utime(file, (1_000_000_000, 1_000_000_000))
        rewards += load_reward(f"{file}:score")(completions=["x"])
        for name, module in list(sys.modules.items()):
            if getattr(module, "__file__", None) == str(file):
                # As in a process that begins.
                monkeypatch.delitem(sys.modules, name)
    assert rewards == [1.0, 2.0]
    assert str(file) not in file_modules()


def test_nothing_is_left_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "mine.py"
    file.write_text("def score(completions): return [1.0]\n")
    load_reward(f"{file}:score")
    assert list(tmp_path.iterdir()) == [file]
