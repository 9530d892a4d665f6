"""How long a reward may take: what is slow may be slow, and what hangs is ended."""

import logging
import time

import pytest

from grpo_hf.scoring import patience
from grpo_hf.scoring.outcomes import Failure, Outcome
from grpo_hf.scoring.patience import Patience, said_to_be_waited_for


def test_a_judge_of_12_seconds_has_time() -> None:
    judge = Patience()
    assert judge.for_one() >= 60 and judge.for_all(16) >= 16 * 12
    judge.learn([Outcome(1.0, seconds=12.0), Outcome(None, Failure("timeout", ""), seconds=900.0)])
    assert judge.for_one() == 30 * 12 and judge.for_all(512) == 30 * 12 * 512


def test_a_quick_reward_is_not_waited_for_in_vain() -> None:
    quick = Patience()
    quick.learn([Outcome(1.0, seconds=0.001)])
    assert quick.for_one() == quick.for_all(512) == 60


@pytest.mark.parametrize(("seconds", "limit"), [(0.0, 50.0), (0.1, 50.0), (0.001, 50.0)])
def test_what_was_set_is_kept(seconds: float, limit: float) -> None:
    given = Patience(timeout=5.0)
    given.learn([Outcome(1.0, seconds=seconds)])
    assert given.for_one() == 5.0 and given.for_all(10) == limit
    assert Patience(5.0, of_call=7.0).for_all(10) == 7.0


def test_a_hang_in_a_large_batch_of_a_quick_reward_costs_a_minute() -> None:
    given = Patience(timeout=5.0)
    assert given.for_all(512) == 5 * 512
    given.learn([Outcome(1.0, seconds=0.001)])
    assert given.for_all(512) == 60


@pytest.mark.long
def test_it_is_said_who_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "_FIRST_WORD", 0.1)
    with caplog.at_level(logging.WARNING), said_to_be_waited_for("the reward 'judge'"):
        time.sleep(0.5)
    said = [record.getMessage() for record in caplog.records]
    # After 0.1 s, 0.2 s and 0.4 s.
    assert 2 <= len(said) <= 3
    assert all(line.startswith("Waiting for the reward 'judge' for 0 s so far") for line in said)
    time.sleep(0.5)
    assert len(caplog.records) == len(said)
