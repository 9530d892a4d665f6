"""A run under `accelerate launch` itself, and all of its processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.processes import ENVIRONMENT, SCRIPTS

SCRIPT = SCRIPTS / "leaving_training.py"
# Seconds from a signal to the end of all processes: the longest phases and a save of the script,
# and what Python and torch take to end, on a machine with other work.
LONGEST = 25


class Launched:
    """A run under `accelerate launch`, and all of its processes."""

    def __init__(self, processes: int, *arguments: object) -> None:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
        command += ["--num_processes", str(processes), "--quiet"]
        command += [*(["--multi_gpu"] if processes > 1 else []), "--main_process_port", "0"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        self.launcher = subprocess.Popen(
            [*command, str(SCRIPT), *map(str, arguments)],
            env=os.environ | ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
            # Of its own, as that of a job or a terminal.
            start_new_session=True,
        )
        self.phase_file = Path(f"{arguments[1]}.phase")
        self.family: list[psutil.Process] = []

    def wait_for(self, phase: str, step: int) -> None:
        """Wait until the run is in a phase of a step."""
        limit = time.monotonic() + 120
        while time.monotonic() < limit and self.launcher.poll() is None:
            words = self.phase_file.read_text().split() if self.phase_file.exists() else []
            if len(words) == 2 and words[0] == phase and int(words[1]) >= step:
                break
            time.sleep(0.01)
        else:
            pytest.fail(
                f"never in {phase} of step {step}: {self.launcher.communicate()[1][-3000:]}"
            )
        self.family = psutil.Process(self.launcher.pid).children(recursive=True)

    def trainers(self) -> list[psutil.Process]:
        return [each for each in self.family if str(SCRIPT) in each.cmdline()]

    def seconds_to_end(self) -> float:
        """Wait until no process of the run is left."""
        start = time.monotonic()
        while (alive := list(filter(runs, self.family))) and time.monotonic() - start < LONGEST:
            time.sleep(0.05)
        took = time.monotonic() - start
        names = [(each.pid, each.cmdline()[:4]) for each in alive]
        for each in alive:
            each.kill()
        self.said = self.launcher.communicate(timeout=LONGEST)[1]
        assert not alive, f"left behind: {names}: {self.said[-3000:]}"
        return took


def runs(process: psutil.Process) -> bool:
    """Whether a process has not ended; in a container nobody may take note of an orphan's end."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
