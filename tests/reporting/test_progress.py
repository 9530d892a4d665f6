"""Tests of a run's progress line, its metrics file, and the check of its output folder."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from grpo_hf.errors import DataError, OutputExistsError
from grpo_hf.reporting.metrics_file import MetricsFile, read_metrics
from grpo_hf.reporting.output_folder import claim_output_folder
from grpo_hf.reporting.progress import ProgressLine, progress_line
from grpo_hf.reporting.report import plot_rewards

NAN = float("nan")
LOGS = {
    "loss": 0.1,
    "reward": 0.5,
    "rewards/gsm8k/mean": 0.25,
    "rewards/overlong/mean": NAN,
    "completions/mean_length": 9.5,
}
TRACES = ["metrics.jsonl", "adapter_config.json", "model.safetensors", "checkpoint-500"]


def strict_json(line: str) -> Any:
    """Read JSON as other languages do, which refuse NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {line}")

    return json.loads(line, parse_constant=refuse)


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


def state(step: int, *, steps: int = 10, main: bool = True, tokens: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        global_step=step, max_steps=steps, is_world_process_zero=main, num_input_tokens_seen=tokens
    )


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
    line, file, args = ProgressLine([]), MetricsFile(), SimpleNamespace(output_dir=str(tmp_path))
    for callback in (line, file):
        callback.on_log(args, state(1, main=False), None, logs=LOGS)
        callback.on_log(args, state(1), None, logs=None)
    line.on_log(args, state(1), None, logs={"train_runtime": 3.0})
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


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
    MetricsFile().on_log(SimpleNamespace(output_dir=str(tmp_path)), state(3), None, logs=logs)
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    finite = {"reward": 0.5, "numpy": 0.25, "tensor": 3, "text": "µ", "count": 7}
    nothing = dict.fromkeys(["nan", "inf", "-inf", "numpy nan", "tensor inf"])
    assert strict_json(line) == {"step": 3, **finite, **nothing}


def test_a_repeated_step_counts_as_logged_last(tmp_path: Path):
    args, file = SimpleNamespace(output_dir=str(tmp_path)), MetricsFile()
    for step, reward in [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.8), (3, 0.9), (10, 1.0)]:
        file.on_log(args, state(step), None, logs={"reward": reward})
    file.on_log(args, state(10), None, logs={"train_runtime": 12.0})
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["reward"]) for row in rows] == [
        (1, 0.1),
        (2, 0.8),
        (3, 0.9),
        (10, 1.0),
    ]


@pytest.mark.parametrize("name", ["run", "run[1]", "run*", "a?b", "checkpoint-7"])
@pytest.mark.parametrize("trace", TRACES)
def test_a_folder_with_another_run_is_refused_and_left_alone(tmp_path: Path, name: str, trace: str):
    folder = tmp_path / name
    (folder / trace).mkdir(parents=True)
    with pytest.raises(
        OutputExistsError, match=rf"{re.escape(str(folder))} holds another run \({trace}\)"
    ) as caught:
        claim_output_folder(folder)
    way = (
        "--resume_from_checkpoint true"
        if trace.startswith("checkpoint")
        else "It has no checkpoint: remove it"
    )
    assert "--output_dir" in str(caught.value) and way in str(caught.value)
    assert [path.name for path in folder.iterdir()] == [trace]


@pytest.mark.parametrize("name", ["new", "deep/er", "run[1]", "run*"])
def test_a_free_folder_is_made_and_stays_empty(tmp_path: Path, name: str):
    claim_output_folder(tmp_path / name)
    assert (tmp_path / name).is_dir() and list((tmp_path / name).iterdir()) == []


def test_files_that_are_no_run_are_kept(tmp_path: Path):
    for name in ("notes.txt", "recipe.yaml", "my-checkpoint-notes"):
        (tmp_path / name).touch()
    claim_output_folder(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_neighbours_that_a_pattern_would_match_do_not_count(tmp_path: Path):
    """Check that `run[1]` is not read as a pattern, which would match `run1`."""
    (tmp_path / "run1").mkdir()
    (tmp_path / "run1" / "metrics.jsonl").touch()
    claim_output_folder(tmp_path / "run[1]")


def test_a_file_in_the_way_is_an_error(tmp_path: Path):
    (tmp_path / "run").touch()
    for folder in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(OutputExistsError, match=r"cannot be written to .*--output_dir"):
            claim_output_folder(folder)


def test_every_process_looks_before_any_goes_on(tmp_path: Path):
    """Check that a slow process does not take files of the first process for another run."""

    def first_process_goes_on() -> None:
        assert not (tmp_path / "run").exists()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "metrics.jsonl").touch()

    claim_output_folder(tmp_path / "run", SimpleNamespace(wait_for_everyone=first_process_goes_on))


def test_rewards_are_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    args, file = SimpleNamespace(output_dir=str(tmp_path)), MetricsFile()
    for step in (1, 2):
        file.on_log(args, state(step), None, logs=LOGS | {"kl": 0.01 * step})
    plot_rewards(tmp_path, tmp_path / "rewards.svg")
    picture = (tmp_path / "rewards.svg").read_text()
    for label in ("gsm8k", "overlong", "mean reward", "KL", "step"):
        assert f"<!-- {label} -->" in picture


def test_a_run_without_a_logged_step_cannot_be_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(DataError, match=rf"{re.escape(str(tmp_path))}.*no .*step"):
        plot_rewards(tmp_path, tmp_path / "rewards.png")
    assert not (tmp_path / "rewards.png").exists()
