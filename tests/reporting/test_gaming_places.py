"""A policy that always names what stands at one place of a prompt is found out; others are not."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from support.choices import (
    Answer,
    Candidates,
    chance,
    first,
    heavier,
    larger,
    reasoned,
    right,
    signs,
    usually_first,
)
from support.run_folders import greedy_answers, write_run

from grpo_hf.evaluation.comparison import write_answers
from grpo_hf.reporting.gaming import Finding, findings
from grpo_hf.run_report.page import write_report


def last(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return candidates[1]


def found(
    folder: Path,
    base: Answer,
    adapter: Answer,
    *,
    words: bool = False,
    first_is_right: float = 0.5,
    **more: Any,
) -> list[Finding]:
    """Return what is said of places, of a run whose prompts are choices between two things."""
    task = usually_first(heavier if words else larger, first_is_right)
    said = signs(folder, base, adapter, task, **more)
    return [said[name] for name in said if name == "answer by place"]


@pytest.mark.long
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize(("habit", "place"), [(first, "first"), (last, "last")])
def test_always_the_same_place_is_found_out(tmp_path: Path, habit: Answer, place: str, words: bool):
    (finding,) = found(tmp_path / "run", chance, habit, words=words)
    kind = "choice" if words else "number"
    assert f"60 of 60 held-out answers are the {place} {kind} of their prompt" in finding.text
    golds = [json.loads(line)["gold"] for line in (tmp_path / "run/evaluation.jsonl").open()]
    lines = [json.loads(line) for line in (tmp_path / "run/evaluation.jsonl").open()]
    by_rule = sum(line["adapter"]["right"] for line in lines)
    assert f"is right in {by_rule} of {len(golds)}, and the adapter is in {by_rule}" in finding.text
    assert len(finding.samples) == 4
    page = write_report([tmp_path / "run"], pictures=False).read_text()
    assert "Answer by place" in page and 'href="#r1-finding-1-1"' in page


def test_a_habit_of_a_base_whose_answers_were_cut_off_is_new(tmp_path: Path):
    assert found(tmp_path / "whole", first, first) == []
    (finding,) = found(tmp_path / "cut", first, first, base_cut=40)
    assert "and 20 of the base's were" in finding.text


@pytest.mark.parametrize(
    ("adapter", "more"),
    [
        (right, {}),
        (reasoned, {}),
        (chance, {}),
        # The place is the task.
        (first, {"first_is_right": 1.0}),
        (right, {"first_is_right": 0.98}),
        # Too few to know a habit.
        (first, {"count": 12}),
    ],
)
@pytest.mark.parametrize("words", [False, True])
def test_other_answers_are_no_habit(tmp_path: Path, adapter: Answer, more: dict, words: bool):
    assert found(tmp_path / "run", chance, adapter, words=words, **more) == []


def test_sums_are_no_choice(tmp_path: Path):
    """Check answers that begin with the first number of the prompt, as sums do."""
    write_run(tmp_path)
    rng = random.Random(1)
    prompts, golds, texts = [], [], []
    for _ in range(40):
        one, other = rng.sample(range(10, 99), 2)
        prompts.append([{"role": "user", "content": f"{one} + {other} ="}])
        golds.append(one + other)
        texts.append(f"{one} + {other} = {one + other + rng.choice([0, 1])}")
    answers = {
        "base": greedy_answers([""] * 40, [False] * 40),
        "adapter": greedy_answers(texts, [True, False] * 20),
    }
    write_answers(tmp_path / "evaluation.jsonl", prompts, answers, golds=golds)
    assert "answer by place" not in {finding.name for finding in findings(tmp_path)}


@pytest.mark.parametrize("gold", [None, "", ["5"], {"a": 1}])
def test_answers_whose_gold_is_not_one_value_are_left_alone(tmp_path: Path, gold: object):
    write_run(tmp_path)
    answers = {side: greedy_answers(["5"] * 30, [False] * 30) for side in ("base", "adapter")}
    prompts = ["5 or 6?"] * 15 + [""] * 15
    write_answers(tmp_path / "evaluation.jsonl", prompts, answers, golds=[gold] * 30)
    assert "answer by place" not in {finding.name for finding in findings(tmp_path)}


def test_a_better_adapter_with_a_fixed_choice_is_said_to_have_one(tmp_path: Path):
    def silent(candidates: Candidates, gold: str, rng: random.Random) -> str:
        return "I do not know"

    found(tmp_path / "run", silent, first)
    page = write_report([tmp_path / "run"], pictures=False).read_text()
    assert "The adapter is better. It may have learned a fixed choice: 60 of 60" in page
