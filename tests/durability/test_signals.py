"""Which signals are taken, what a program does with them, and that everything is put back."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from grpo_hf.durability import signals
from grpo_hf.runs.program import exit_on_error

ALL = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ALL}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ignored_signals_and_those_of_the_program_stay_its_own() -> None:
    own: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: own.append(number))
    # As `nohup` does.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    noted: list[int] = []
    with signals.handled(lambda number, frame: noted.append(number)):
        for number in ALL:
            os.kill(os.getpid(), number)
    assert own == [signal.SIGUSR1] and noted == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", ALL)
def test_a_signal_where_no_run_trains_unwinds(number: int, capsys: Any) -> None:
    cleared = []
    with pytest.raises(SystemExit) as left, exit_on_error():
        try:
            os.kill(os.getpid(), number)
        finally:
            cleared.append(True)
    assert left.value.code == 128 + number and cleared
    said = capsys.readouterr().err
    assert f"{signals.name_of(number)}: stopped while no run was training" in said
    assert "The same command starts again" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
# It is sent again, or the block is over before that.
@pytest.mark.parametrize("seconds", [60, 0])
def test_a_signal_during_a_destructor_is_not_lost(number: int, seconds: int) -> None:
    code = f"""
import os, time
from grpo_hf.runs.program import exit_on_error
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
with exit_on_error():
    Deaf()
    time.sleep({seconds})
    print("went on")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (128 + number, "went on\n" if seconds == 0 else "")
    said = f"{signals.name_of(number)}: stopped while no run was training"
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1


def test_a_program_that_trains_nothing_has_words_of_its_own(capsys: Any) -> None:
    with pytest.raises(SystemExit), exit_on_error("stopped."):
        os.kill(os.getpid(), signal.SIGINT)
    assert capsys.readouterr().err == "Ctrl-C: stopped.\n"


def test_a_run_that_has_left_says_so_once(capsys: Any) -> None:
    with pytest.raises(SystemExit) as left, exit_on_error():
        raise signals.left(signal.SIGTERM)
    assert left.value.code == 143
    with pytest.raises(SystemExit) as left, exit_on_error():
        raise signals.left(signal.SIGINT)
    assert left.value.code == 130
    assert not capsys.readouterr().err


@pytest.mark.parametrize("apart", [0.1, 1.0])
def test_a_second_ctrl_c_ends_the_program_and_one_that_comes_twice_does_not(apart: float) -> None:
    code = f"""
import os, signal, time
from grpo_hf.runs.program import exit_on_error
with exit_on_error("stopped."):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        time.sleep({apart})
        os.kill(os.getpid(), signal.SIGINT)
        print("cleared away")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    if apart < 0.5:
        assert (done.stdout, done.stderr) == ("cleared away\n", "Ctrl-C: stopped.\n")
    else:
        assert not done.stdout and done.stderr.startswith("Ctrl-C again: left at once")


def test_one_that_comes_twice_while_the_program_ends() -> None:
    code = """
import os, signal
from grpo_hf.runs.program import exit_on_error
try:
    with exit_on_error("stopped."):
        os.kill(os.getpid(), signal.SIGINT)
except SystemExit as end:
    os.kill(os.getpid(), signal.SIGINT)
    print(end.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == ("130\n", "Ctrl-C: stopped.\n")
