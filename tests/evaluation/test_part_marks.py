"""What answers earn beside full marks: where it is counted, and who says it."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.run_folders import write_run

from grpo_hf.evaluation.comparison import GreedyAnswers, compare_answers, write_answers
from grpo_hf.evaluation.cut_answers import CutAnswers, Marked
from grpo_hf.evaluation.part_marks import PartMarks
from grpo_hf.reporting.card_tables import answer_lines
from grpo_hf.run_files import HELD_OUT_SET
from grpo_hf.run_report.facts import Interval, Result, results_of
from grpo_hf.run_report.record import read_run
from grpo_hf.run_report.verdict import verdict
from grpo_hf.scoring.outcomes import Failure, Outcome

MOSTLY = [(0.3, 1.0)] * 4 + [(0.0, 1.0)] * 3 + [(1.0, 1.0), (0.3, 0.0)]


def test_means_and_gains_are_counted_by_hand():
    # What could not be judged was not right.
    part = PartMarks.count([*MOSTLY, (None, 1.0), (0.3, None), (1.0, None)])
    assert part is not None and (part.gained, part.gained_part) == (8, 4)
    assert part.base == pytest.approx((0.3 * 5 + 1.0) / 9) and part.adapter == pytest.approx(8 / 9)
    assert "of the 8 answers that became right, 4 of the base's" in part.doubt(0.1)
    assert PartMarks.of(json.loads(json.dumps(part.as_dict()))) == part


@pytest.mark.parametrize(
    "values", [[], [(0.0, 1.0), (1.0, 0.0)], [(-1.0, 1.0)], [(None, 0.5), (None, 1.0)]], ids=str
)
def test_of_all_or_nothing_there_is_nothing_to_say(values):
    assert PartMarks.count(values) is None


def test_few_that_earned_a_part_before_are_no_doubt():
    part = PartMarks.count([(0.3, 1.0)] * 2 + [(0.0, 1.0)] * 3)
    assert part is not None and part.doubt(0.1) == ""


def test_only_a_gain_is_in_doubt():
    part = PartMarks.count(MOSTLY)
    assert part is not None and part.doubt(0.0) == "" and part.said(-0.1) == part.line
    assert part.said(0.1) == f"{part.line}; {part.doubt(0.1)}"


def test_a_prompt_on_which_the_reward_failed_became_right_for_nobody(tmp_path: Path):
    values: dict[str, list[Any]] = {"base": [0.3, 0.3, 0.0], "adapter": [1.0, 1.0, 0.2]}
    sides = {}
    for side, earned in values.items():
        outcomes = [Outcome(value) for value in earned]
        if side == "base":
            outcomes.append(Outcome(None, Failure("timeout", "it took more than 1 s")))
        else:
            outcomes.append(Outcome(1.0))
        sides[side] = GreedyAnswers(["8"] * 4, outcomes, [False] * 4, 34)
    found = compare_answers(**sides)
    assert found is not None and found.part is not None
    assert found.part.as_dict() == pytest.approx(
        {"base": 0.2, "adapter": 2.2 / 3, "gained": 2, "gained_part": 2}
    )
    run = write_run(tmp_path / "run")
    write_answers(run / "evaluation.jsonl", ["?"] * 4, sides)
    (result,) = results_of(read_run(run, "run"))
    assert result.problems == 3 and result.part == found.part


@pytest.mark.parametrize("row", [None, {}, {"base": "x"}, {"base": 1.0, "adapter": 1.0}], ids=str)
def test_files_of_another_form_hold_none(row):
    assert PartMarks.of(row) is None


def test_the_verdict_and_the_card_say_it():
    part = PartMarks.count(MOSTLY)
    assert part is not None
    sides = Interval(0.1, 0.0, 0.2), Interval(0.9, 0.8, 1.0), Interval(0.8, 0.6, 0.9)
    result = Result("held-out prompts", 9, *sides, [], [], None, part=part)
    said = verdict([result])
    assert "The adapter is better. Mean reward: base 0.278, adapter 0.889; of the 7" in said
    interval = {"low": 0.6, "high": 0.9}
    found = {"part": part.as_dict(), **interval}
    (line,) = answer_lines(found, [])
    assert line.startswith("Held-out prompts: mean reward: base 0.278, adapter 0.889; of the 7")
    assert answer_lines(found | {"low": -0.1}, []) == []


def test_the_verdict_says_what_a_reward_without_full_marks_pays():
    none = Interval(0.0, 0.0, 0.1)
    part = PartMarks.count([(0.2, 0.6)] * 9)
    result = Result("held-out prompts", 9, none, none, none, [], [], None, part=part)
    said = verdict([result])
    assert "gives its full mark, 1.0, to no answer, so this says nothing" in said
    assert "which are right. Mean reward: base 0.200, adapter 0.600." in said


def test_the_card_says_once_what_an_evaluation_says_again():
    """With `eval_samples`, a run compares the greedy answers to its held-out prompts twice."""
    part = PartMarks.count(MOSTLY)
    cut = CutAnswers.count([Marked(True, True, True, False)], 34)
    assert part is not None
    interval = {"low": 0.6, "high": 0.9}
    results = {"part": part.as_dict(), "cut": cut.as_dict(), **interval}
    summary = {"set": HELD_OUT_SET, "problems": 9, "difference": {"accuracy": interval}}
    again = summary | {"part_marks": part.as_dict(), "cut": cut.as_dict()}
    assert answer_lines(results, [again]) == answer_lines(results, [])
    # With more room it found something else.
    longer = again | {"cut": cut.as_dict() | {"limit": 136}}
    names = [line.partition(":")[0] for line in answer_lines(results, [longer])]
    assert names == ["Held-out prompts"] * 3
