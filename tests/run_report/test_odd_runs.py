"""Runs that are odd and legal: one step, several resumes, other rewards, very long, huge texts."""

import json
import os
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.callbacks import arguments, state
from support.pages import Page
from support.run_folders import credit_group, metrics, write_evaluation, write_run, write_spike

from grpo_hf.errors import DataError
from grpo_hf.reporting.environment_file import EnvironmentFile
from grpo_hf.reporting.spikes import spikes
from grpo_hf.reporting.token_credit import CREDIT_FILE, Completion, Group
from grpo_hf.run_files import METRICS_FILE, append_lines
from grpo_hf.run_report.curves import phase_curves
from grpo_hf.run_report.page import write_plot, write_report
from grpo_hf.run_report.record import read_run


def log(run: Path, *rows: dict[str, Any]) -> Path:
    append_lines(run / METRICS_FILE, [json.dumps(row) + "\n" for row in rows])
    return run


def page_of(*runs: Path) -> Page:
    return Page(write_report(runs, pictures=False).read_text())


class TestShortRuns:
    def test_a_single_number_lies_where_its_axis_says(self, tmp_path: Path):
        run = log(tmp_path, {"step": 1, "reward": 0.15, "entropy": 1.04})
        html = write_report([run], pictures=False).read_text()
        entropy = html[html.index('id="chart-entropy"') :].partition("</figure>")[0]
        labels = re.findall(r">([\d.]+)</text>", entropy)
        assert "0" in labels and max(map(float, labels)) <= 1.04

    def test_its_steps_are_those_that_it_made(self, tmp_path: Path):
        log(tmp_path, {"step": 5, "reward": 0.1}, {"step": 8, "train_runtime": 3.0})
        assert 'class="value">8<' in write_report([tmp_path], pictures=False).read_text()

    @pytest.mark.long
    def test_it_says_that_the_watch_needs_more_steps(self, tmp_path: Path):
        page = page_of(write_run(tmp_path / "short", steps=8))
        assert "8 logged rollouts" in page.text and "Nothing was found." not in page.text
        # Each was logged, so that no setting would show more of them.
        assert "logs each" not in page.text
        few = log(tmp_path, *({"step": step, "reward": 0.5} for step in (5, 10)))
        assert "--logging_steps 1 logs each" in page_of(few).text

    def test_tiny_numbers_have_an_axis_without_a_row_of_zeros(self, tmp_path: Path):
        run = log(tmp_path, *({"step": s, "reward": 1.0, "entropy": 3e-6 * s} for s in (1, 2)))
        html = write_report([run], pictures=False).read_text()
        entropy = html[html.index('id="chart-entropy"') :].partition("</figure>")[0]
        assert "3e-6" in entropy and ">0.00000" not in entropy

    def test_a_held_out_answer_is_of_no_step(self, tmp_path: Path):
        run = write_run(tmp_path / "run", steps=12)
        rows = []
        for row in range(30):
            sides = {"base": {"answer": f"#### {row}", "right": False}}
            sides["adapter"] = {"answer": "#### 7", "right": False}
            rows.append(json.dumps({"prompt": f"Problem {row}"} | sides) + "\n")
        (run / "evaluation.jsonl").write_text("".join(rows))
        page = page_of(run)
        assert "One answer everywhere" in page.text and "1 (held-out answer)" in page.text

    def test_a_plot_needs_something_to_draw(self, tmp_path: Path):
        run = log(tmp_path, {"step": 1, "loss": 0.5})
        with pytest.raises(DataError, match="neither a reward nor a KL"):
            write_plot(run, tmp_path / "curve.png")


class TestEvaluatedRuns:
    def test_all_rows_of_an_evaluation_are_one(self, tmp_path: Path):
        run = write_run(tmp_path / "run", steps=3)
        # As the trainer logs accuracies, and the second one of two sets.
        log(run, {"step": 3, "eval_accuracy": 0.5}, {"step": 3, "eval_hard_reward": 0.1})
        found = read_run(run, "run")
        assert [row["step"] for row in found.steps] == [1, 2, 3]
        assert all("reward" in row for row in found.steps)
        (evaluated,) = found.evaluated
        assert {"eval_reward", "eval_accuracy", "eval_hard_reward"} <= evaluated.keys()


