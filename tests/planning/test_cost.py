"""Tokens, time and dollars."""

import json
from pathlib import Path

import pytest

from grpo_hf.errors import DataError
from grpo_hf.planning.cost import Cost, earlier_run
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
    assert "10 steps write at most 24,000 tokens" in text
    assert "a step takes at most 10.0 s, all steps 1:40 min" in text
    assert "the run $0.17" in text


def test_completions_that_end_early() -> None:
    cost = Cost.of(GEOMETRY, steps=10, rate=720.0, dollars_per_hour=None, completion=12.5)
    assert (cost.written, cost.counted) == (48 * 12.5, 48 * 112.5)
    text = "\n".join(cost_lines(cost, "no rate"))
    assert "10 steps write 6,000 tokens" in text
    assert "a step takes 7.5 s, all steps 1:15 min" in text


def test_a_rollout_that_is_used_twice_is_written_once() -> None:
    twice = Geometry(2, 4, 8, 1, 3, 2, 100, 50, packed=True)
    assert Cost.of(twice, steps=None, rate=None, dollars_per_hour=None).written == 24 * 50


def write_metrics(folder: Path, *rows: dict[str, float]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_an_earlier_run_measured(tmp_path: Path) -> None:
    length = "completions/mean_length"
    write_metrics(
        tmp_path,
        {"step": 1, "num_tokens": 400.0, "step_time": 1.0, length: 20.0},
        {"step": 4, "num_tokens": 1000.0, "step_time": 4.0, length: 10.0},
        {"step": 4, "train_runtime": 99.0},
    )
    earlier = earlier_run(tmp_path)
    assert earlier.rate == pytest.approx(1000 / (1 * 1.0 + 3 * 4.0))
    assert earlier.completion == pytest.approx((1 * 20 + 3 * 10) / 4)


def test_steps_that_a_resumed_run_made_anew_count_once(tmp_path: Path) -> None:
    length = "completions/mean_length"
    rows = []
    # It got to step 8, and went on from step 4; the first step after a start is slow.
    for step in (*range(1, 9), *range(5, 11)):
        row = {"step": step, "num_tokens": 100.0 * step, "step_time": 1.0, length: 20.0}
        rows.append(row)
    rows[8] |= {"step_time": 11.0, length: 10.0}
    write_metrics(tmp_path, *rows)
    earlier = earlier_run(tmp_path)
    assert earlier.rate == pytest.approx(1000 / (9 * 1.0 + 11.0))
    assert earlier.completion == pytest.approx((9 * 20 + 10) / 10)


def test_a_run_that_did_not_write_down_its_lengths(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"step": 2, "num_tokens": 400.0, "step_time": 1.0})
    assert earlier_run(tmp_path).completion is None


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no metrics"):
        earlier_run(tmp_path)
