"""Signals to a run under the launcher itself, in every phase: it leaves, whole, with everything."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from support.processes import ENVIRONMENT, SCRIPTS

SCRIPT = SCRIPTS / "leaving_training.py"
PHASES = ("rollout", "scoring", "update", "save")
# Seconds from a signal to the end of all processes: the longest phases and a save of the script,
# and what Python and torch take to end, on a machine with other work.
LONGEST = 25
CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138, "SIGHUP": 129, "SIGKILL": 143}


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


def whole(folder: Path) -> list[int]:
    """The steps of the checkpoints, each with what a run needs to go on."""
    steps = []
    for checkpoint in folder.glob("checkpoint-*"):
        names = {file.name for file in checkpoint.iterdir()}
        needed = {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"}
        assert needed <= names, checkpoint
        load_file(checkpoint / "adapter_model.safetensors")
        steps.append(int(checkpoint.name.removeprefix("checkpoint-")))
    return sorted(steps)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_a_signal_in_every_phase(tiny_checkpoint: Path, tmp_path: Path, number: int) -> None:
    """20 signals: of every kind, to trainer, launcher or all, on one process and on two."""
    draw = random.Random(number)
    phase, processes = PHASES[number % 4], 1 + (number // 4) % 2
    name = list(CODES)[number % 5]
    target = "launcher" if name == "SIGKILL" else draw.choice(["trainers", "launcher", "all"])
    run = Launched(processes, tiny_checkpoint, tmp_path / "run")
    run.wait_for(phase, 3 if phase == "save" else draw.choice([1, 2, 4]))
    time.sleep(draw.uniform(0, 0.5))
    trainers = run.trainers()
    assert len(trainers) == processes
    sent = getattr(signal, name)
    if target in ("launcher", "all"):
        run.launcher.send_signal(sent)
    if target in ("trainers", "all"):
        for trainer in trainers:
            trainer.send_signal(sent)
    took = run.seconds_to_end()
    steps = whole(tmp_path / "run")
    print(f"\n{number}: {name} to {target}, {phase}, {processes}: {took:.1f} s, {steps}")
    print(run.said[-1500:] if "Traceback" in run.said else run.said[-300:])
    assert steps and f"left after step {steps[-1]}" in run.said


@pytest.mark.slow
def test_the_second_ctrl_c_leaves_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = Launched(1, tiny_checkpoint, tmp_path / "run")
    run.wait_for("update", 1)
    (trainer,) = run.trainers()
    for _ in range(2):
        trainer.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert run.seconds_to_end() < LONGEST
    assert "Traceback" not in run.said and "left after step" not in run.said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_ends_the_other_with_its_words(
    tiny_checkpoint: Path, tmp_path: Path, rank: int
) -> None:
    run = Launched(2, tiny_checkpoint, tmp_path / "run", rank)
    run.wait_for("rollout", 0)
    print(f"\n{run.seconds_to_end():.1f} s\n{run.said}")
    assert "ValueError: out of luck" in run.said
    if rank == 1:
        word = (
            "error: process 1 of the run has failed, and this one with it: ValueError: out of luck"
        )
        assert word in run.said
    # Each traceback is that of the process that failed, or the launcher's.
    assert "gloo" not in run.said


@pytest.mark.slow
def test_a_process_that_is_killed_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = Launched(2, tiny_checkpoint, tmp_path / "run")
    run.wait_for("rollout", 1)
    (victim,) = [each for each in run.trainers() if each.environ()["RANK"] == "1"]
    victim.kill()
    print(f"\n{run.seconds_to_end():.1f} s\n{run.said}")
    assert f"error: process 1 of the run (pid {victim.pid}) has gone without a word" in run.said
    assert "gloo" not in run.said