class TestResumedRuns:
    def test_what_a_resumed_run_has_undone_is_not_its_history(self, tmp_path: Path):
        run = write_run(tmp_path / "run", steps=12)
        log(run, metrics(5) | {"step": 5, "reward": 7.0})
        line = json.dumps(asdict(credit_group(5, "again")))
        append_lines(run / CREDIT_FILE, [line + "\n"])
        found = read_run(run, "run")
        assert [row["step"] for row in found.steps] == [1, 2, 3, 4, 5]
        assert [rollout.step for rollout in found.rollouts] == [1, 2, 3, 4, 5]
        assert found.rollouts[-1].prompt == "again"
        # The summary is that of the training whose end was undone.
        assert found.summary == {} and found.evaluated == []

    def test_its_time_is_that_of_all_starts(self, tmp_path: Path):
        run = write_run(tmp_path / "run", steps=10)
        rows = [metrics(step) | {"step": step, "step_time": 30.0} for step in range(1, 11)]
        (run / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        EnvironmentFile().on_train_begin(arguments(run), state(10), None)
        log(run, metrics(20) | {"step": 20}, {"step": 20, "train_runtime": 100.0})
        text = page_of(run).text
        # Ten steps of 30 s, and 100 s for the ten after them; 20,000 tokens.
        assert "6 min 40 s" in text
        assert "50 tokens/s, with the steps of earlier starts" in text

    def test_a_checkpoint_between_two_lines_is_counted(self, tmp_path: Path):
        run = write_run(tmp_path / "run", steps=5)
        rows = [metrics(step) | {"step": step, "step_time": 30.0} for step in (5, 10)]
        (run / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        EnvironmentFile().on_train_begin(arguments(run), state(7), None)
        log(run, {"step": 10, "train_runtime": 100.0})
        # Seven steps of 30 s, and 100 s for the three after them.
        assert "5 min 10 s" in page_of(run).text

    def test_where_steps_were_not_timed_it_is_that_of_the_last_start(self, tmp_path: Path):
        run = write_run(tmp_path / "run", steps=10)
        rows = [metrics(step) | {"step": step} for step in range(1, 11)]
        for row in rows:
            row.pop("step_time", None)
        (run / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        EnvironmentFile().on_train_begin(arguments(run), state(10), None)
        log(run, metrics(20) | {"step": 20}, {"step": 20, "train_runtime": 100.0})
        text = page_of(run).text
        # 10,000 tokens in 100 s, and not all 20,000.
        assert "1 min 40 s" in text
        assert "100 tokens/s, since step 10" in text and "200 tokens/s" not in text

    def test_each_start_has_its_command(self, tmp_path: Path, monkeypatch):
        run = write_run(tmp_path / "run", steps=10)
        monkeypatch.setattr("sys.orig_argv", ["grpo-hf", "train", "--resume"])
        EnvironmentFile().on_train_begin(arguments(run), state(10), None)
        assert re.search(r"at step 10, \S+: grpo-hf train --resume", page_of(run).text)

    @pytest.mark.long
    def test_old_findings_are_not_those_of_a_run_that_went_on(self, tmp_path: Path):
        run = write_run(tmp_path / "run", steps=12)
        old = {"name": "length", "text": "An old finding.", "strength": 1.0, "samples": []}
        (run / "gaming.json").write_text(json.dumps([old | {"steps": [1, 2]}]))
        assert "An old finding." in page_of(run).text
        os.utime(run / "gaming.json", (1.0, 1.0))
        assert "An old finding." not in page_of(run).text


class TestNumbers:
    def test_large_ones_are_written_out(self, tmp_path: Path):
        row = {"step": 1, "reward": 1.0, "completions/mean_length": 2048.4, "epoch": 123.4}
        text = page_of(log(tmp_path, row)).text
        assert "2,048" in text and "123 epochs" in text and "e+0" not in text

    def test_a_kl_beyond_float_still_has_an_axis(self, tmp_path: Path):
        rows = [{"step": step, "reward": 1.0, "kl": 0.01} for step in range(1, 40)]
        log(tmp_path, *rows, {"step": 40, "reward": 1.0, "kl": 3e38})
        html = write_report([tmp_path], pictures=False).read_text()
        kl = html[html.index('id="chart-kl"') :].partition("</figure>")[0]
        assert max(map(len, re.findall(r">([^<]*)</text>", kl))) < 12


class TestSeveralRuns:
    def test_runs_with_other_numbers_lie_beside_each_other(self, tmp_path: Path):
        one = log(tmp_path / "one", *({"step": s, "reward": 0.1 * s} for s in (1, 2)))
        two = log(
            tmp_path / "two",
            *(
                {
                    "step": s,
                    "reward": s,
                    "rewards/长度/mean": s,
                    "rewards/格式/mean": s,
                    "kl": 0.1 * s,
                }
                for s in (1, 2)
            ),
        )
        page = page_of(one, two)
        ids = page.values("id")
        assert len(ids) == len(set(ids))
        assert "KL of a step, median" in page.text
        assert "Reward: 长度" in page.text and "Reward: 格式" in page.text

    @pytest.mark.long
    def test_charts_of_one_set_say_whose_they_are(self, tmp_path: Path):
        runs = [write_run(tmp_path / name, steps=3) for name in ("one", "two")]
        for run in runs:
            write_evaluation(run, "a set")
        html = write_report(runs).read_text()
        page = Page(html)
        ids = page.values("id")
        assert len(ids) == len(set(ids)) and not any(" " in one for one in ids)
        for run in runs:
            assert f"pass@k and maj@k on a set ({run.name})" in page.text
        pictures = {file.name for file in (runs[0] / "comparison").iterdir()}
        assert {"r1-at_k_a_set.png", "r2-at_k_a_set.png"} <= pictures

    def test_phases_that_begin_later_are_stacked_on_the_others(self, tmp_path: Path):
        rows = [{"step": step, "step_time": 2.0, "time/rollout": 1.0} for step in range(1, 9)]
        for row in rows[4:]:
            row["time/reference"] = 0.5
        log(tmp_path, *rows)
        for curve in phase_curves(read_run(tmp_path, "run")):
            assert [step for step, _ in curve.points] == [float(step) for step in range(1, 9)]


class TestLargeRuns:
    def test_huge_texts_are_cut(self, tmp_path: Path):
        run = log(tmp_path, {"step": 1, "reward": 1.0})
        completion = Completion([" word"] * 60_000, [0.5] * 60_000, [], 1.0)
        group = Group(1, "Q" * 50_000 + " the question?", [completion])
        append_lines(run / CREDIT_FILE, [json.dumps(asdict(group)) + "\n"])
        started = time.process_time()
        page = write_report([run], pictures=False)
        assert time.process_time() - started < 15
        assert page.stat().st_size < 120_000 and "the question?" in page.read_text()

    def test_spikes_of_many_lines_are_found_at_once(self, tmp_path: Path):
        write_spike(tmp_path, step=20_000)
        started = time.process_time()
        (spike,) = spikes(tmp_path)
        assert spike.step == 20_000 and time.process_time() - started < 8


class TestFiles:
    @pytest.mark.parametrize("name", ["page", "v1.2"])
    def test_a_page_may_have_any_name(self, tmp_path: Path, name: str):
        run = log(tmp_path / "run", {"step": 1, "reward": 1.0})
        page = write_report([run], tmp_path / name)
        assert page.is_file() and (tmp_path / f"{name}-pictures" / "rewards.png").is_file()

    def test_rows_without_a_step_are_left_out(self, tmp_path: Path):
        log(tmp_path, {"reward": 1.0}, {"eval_reward": 1.0}, {"step": 1, "reward": 1.0})
        assert "the run has not ended, and stands at step 1" in page_of(tmp_path).text
