"""Tests of what an evaluation says while it works."""

import time
from types import SimpleNamespace

import pytest

from grpo_hf.evaluation.evaluation_progress import EvaluationProgress


def test_a_long_batch_is_not_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("grpo_hf.evaluation.evaluation_progress._BETWEEN_LINES", 0.05)
    with EvaluationProgress("held-out", 4) as progress:
        progress.update("adapter", "greedy", 2)
        # No further news for several times as long as two lines may be apart.
        time.sleep(0.3)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "held-out: 4 problems"
    assert len(said) > 2
    assert set(said[1:]) == {"held-out, adapter, greedy: 2 of 4 answered, 0 s"}
    time.sleep(0.15)
    assert capsys.readouterr().err == "", "no line comes after the end"


def test_the_time_that_is_left_is_told_by_the_pace_of_new_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    clock = [100.0]
    monkeypatch.setattr("grpo_hf.evaluation.evaluation_progress._BETWEEN_LINES", 0.05)
    monkeypatch.setattr(
        "grpo_hf.evaluation.evaluation_progress.time", SimpleNamespace(monotonic=lambda: clock[0])
    )
    with EvaluationProgress("held-out", 60) as progress:
        # 20 are there from an earlier attempt; 10 more take 30 s, so that 30 take 90.
        progress.update("base", "samples", 0)
        progress.update("base", "samples", 20)
        clock[0] = 130.0
        progress.update("base", "samples", 10)
        time.sleep(0.2)
    line = "held-out, base, samples: 30 of 60 answered, 30 s, 90 s left of this part"
    assert line in capsys.readouterr().err.splitlines()


def test_a_silent_one_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("grpo_hf.evaluation.evaluation_progress._BETWEEN_LINES", 0.02)
    with EvaluationProgress("held-out", 4, silent=True) as progress:
        progress.update("adapter", "greedy", 2)
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_bar_moves_before_the_first_batch_is_done(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with EvaluationProgress("comparison", 60) as progress:
        progress.update("base", "greedy", 0)
        assert progress._bar is not None
        (task,) = progress._bar.tasks
        # rich draws a moving bar where the total is not known.
        assert task.total is None and task.fields["of"] == 60
        progress.update("base", "greedy", 15)
        assert (task.completed, task.total) == (15, 60)
