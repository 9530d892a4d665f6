"""Signals to a run under the launcher itself, in every phase: it leaves, whole, with everything."""

import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.launched import LONGEST, Launched

PHASES = ("rollout", "scoring", "update", "save")
CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138, "SIGHUP": 129, "SIGKILL": 143}


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
    trainer.send_signal(signal.SIGINT)
    # Within half a second it would be the same one that came twice.
    time.sleep(0.6)
    trainer.send_signal(signal.SIGINT)
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
