"""SIGKILL at random moments, to all processes at once, and the same command again: the run ends as
one that was left alone.

    unshare --pid --fork --mount-proc \
        python -m pytest -m slow tests/durability/test_kills.py --kills 50
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file
from support.processes import ENVIRONMENT, SCRIPTS, launch

from grpo_hf.durability import whole_checkpoints
from grpo_hf.reporting.metrics_file import read_metrics

SCRIPT = SCRIPTS / "restarted_training.py"
# What takes time.
CLOCKS = ("time", "latency", "runtime", "per_second", "waited")


def started(processes: int, *arguments: object) -> "subprocess.Popen[bytes]":
    """Start the script as `support.processes.launch` does, in a group of processes of its own."""
    program = f"import sys; sys.path.insert(0, {str(SCRIPTS.parent)!r})\n"
    program += "from pathlib import Path\nfrom support.processes import launch\n"
    program += f"launch({processes}, *sys.argv[1:], script=Path({str(SCRIPT)!r}))\n"
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | ENVIRONMENT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def family_of(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def numbers_of(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for row in read_metrics(folder):
        if "train_loss" not in row:
            names = [name for name in row if not any(word in name for word in CLOCKS)]
            rows.append({name: row[name] for name in names})
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_run_ends_as_one_that_was_left_alone(
    tiny_checkpoint: Path, tmp_path: Path, processes: int, request: pytest.FixtureRequest
) -> None:
    kills = request.config.getoption("kills")
    whole = tmp_path / "whole"
    launch(processes, tiny_checkpoint, whole, script=SCRIPT)
    expected = load_file(whole / "adapter_model.safetensors")
    chance = random.Random(processes)
    done = runs = 0
    run = tmp_path / "killed-0"
    newest = -1
    while done < kills:
        process = started(processes, tiny_checkpoint, run)
        begins = run / "metrics.jsonl"
        lines = len(begins.read_bytes().splitlines()) if begins.is_file() else 0
        # At a random moment, or within a random step after the first line.
        wait = chance.uniform(0, 2)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            now = len(begins.read_bytes().splitlines()) if begins.is_file() else 0
            if now > lines:
                break
            time.sleep(0.02)
        time.sleep(wait)
        if process.poll() is None:
            family = family_of(process)
            for each in reversed(family):
                if each.is_running():
                    each.send_signal(signal.SIGKILL)
            process.wait()
            _, left = psutil.wait_procs(family, timeout=20)
            assert not left, left
            done += 1
            found = whole_checkpoints.find(run).newest
            step = whole_checkpoints.step_of(found) if found else -1
            # None is lost, and the newest one is whole.
            assert step >= newest, (step, newest)
            newest = step
            continue
        assert process.returncode == 0
        weights = load_file(run / "adapter_model.safetensors")
        assert all(weight.equal(weights[name]) for name, weight in expected.items())
        assert numbers_of(run) == numbers_of(whole)
        runs += 1
        run, newest = tmp_path / f"killed-{runs}", -1
    # The last one, whatever became of it, ends by the same command.
    launch(processes, tiny_checkpoint, run, script=SCRIPT)
    weights = load_file(run / "adapter_model.safetensors")
    assert all(weight.equal(weights[name]) for name, weight in expected.items())
    assert numbers_of(run) == numbers_of(whole)
    print(f"{done} kills of {processes} process(es), {runs + 1} runs ended as the whole one")
