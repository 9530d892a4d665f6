"""Processes whose launcher ends: they leave, with the process that scores."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from grpo_hf import GRPOTrainer, durable_trainer

# A launcher that starts a program and says its id; the program waits, and says how it was left.
LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(60)
"""
PROGRAM = """
import sys, time
from pathlib import Path
from grpo_hf.runs.program import exit_on_error
with exit_on_error():
    Path({file!r}).write_text("begun")
    try:
        time.sleep(60)
    finally:
        Path({file!r}).write_text("unwound")
"""
# A process that scores, whose reward does not finish loading. Its parent ends while it imports.
SCORER = """
import os
from multiprocessing import Pipe
from pathlib import Path
parent = os.getppid()
Path({file!r}).write_text("begun")
while os.getppid() == parent: pass
from grpo_hf.scoring.worker_server import main
ours, theirs = Pipe()
main(theirs.fileno(), 1, 2**30, parent)
"""


def started(program: str, file: Path, marks: dict[str, str]) -> int:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCEL", "TORCHEL"))}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, program.format(file=str(file))],
        env=environment | marks,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(launcher.stdout.readline())
    limit = time.monotonic() + 60
    while not file.exists() and time.monotonic() < limit:
        time.sleep(0.02)
    # It looks for its parent before it says that it has begun.
    launcher.kill()
    launcher.communicate()
    return child


def ends(process: int, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        # Nobody takes note of an orphan's end in some containers.
        if not psutil.pid_exists(process) or (
            psutil.Process(process).status() == psutil.STATUS_ZOMBIE
        ):
            return True
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    return False


@pytest.mark.parametrize("mark", ["TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"])
def test_a_program_leaves_with_its_launcher(tmp_path: Path, mark: str) -> None:
    program = started(PROGRAM, tmp_path / "state", {mark: "no"})
    assert ends(program, 10)
    assert (tmp_path / "state").read_text() == "unwound"


def test_a_script_of_a_user_leaves_too(
    make_trainer: Callable[..., GRPOTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It calls `train()`, and nothing of what a program of ours does around it."""
    watched = []
    monkeypatch.setattr(durable_trainer, "leave_with_launcher", lambda: watched.append(True))
    make_trainer(max_steps=1).train()
    assert watched


@pytest.mark.long
def test_a_program_without_a_launcher_outlives_its_shell(tmp_path: Path) -> None:
    program = started(PROGRAM, tmp_path / "state", {})
    assert not ends(program, 1.5)


@pytest.mark.long
def test_the_process_that_scores_leaves_with_the_trainer(tmp_path: Path) -> None:
    """Although its end of the connection stays open, and it waits there."""
    scorer = started(SCORER, tmp_path / "state", {})
    assert ends(scorer, 60)
