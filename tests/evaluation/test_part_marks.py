"""What answers earn beside full marks: where it is counted, and who says it."""

import json

import pytest

from grpo_hf.evaluation.part_marks import PartMarks
from grpo_hf.reporting.card_tables import answer_lines
from grpo_hf.run_report.facts import Interval, Result
from grpo_hf.run_report.verdict import verdict

MOSTLY = [(0.3, 1.0)] * 4 + [(0.0, 1.0)] * 3 + [(1.0, 1.0), (0.3, 0.0)]


def test_means_and_gains_are_counted_by_hand():
    part = PartMarks.count([*MOSTLY, (None, 1.0), (0.3, None)])
    assert part is not None and (part.gained, part.gained_part) == (7, 4)
    assert part.base == pytest.approx((0.3 * 5 + 1.0) / 9) and part.adapter == pytest.approx(8 / 9)
    assert "of the 7 answers that became right, 4 of the base's" in part.doubt
    assert PartMarks.of(json.loads(json.dumps(part.as_dict()))) == part


@pytest.mark.parametrize(
    "values", [[], [(0.0, 1.0), (1.0, 0.0)], [(-1.0, 1.0)], [(None, 0.5)]], ids=str
)
def test_of_all_or_nothing_there_is_nothing_to_say(values):
    assert PartMarks.count(values) is None


def test_few_that_earned_a_part_before_are_no_doubt():
    part = PartMarks.count([(0.3, 1.0)] * 2 + [(0.0, 1.0)] * 3)
    assert part is not None and part.doubt == ""


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
    (line,) = answer_lines({"part": part.as_dict(), **interval}, [])
    assert line.startswith("Held-out prompts: mean reward: base 0.278, adapter 0.889; of the 7")
