"""Answers that were cut off are counted, and a difference that they explain is in doubt."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from support.run_folders import greedy_answers, write_run

from grpo_hf.evaluation.comparison import GreedyAnswers, compare_answers, write_answers
from grpo_hf.evaluation.cut_answers import CutAnswers
from grpo_hf.evaluation.summary_text import report_of
from grpo_hf.reporting import report
from grpo_hf.reporting.card_tables import answer_lines
from grpo_hf.reporting.gaming import findings
from grpo_hf.run_report.facts import results_of
from grpo_hf.run_report.page import write_report
from grpo_hf.run_report.record import read_run
from grpo_hf.run_report.verdict import verdict

# Of 60 prompts the base solves 20 and the adapter 41: 21 became right.
RIGHT = {"base": [True] * 20 + [False] * 40, "adapter": [True] * 41 + [False] * 19}
# 18 of those 21 were cut off before, or 3.
ENDS, LEARNS = [True] * 38 + [False] * 22, [True] * 23 + [False] * 37
WORDS = "this gain may be only that answers end: of the 21 answers that became right, 18 of the"
LINE = "cut off at 34 tokens: base 38 of 60, adapter 2 of 60"


def answers(base_cut: list[bool]) -> dict[str, GreedyAnswers]:
    cut = {"base": base_cut, "adapter": [False] * 58 + [True] * 2}
    return {side: greedy_answers(["8"] * 60, RIGHT[side], cut[side]) for side in cut}


def run_with(folder: Path, base_cut: list[bool]) -> Path:
    write_run(folder)
    prompts = [[{"role": "user", "content": f"Problem {row}"}] for row in range(60)]
    write_answers(folder / "evaluation.jsonl", prompts, answers(base_cut))
    return folder


def test_a_terminal_says_what_was_cut_off_and_what_to_do():
    shown = Console(file=io.StringIO(), width=200, highlight=False)
    report.show(compare_answers(**answers(ENDS)), "runs/a b", "gsm8k", shown)
    said = shown.file.getvalue()
    assert LINE in said and f"note: {WORDS}" in said
    assert "grpo-hf eval 'runs/a b' --max_completion_length 136" in said


def test_a_terminal_says_nothing_where_nothing_was_cut_off():
    shown = Console(file=io.StringIO(), width=200, highlight=False)
    none = {side: replace(found, cut=[False] * 60) for side, found in answers(ENDS).items()}
    report.show(compare_answers(**none), "runs/a", "gsm8k", shown)
    assert "cut off" not in shown.file.getvalue()


@pytest.mark.long
@pytest.mark.parametrize(("base_cut", "is_in_doubt"), [(ENDS, True), (LEARNS, False)])
def test_the_verdict_is_in_doubt_where_answers_only_end(
    tmp_path: Path, base_cut: list[bool], is_in_doubt: bool
):
    run = run_with(tmp_path / "run", base_cut)
    said = verdict(results_of(read_run(run, "run")))
    assert ".." not in said
    assert "The adapter is better" in said
    assert (WORDS in said) == is_in_doubt
    assert ("grpo-hf eval RUN --max_completion_length 136" in said) == is_in_doubt
    page = write_report([run], pictures=False).read_text()
    assert f"cut off at 34 tokens: base {sum(base_cut)} of 60, adapter 2 of 60" in page
    # Five answers of each kind are shown, and the first of each was cut off.
    assert page.count("<b>base, cut off before its end</b>") >= 5
    assert "<b>adapter</b>" in page
    assert ("Answers that end" in page) == is_in_doubt
    named = {finding.name: finding for finding in findings(run)}
    assert ("answers that end" in named) == is_in_doubt
    if is_in_doubt:
        finding = named["answers that end"]
        assert "18 of the base's were cut off" in finding.text and finding.samples


def test_a_run_that_sets_no_limit_ends_with_its_comparison():
    """`max_completion_length: null` is legal, and the model's own limit is not known here."""
    none = {side: replace(found, limit=None) for side, found in answers(ENDS).items()}
    found = compare_answers(**none)
    assert found is not None and found.low > 0
    shown = Console(file=io.StringIO(), width=200, highlight=False)
    report.show(found, "runs/a", "gsm8k", shown)
    assert "cut off" not in shown.file.getvalue()


def test_a_loss_is_in_doubt_where_answers_no_longer_end():
    marks = [(True, False)] * 9 + [(True, True)] * 11
    base, adapter = zip(*marks, strict=True)
    cut = [True] * 8 + [False] * 12
    found = compare_answers(
        greedy_answers(["8"] * 20, base), greedy_answers(["8"] * 20, adapter, cut)
    )
    assert found.high < 0
    assert "of the 9 answers that became wrong, 8 were cut off at 34 tokens" in found.doubt


def test_a_set_of_an_evaluation_and_the_card_say_the_same():
    found = compare_answers(**answers(ENDS)).as_dict()
    (line,) = answer_lines(found, [])
    assert line.startswith(f"Held-out prompts: {LINE}. Beware: {WORDS}")
    share = {"value": 0.3, "low": 0.1, "high": 0.5}
    summary = {"set": "sums", "problems": 60, "reward": "gsm8k", "samples": 0, "by_category": {}}
    sides = {name: {"accuracy": share} for name in ("base", "adapter", "difference")}
    summary |= {"flips": {"gained": [], "lost": []}, "cut": found["cut"]} | sides
    shown = Console(file=io.StringIO(), width=300)
    shown.print(report_of(summary, Path("runs/a b/evaluations")))
    assert "grpo-hf eval 'runs/a b' --max_completion_length 136" in shown.file.getvalue()
    assert LINE in shown.file.getvalue() and WORDS in shown.file.getvalue()
    assert answer_lines({}, [summary])[0].startswith(f"sums: {LINE}. Beware: {WORDS}")


@pytest.mark.parametrize("row", [None, 3, {}, {"limit": "many"}])
def test_a_file_of_another_version_holds_none(row: object):
    assert CutAnswers.of(row) is None
