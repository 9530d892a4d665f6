"""Tests of the line that a run prints for each logging step."""

from pathlib import Path

import pytest
from support.callbacks import LOGS, NAN, arguments, state
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from grpo_hf.reporting.metrics_file import MetricsFile
from grpo_hf.reporting.progress import ProgressLine, progress_line


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (9.9, "0:09"),
        (60, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (90061, "25:01:01"),
    ],
)
def test_time_left(seconds: float, shown: str):
    assert progress_line(1, 2, LOGS, [], 0, seconds).endswith(f"  {shown} left")


def test_a_reward_that_judged_nothing_shows_a_dash():
    line = progress_line(3, 1000, LOGS, ["gsm8k", "overlong", "missing"], 1234567, 61)
    assert line == (
        "step    3/1000  reward 0.500  gsm8k 0.250  overlong -  missing -  length 10  "
        "1,234,567 tokens/s  1:01 left"
    )
    assert "reward -  " in progress_line(3, 1000, {"reward": NAN}, [], 0, 0)


def test_kl_is_shown_where_there_is_one():
    assert "kl" not in progress_line(1, 2, LOGS, [], 0, 0)
    assert "  kl 0.0124  " in progress_line(1, 2, LOGS | {"kl": 0.01236}, [], 0, 0)


def test_rates_and_time_left_are_of_this_run_alone(monkeypatch, capsys):
    """Resume at step 4 of 10 with 1,000 tokens seen: after two steps in 10 s, 20 s are left."""
    clock = iter([100.0, 105.0, 110.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    line = ProgressLine(["gsm8k"])
    line.on_train_begin(None, state(4, tokens=1000), None)
    line.on_log(None, state(5), None, logs=LOGS | {"num_tokens": 1500})
    line.on_log(None, state(6), None, logs=LOGS | {"num_tokens": 3500})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step  5/10  ") and first.endswith("  100 tokens/s  0:25 left")
    assert second.startswith("step  6/10  ") and second.endswith("  400 tokens/s  0:20 left")


def test_only_the_main_process_speaks_and_only_of_training_steps(tmp_path: Path, capsys):
    line, file, args = ProgressLine([]), MetricsFile(), arguments(tmp_path)
    for callback in (line, file):
        callback.on_train_begin(args, state(0), None)
        callback.on_log(args, state(1, main=False), None, logs=LOGS)
        callback.on_log(args, state(1), None, logs=None)
    line.on_log(args, state(1), None, logs={"train_runtime": 3.0})
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_progress_callback_of_the_user_s_own_stays(make_trainer):
    class Mine(ProgressCallback):
        """Shows progress in a way of its own."""

    class Printed(PrinterCallback):
        """Prints in a way of its own."""

    for off in (True, False):
        trainer = make_trainer(callbacks=[Mine(), Printed], disable_tqdm=off)
        kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
        assert Mine in kinds and Printed in kinds and ProgressLine in kinds
        assert ProgressCallback not in kinds and PrinterCallback not in kinds
