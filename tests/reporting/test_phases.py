"""Tests of where the seconds of a step go, and of what a run was started with."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.callbacks import LOGS, state

from grpo_hf import GRPOConfig, reward_settings
from grpo_hf.reporting.environment import ENVIRONMENT_FILE, command_line, commit_of, read_starts
from grpo_hf.reporting.metrics_file import PhaseTimes, read_metrics
from grpo_hf.reporting.phases import PhaseClock
from grpo_hf.run_files import read_lines

SLEEP = 0.05


@reward_settings(in_process=True, early=False)
def slow_reward(completions: list[str], **_: Any) -> list[float]:
    time.sleep(SLEEP)
    return [float(len(text)) for text in completions]


class TestClock:
    def test_an_inner_phase_is_not_its_outer_one_s(self):
        seconds = iter([0, 1, 3, 6, 10])
        clock = PhaseClock(now=lambda: next(seconds))
        heard: list[str | None] = []
        clock.listeners.append(heard.append)
        clock.begin("reference")
        clock.begin("rollout")  # after 1 s
        clock.end()  # 2 s later
        clock.end()  # 3 s later
        assert heard == ["reference", "rollout", "reference", None]
        assert clock.means(2) == {"time/reference": 2.0, "time/rollout": 1.0}
        assert clock.means(1) == {"time/reference": 0.0, "time/rollout": 0.0}

    def test_only_a_training_step_logs_times(self):
        seconds = iter([0, 6])
        clock = PhaseClock(now=lambda: next(seconds))
        times = PhaseTimes(clock)
        times.on_train_begin(None, state(4), None)
        clock.begin("rollout")
        clock.end()
        evaluation, logs = {"eval_reward": 1.0}, dict(LOGS)
        times.on_log(None, state(7), None, logs=evaluation)
        times.on_log(None, state(7), None, logs=logs)
        assert evaluation == {"eval_reward": 1.0} and logs == LOGS | {"time/rollout": 2.0}


@pytest.fixture(scope="module")
def run(module_trainer: Any) -> tuple[Path, Any]:
    trainer = module_trainer(
        reward_funcs=slow_reward, max_steps=4, logging_steps=2, num_iterations=2, seed=7
    )
    trainer.train()
    return Path(trainer.args.output_dir), trainer


class TestRuns:
    @pytest.mark.long
    def test_the_phases_of_a_step_are_logged(self, run: tuple[Path, Any]):
        rows = read_metrics(run[0])
        assert [row["step"] for row in rows] == [2, 4]
        for row in rows:
            # Two steps share a rollout, so that each has half of its seconds.
            assert row["time/scoring"] > 0.9 * SLEEP / 2
            assert row["time/rollout"] > 0 and row["time/reference"] > 0
            phases = [value for name, value in row.items() if name.startswith("time/")]
            assert sum(phases) < row["step_time"]

    def test_an_evaluation_is_no_phase(self, run: tuple[Path, Any]):
        folder, trainer = run
        before = (folder / "metrics.jsonl").read_text()
        trainer.evaluate(trainer.train_dataset.select(range(2)))
        after = (folder / "metrics.jsonl").read_text().removeprefix(before)
        assert "eval_reward" in after and "time/" not in after

    def test_a_start_is_described(self, run: tuple[Path, Any]):
        (start,) = read_starts(run[0])
        assert start["step"] == 0 and start["seed"] == 7 and start["processes"] == 1
        assert {"python", "grpo-hf", "torch", "trl"} <= start["versions"].keys()
        assert start["settings"]["num_iterations"] == 2
        assert start["command"] == command_line(sys.orig_argv)
        assert start["machine"]["cores"] > 0 and start["folder"] == str(Path.cwd())

    @pytest.mark.long
    def test_each_start_has_its_line_and_no_secret(self, make_trainer: Any, tmp_path: Path):
        for steps in (1, 2):
            trainer = make_trainer(
                max_steps=steps, save_strategy="steps", save_steps=1, hub_token="hf_hidden1"
            )
            trainer.train(resume_from_checkpoint="auto")
        assert [start["step"] for start in read_lines(tmp_path / "run" / ENVIRONMENT_FILE)] == [
            0,
            1,
        ]
        text = (tmp_path / "run" / ENVIRONMENT_FILE).read_text()
        assert "hf_hidden1" not in text and '"hub_token": "***"' in text


def test_no_secret_of_a_command_is_kept():
    shown = command_line(["train.py", "--hub_token", "abc", "--judge_key=d", "x=hf_12345678901"])
    assert shown == "train.py --hub_token *** --judge_key=*** 'x=***'"


def test_a_folder_without_a_repository_has_no_commit(tmp_path: Path):
    assert commit_of(tmp_path) is None


def test_settings_that_json_cannot_hold_are_texts(tmp_path: Path):
    from grpo_hf.reporting.environment import settings_of

    args = GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", lr_scheduler_type="cosine"
    )
    settings = settings_of(args)
    assert settings["lr_scheduler_type"] == "cosine" and json.dumps(settings, allow_nan=False)
