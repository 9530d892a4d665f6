"""What a page says first: is the adapter better, and how sure is that?"""

from typing import Any

import pytest

from grpo_hf.run_report.facts import HELD_OUT, Interval, Result
from grpo_hf.run_report.verdict import verdict

HINT = "grpo-hf eval RUN --samples 8"


def result(
    low: float, high: float, name: str = HELD_OUT, *, sampled: tuple[float, float] | None = None
) -> Result:
    """A greedy comparison of 60 prompts, with pass@1 of samples where they are given."""
    middle = (low + high) / 2
    base, adapter = Interval(0.9, 0.8, 1.0), Interval(0.9 + middle, 0.8, 1.0)
    summary: dict[str, Any] | None = None
    if sampled is not None:
        values = {"base": sampled[0], "adapter": sampled[1], "difference": sampled[1] - sampled[0]}
        summary = {}
        for part, value in values.items():
            row = {"value": value, "low": value - 0.1, "high": value + 0.1}
            summary[part] = {"pass_at": {"1": row}}
    difference = Interval(middle, low, high)
    return Result(name, 60, base, adapter, difference, [], [], summary)


def test_where_greedy_answers_cannot_tell_samples_do() -> None:
    """A run of a user: 57 of 60 against 60, and 0.356 against 0.958 where answers are sampled."""
    said = verdict([result(-0.01, 0.11, sampled=(0.356, 0.958))])
    assert "That is no difference that so few prompts can show." in said
    assert "Of answers that are sampled, 35.6% of the base's answers are right and 95.8%" in said
    assert "+60.2 points, 95% interval +50.2 to +70.2." in said
    assert HINT not in said


def test_samples_of_a_later_evaluation_of_the_same_prompts_count() -> None:
    later = result(-0.01, 0.11, f"{HELD_OUT}, by grpo-hf eval", sampled=(0.3, 0.9))
    other = result(0.1, 0.2, "svamp", sampled=(0.1, 0.2))
    assert "30.0% of the base's" in verdict([result(-0.01, 0.11), other, later])
    # Another set says nothing of these prompts.
    assert HINT in verdict([result(-0.01, 0.11), other])


@pytest.mark.parametrize(("low", "high", "word"), [(0.02, 0.1, "better"), (-0.2, -0.1, "worse")])
def test_a_difference_needs_no_samples(low: float, high: float, word: str) -> None:
    said = verdict([result(low, high, sampled=(0.3, 0.9))])
    assert f"The adapter is {word}." in said and "sampled" not in said
