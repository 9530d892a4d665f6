"""Tests of what a run shows when it has ended: its comparison, and where its files lie."""

import io
import os
import shlex
import sys
from pathlib import Path

from rich.console import Console

from grpo_hf.evaluation.statistics import compare
from grpo_hf.reporting import report


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
