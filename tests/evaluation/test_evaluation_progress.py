"""Tests of what an evaluation says while it works."""

import time
from types import SimpleNamespace

import pytest

from grpo_hf.evaluation.evaluation_progress import EvaluationProgress

PARTS = [(side, kind) for side in ("base", "adapter") for kind in ("greedy", "samples")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_hf.evaluation.evaluation_progress._BETWEEN_LINES", 0.05)


@pytest.fixture
def clock(quick: None, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets; lines come quickly all the same."""
    now = [100.0]
    monkeypatch.setattr(
        "grpo_hf.evaluation.evaluation_progress.time", SimpleNamespace(monotonic=lambda: now[0])
    )
    return now


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of some beats of the clock, each once."""
    capsys.readouterr()
    time.sleep(0.2)
    return list(dict.fromkeys(capsys.readouterr().err.splitlines()))


def test_a_long_batch_is_not_silent(clock: list[float], capsys: pytest.CaptureFixture[str]):
    with EvaluationProgress("held-out", 4, PARTS) as progress:
        assert capsys.readouterr().err == "held-out: 4 problems, 4 parts\n"
        progress.update("adapter", "greedy", 0)
        assert said(capsys) == ["part 3 of 4, adapter, greedy: first batch under way, 0 s"]
        progress.update("adapter", "greedy", 2)
        # No further news for several times as long as two lines may be apart.
        assert said(capsys) == ["part 3 of 4, adapter, greedy: 2 of 4 answered, 0 s"]
    time.sleep(0.15)
    capsys.readouterr()
    time.sleep(0.15)
    assert capsys.readouterr().err == "", "no line comes after the end"


def test_what_an_earlier_attempt_has_kept_is_said_and_is_no_measure_of_the_pace(
    clock: list[float], capsys: pytest.CaptureFixture[str]
):
    with EvaluationProgress("held-out", 59, PARTS) as progress:
        capsys.readouterr()
        progress.update("base", "greedy", 59)
        progress.update("base", "samples", 40)
        begun = [line for line in capsys.readouterr().err.splitlines() if line.endswith("kept")]
        assert begun == [
            "part 1 of 4, base, greedy: 59 of 59 kept",
            "part 2 of 4, base, samples: going on, 40 of 59 kept",
        ]
        assert said(capsys) == ["part 2 of 4, base, samples: 40 kept, next batch under way, 0 s"]
        clock[0] += 30
        progress.update("base", "samples", 10)
        # 10 took 30 s, so that 9 take 27.
        line = "part 2 of 4, base, samples: 50 of 59 answered, 30 s, ends in 27 s"
        assert said(capsys) == [line]
        # Without news it counts down.
        clock[0] += 10
        line = "part 2 of 4, base, samples: 50 of 59 answered, 40 s, ends in 17 s"
        assert said(capsys) == [line]
        clock[0] += 20
        assert said(capsys) == ["part 2 of 4, base, samples: 50 of 59 answered, 60 s"]


def test_what_runs_after_the_last_answer_has_a_name(
    clock: list[float], capsys: pytest.CaptureFixture[str]
):
    parts = [("base", "samples"), ("base", "judging")]
    with EvaluationProgress("baseline", 32, parts) as progress:
        progress.update("base", "samples", 0)
        progress.update("base", "samples", 32)
        progress.update("base", "judging", 0)
        assert said(capsys) == ["part 2 of 2, base, judging: under way, 0 s"]
        progress.update("both", "comparing", 0)
        assert said(capsys) == ["baseline, comparing: under way, 0 s"]


def test_lines_of_a_large_set_fit_a_terminal(
    clock: list[float], capsys: pytest.CaptureFixture[str]
):
    with EvaluationProgress("a set with a long name", 1319, PARTS) as progress:
        progress.update("adapter", "samples", 0)
        clock[0] += 9999
        progress.update("adapter", "samples", 1000)
        (line,) = said(capsys)
    assert line.endswith("1000 of 1319 answered, 9999 s, ends in 3190 s")
    assert len(line) < 80


def test_one_of_several_sets_is_named_where_that_fits(
    clock: list[float], capsys: pytest.CaptureFixture[str]
):
    def line(name: str) -> str:
        with EvaluationProgress(name, 1319, PARTS, named=True) as progress:
            progress.update("base", "samples", 40)
            assert f"\n{name}, part 2 of 4, base, samples: going on," in capsys.readouterr().err
            clock[0] += 30
            progress.update("base", "samples", 1000)
            (line,) = said(capsys)
        return line

    rest = "part 2 of 4, base, samples: 1040 of 1319 answered, 30 s, ends in 8 s"
    assert line("gsm8k") == f"gsm8k, {rest}"
    assert line("a longer name") == rest


def test_what_is_no_part_has_its_name_once(clock: list[float], capsys: pytest.CaptureFixture[str]):
    with EvaluationProgress("gsm8k", 4, PARTS, named=True) as progress:
        progress.update("both", "comparing", 0)
        assert said(capsys) == ["gsm8k, comparing: under way, 0 s"]


def test_a_silent_one_says_nothing(quick: None, capsys: pytest.CaptureFixture[str]):
    with EvaluationProgress("held-out", 4, PARTS, silent=True) as progress:
        progress.update("adapter", "greedy", 2)
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_bar_moves_before_the_first_batch_is_done(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with EvaluationProgress("comparison", 60, PARTS) as progress:
        progress.update("base", "greedy", 0)
        assert progress._bar is not None
        (task,) = progress._bar.tasks
        # rich draws a moving bar where the total is not known.
        assert (task.total, task.fields["done"]) == (None, "0 of 60 answered")
        progress.update("base", "greedy", 15)
        assert (task.completed, task.total) == (15, 60)
        assert task.fields["done"] == "15 of 60 answered"
        progress.update("base", "samples", 40)
        _, resumed = progress._bar.tasks
        assert (resumed.completed, resumed.total, resumed.speed) == (40, 60, None)
