"""Tests of what a run shows when it has ended: its comparison, and where its files lie."""

import io
import json
import os
import shlex
import sys
from pathlib import Path

from rich.console import Console

from grpo_hf.config import GRPOConfig
from grpo_hf.evaluation.statistics import compare
from grpo_hf.reporting import report
from grpo_hf.reporting.failed_rewards import LEFT_OUT
from grpo_hf.reporting.model_card import write_model_card
from grpo_hf.run_context import CardFacts
from grpo_hf.run_report.page import write_report


def test_the_report_shows_the_comparison_and_where_everything_lies():
    folder = "runs/[bold]demo"
    # 9 answers get better, 4 get worse, and 27 stay as they are.
    comparison = compare(
        [False] * 9 + [True] * 4 + [True] * 14 + [False] * 13,
        [True] * 9 + [False] * 4 + [True] * 14 + [False] * 13,
    )
    shown = Console(file=io.StringIO(), width=100, highlight=False)
    report.show(comparison, folder, "gsm8k", shown)
    text = shown.file.getvalue()
    assert (
        "18/40" in text and "23/40" in text and "+0.125" in text and "40 held-out prompts" in text
    )
    for name in ("", "/metrics.jsonl", "/evaluation.jsonl"):
        assert f"runs/[bold]demo{name}\n" in text

    shown = Console(file=io.StringIO(), width=100, highlight=False)
    report.show(None, folder, "gsm8k", shown)
    assert (
        "evaluation.jsonl" not in shown.file.getvalue() and "accuracy" not in shown.file.getvalue()
    )


def test_names_of_rewards_are_no_markup():
    shown = Console(file=io.StringIO(), width=120, highlight=False)
    wrong = [False] * 6
    report.show(compare(wrong, wrong), "runs/demo", "mine.py:judge[/red][bold]", shown)
    assert shown.file.getvalue().count("mine.py:judge[/red][bold]") == 2


def test_too_few_prompts_are_not_blamed_on_the_reward():
    shown = Console(file=io.StringIO(), width=120, highlight=False)
    report.show(compare([False], [False]), "runs/demo", "gsm8k", shown)
    said = shown.file.getvalue()
    assert "note: 1 held-out prompt is too few to say anything" in said
    assert "Name another reward" not in said


def test_a_run_ends_with_the_commands_that_go_on_with_it(tmp_path: Path):
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "adapter_config.json").touch()
    shown = Console(file=io.StringIO(), width=60, highlight=False)
    report.show(None, folder, "gsm8k", shown)
    lines = shown.file.getvalue().splitlines()
    for command in ("chat", "eval", "report", "export", "push"):
        (line,) = (line for line in lines if line.startswith(f"  grpo-hf {command} "))
        assert shlex.split(line)[2] == str(folder), "it cannot be copied"
    assert f'AutoPeftModelForCausalLM.from_pretrained("{folder}")' in lines[-1]
    (folder / "adapter_config.json").unlink()
    assert "AutoModelForCausalLM" in report.next_steps(folder)[-1], "a whole model was trained"


def test_output_that_nobody_can_take_costs_no_push(monkeypatch):
    # As with a pipe whose reader has left: rich alone would end the process with exit code 1.
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        report.show(None, "runs/demo", "gsm8k")
        assert sys.stdout is not output
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())


def test_prompts_that_were_trained_on_are_named_below_the_table():
    shown = Console(file=io.StringIO(), width=100)
    found = compare([True] * 20 + [False] * 20, [True] * 40)
    report.show(found, "runs/demo", "gsm8k", shown, in_training=40)
    assert "40 of 40 held-out prompts are also in the training data." in shown.file.getvalue()


def test_a_reward_that_failed_is_named_at_the_end_on_the_page_and_on_the_card(tmp_path: Path):
    rows = [
        {"step": 1, "reward": 0.2, "reward_std": 0.1, "rewards/tests/failed": 0.25}
        | {"rewards/tests/failed/time_limit": 0.25, "rewards/form/failed": 0.0},
        {"step": 2, "reward": 0.2, "reward_std": 0.1, "rewards/tests/failed": 0.5}
        | {"rewards/tests/failed/exception": 0.5, "rewards/form/failed": 0.0},
        {"step": 3, "reward": 0.4, "rewards/tests/failed": 0.0, "rewards/form/failed": None},
        {"step": 3, "eval_reward": 0.4, "eval_rewards/tests/failed": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = Console(file=io.StringIO(), width=120, highlight=False)
    report.show(None, tmp_path, "tests", shown)
    said = (
        "The reward tests failed on 25.0% of the completions (time limit, exception), in 2 of 3 "
        "logged steps."
    )
    assert f"note: {said} {LEFT_OUT} {tmp_path}/failures.jsonl" in shown.file.getvalue()
    assert "form" not in shown.file.getvalue()
    assert said in write_report([tmp_path], pictures=False).read_text()
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    facts = CardFacts("org/base", "data", [], None, has_adapter=False, steps=3)
    write_model_card(tmp_path, facts, args, {})
    assert f"- {said}\n" in (tmp_path / "README.md").read_text()
