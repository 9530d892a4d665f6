"""Tests of `metrics.jsonl`."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.callbacks import NAN, arguments, state

from grpo_hf.reporting.metrics_file import MetricsFile, read_metrics


def strict_json(line: str) -> Any:
    """Read JSON as other languages do, which refuse NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {line}")

    return json.loads(line, parse_constant=refuse)


def begun(folder: Path) -> MetricsFile:
    """The callback of a run that has begun to train."""
    file = MetricsFile()
    file.on_train_begin(arguments(folder), state(0), None)
    return file


def test_metrics_are_strict_json_whatever_is_logged(tmp_path: Path):
    logs = {
        "reward": 0.5,
        "nan": NAN,
        "inf": math.inf,
        "-inf": -math.inf,
        "numpy": np.float32(0.25),
        "numpy nan": np.float32(NAN),
        "tensor": torch.tensor(3),
        "tensor inf": torch.tensor(math.inf),
        "text": "µ",
        "count": 7,
    }
    begun(tmp_path).on_log(arguments(tmp_path), state(3), None, logs=logs)
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    finite = {"reward": 0.5, "numpy": 0.25, "tensor": 3, "text": "µ", "count": 7}
    nothing = dict.fromkeys(["nan", "inf", "-inf", "numpy nan", "tensor inf"])
    assert strict_json(line) == {"step": 3, **finite, **nothing}


def test_what_a_resumed_run_has_made_anew_counts_as_made_last(tmp_path: Path):
    args, file = arguments(tmp_path), begun(tmp_path)
    for step, reward in [(1, 0.1), (2, 0.2), (3, 0.3), (9, 0.4), (2, 0.8), (3, 0.9), (10, 1.0)]:
        file.on_log(args, state(step), None, logs={"reward": reward})
    file.on_log(args, state(10), None, logs={"train_runtime": 12.0})
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["reward"]) for row in rows] == [
        (1, 0.1),
        (2, 0.8),
        (3, 0.9),
        (10, 1.0),
    ]


def test_an_evaluation_before_the_training_waits_for_it(tmp_path: Path):
    """Before, the folder may be another run's; what was measured is not lost."""
    args, file = arguments(tmp_path), MetricsFile()
    file.on_log(args, state(0), None, logs={"eval_reward": 0.25})
    assert not list(tmp_path.iterdir())
    file.on_train_begin(args, state(0), None)
    file.on_log(args, state(1), None, logs={"reward": 0.5})
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    expected = [{"step": 0, "eval_reward": 0.25}, {"step": 1, "reward": 0.5}]
    assert [json.loads(line) for line in lines] == expected
