"""What a page says first: is the adapter better, and how sure is that?"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.run_folders import write_evaluation, write_run

from grpo_hf.run_report.facts import HELD_OUT, HELD_OUT_SET, Interval, Result, results_of
from grpo_hf.run_report.page import write_report
from grpo_hf.run_report.record import read_run
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
        summary = {"set": HELD_OUT_SET if name.startswith("held") else name}
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


@pytest.mark.long
def test_a_run_that_goes_on_is_not_told_that_nothing_was_evaluated(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "not known" not in main_sentence(run)
    (run / "evaluation.jsonl").unlink()
    assert "not known: nothing was evaluated" in main_sentence(run)
    log = run / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))
    assert "not known yet: the run has not ended, and stands at step 4" in main_sentence(run)


def main_sentence(run: Path) -> str:
    """The first sentences of the page of a run."""
    page = write_report([run], run / "page.html", pictures=False)
    found = re.search(r'<p class="verdict">(.*?)</p>', page.read_text(), re.DOTALL)
    page.unlink()
    assert found is not None
    return " ".join(found[1].split())


def test_samples_of_a_later_evaluation_of_the_same_prompts_count(tmp_path: Path) -> None:
    """`grpo-hf eval RUN --samples 4 --limit 2`, after a comparison that is open."""
    run = write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    for row in rows:
        row["base"]["right"] = row["adapter"]["right"]
    rows[0]["base"]["right"] = not rows[0]["adapter"]["right"]
    (run / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert HINT in verdict(results_of(read_run(run, "run")))
    write_evaluation(run, "held_out")
    file = run / "evaluations" / "held_out.json"
    summary = json.loads(file.read_text())
    summary["difference"]["pass_at"] = {"1": {"value": 0.2, "low": 0.1, "high": 0.3}}
    file.write_text(json.dumps(summary))
    said = verdict(results_of(read_run(run, "run")))
    assert "45.0% of the base's answers are right and 65.0%" in said and HINT not in said


def test_another_set_says_nothing_of_these_prompts() -> None:
    other = result(0.1, 0.2, "svamp", sampled=(0.1, 0.2))
    assert HINT in verdict([result(-0.01, 0.11), other])


@pytest.mark.parametrize(
    ("golds", "answer", "said"),
    [
        # 19 of 20 are right, which is at least 0.785 of such prompts.
        (["a"] * 8 + ["b"] * 7 + ["c"] * 5, "A or b.", 'saying "a" would be right for 40.0%.'),
        (["Yes", "yes"] * 8 + ["no"] * 4, "Yes!", "right for 80.0%, and nothing shows that the"),
        # What is right does not say them: a limit of words, a word that is forbidden.
        ([20] * 12 + [30] * 8, "Short.", ""),
        (["sorry"] * 20, "Of course.", ""),
        # Five different answers, one of which has to come first.
        ([str(place) for place in range(4)] + ["9"] * 1, "9", ""),
        ([str(place) for place in range(20)], "1", ""),
        (["a"] * 8 + [None] * 12, "a", ""),
        (["work\n#### 7"] * 12 + ["work\n#### 8"] * 8, "work\n#### 7", ""),
        ([["a"]] * 12 + [["b"]] * 8, "a", ""),
    ],
)
def test_what_one_answer_to_everything_would_get(
    tmp_path: Path, golds: list[Any], answer: str, said: str
) -> None:
    """Of tickets for four teams a third was for one, which no page said."""
    run = write_run(tmp_path / "run")
    answers = []
    for place, gold in enumerate(golds):
        sides = {"base": {"answer": "?", "right": False}, "adapter": {"answer": answer}}
        sides["adapter"]["right"] = place > 0
        answers.append(json.dumps({"prompt": str(place), "gold": gold, **sides}) + "\n")
    (run / "evaluation.jsonl").write_text("".join(answers))
    found = verdict(results_of(read_run(run, "run")))
    assert said in found if said else "Always" not in found


@pytest.mark.parametrize(("low", "high", "word"), [(0.02, 0.1, "better"), (-0.2, -0.1, "worse")])
def test_a_difference_needs_no_samples(low: float, high: float, word: str) -> None:
    said = verdict([result(low, high, sampled=(0.3, 0.9))])
    assert f"The adapter is {word}." in said and "sampled" not in said
