"""`make demo`, interrupted as in a terminal: every process of its group gets the signal."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = "--cold_start_steps 4 --max_steps 40 --logging_steps 1 --eval_rows 0"


@pytest.fixture
def make(tmp_path: Path) -> list[str]:
    """The command, with this Python in place of an environment that would have to be made."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    (tmp_path / "venv/bin").mkdir(parents=True)
    python = tmp_path / "venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" $MORE\n')
    python.chmod(0o755)
    (tmp_path / "venv/.installed").touch()
    settings = [f"VENV={tmp_path}/venv", f"RUN={tmp_path}/run", "THREADS=1"]
    return ["make", "-C", str(ROOT), "demo", *settings]


def interrupted(command: list[str], after: str, flags: str) -> str:
    """Press Ctrl-C once a line has come that begins with some words; return all that was said."""
    run = subprocess.Popen(
        command,
        env=os.environ | {"MORE": flags, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said = ""
    for line in run.stdout:
        said += line
        if line.startswith(after):
            os.killpg(run.pid, signal.SIGINT)
            break
    said += run.communicate(timeout=120)[0]
    assert run.returncode != 0
    assert "Traceback" not in said
    return said


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(make: list[str], tmp_path: Path) -> None:
    said = interrupted(make, "step ", SHORT)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert f"If it is interrupted: make demo SEED=0 RUN={tmp_path}/run" in said
    assert f"which is in {checkpoint}" in said
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    flags = f"{SHORT} --max_steps {step + 1}"
    done = subprocess.run(make, env=os.environ | {"MORE": flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"step {step + 1}/{step + 1} " in done.stdout


@pytest.mark.long
def test_ctrl_c_in_the_cold_start_leaves_nothing_half_made(make: list[str], tmp_path: Path) -> None:
    said = interrupted(make, "cold start", SHORT.replace("steps 4", "steps 4000"))
    assert "Ctrl-C: stopped while no run was training" in said
    assert not list(tmp_path.glob("cold_start*"))
