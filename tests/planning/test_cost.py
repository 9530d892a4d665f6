"""Tokens, time and dollars."""

import json
from pathlib import Path

import pytest

from grpo_hf.errors import DataError
from grpo_hf.planning.cost import Cost, measured_rate
from grpo_hf.planning.geometry import Geometry
from grpo_hf.planning.page import cost_lines

GEOMETRY = Geometry(2, 4, 8, 1, 3, 1, 100, 50, packed=True)


def test_a_run_by_hand() -> None:
    cost = Cost.of(GEOMETRY, steps=10, rate=720.0, dollars_per_hour=3.0)
    # 2 GPUs x 8 rows x 3 micro-batches, each of 100 + 50 tokens.
    assert (cost.written, cost.counted) == (48 * 50, 48 * 150)
    assert cost.seconds == pytest.approx(10.0)
    assert cost.dollars == pytest.approx(10 / 3600 * 3 * 2)
    text = "\n".join(cost_lines(cost, "no rate"))
    assert "10 steps write 24,000 tokens" in text
    assert "a step takes 10.0 s, all steps 1:40 min" in text
    assert "the run $0.17" in text


def test_a_rollout_that_is_used_twice_is_written_once() -> None:
    twice = Geometry(2, 4, 8, 1, 3, 2, 100, 50, packed=True)
    assert Cost.of(twice, steps=None, rate=None, dollars_per_hour=None).written == 24 * 50


def test_the_rate_of_an_earlier_run(tmp_path: Path) -> None:
    rows = [
        {"step": 2, "num_tokens": 400.0, "step_time": 1.0},
        {"step": 4, "num_tokens": 1000.0, "step_time": 4.0},
        {"step": 4, "train_runtime": 99.0},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert measured_rate(tmp_path) == pytest.approx(1000 / (2 * 1.0 + 2 * 4.0))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no metrics"):
        measured_rate(tmp_path)
