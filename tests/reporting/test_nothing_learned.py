"""A run of which no completion earned anything says so wherever it is asked whether it worked."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from support.callbacks import arguments, state
from support.run_folders import greedy_answers, metrics, write_run

from grpo_hf.evaluation.comparison import compare_answers, write_answers
from grpo_hf.reporting import report
from grpo_hf.reporting.metrics_file import MetricsFile, read_metrics
from grpo_hf.reporting.model_card import _limits
from grpo_hf.reporting.nothing_learned import why_nothing_was_learned
from grpo_hf.run_report.page import write_report

ZERO = {"reward": 0.0, "reward_std": 0.0}
CUT = {"completions/clipped_ratio": 0.75}
SAID = (
    "Nothing was learned: no completion of any logged step earned anything, and 75% of them were "
    "cut off at max_completion_length before their end."
)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ZERO] * 9, "earned anything."),
        ([ZERO | CUT] * 9, "75% of them were cut off"),
        # As a file keeps NaN: no reward judged any.
        ([{"reward": None, "reward_std": None}] * 9, "has a reward."),
        ([ZERO] * 8 + [{"reward": 0.01, "reward_std": 0.1}], ""),
        # Penalties and rewards that cancel out.
        ([{"reward": 0.0, "reward_std": 0.4}] * 9, ""),
        ([{"reward": -1.0, "reward_std": 0.0}] * 9, ""),
        ([ZERO | {"rewards/mine/steps": 2.0}] * 9, ""),
        ([], ""),
        ([{"loss": 0.1}], ""),
    ],
)
def test_only_a_run_that_earned_nothing_has_learned_nothing(rows: list, said: str):
    found = why_nothing_was_learned(rows)
    assert (said in found) if said else found == ""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose reward is 0 in all of its steps."""
    folder = write_run(tmp_path / "a run")
    (folder / "metrics.jsonl").unlink()
    args, file = arguments(folder), MetricsFile()
    file.on_train_begin(args, state(0), None)
    for step in range(1, 13):
        names = ("rewards/gsm8k/mean", "rewards/answer_format/mean")
        logs = metrics(step) | ZERO | CUT | dict.fromkeys(names, 0.0)
        file.on_log(args, state(step), None, logs=logs)
    write_answers(folder / "evaluation.jsonl", ["?"] * 20, answers())
    return folder


def answers():
    return {side: greedy_answers(["5"] * 20, [False] * 20) for side in ("base", "adapter")}


def test_its_end_names_what_to_look_at(run: Path):
    shown = Console(file=io.StringIO(), width=100, highlight=False)
    report.show(compare_answers(**answers()), run, "gsm8k", shown)
    said = shown.file.getvalue()
    assert f"note: {SAID}" in said
    assert "--eval_reward" not in said
    after = said.partition("next:")[2]
    assert f"grpo-hf rewards check '{run}'/recipe.yaml" in after
    assert f"grpo-hf credit '{run}'" in after
    for command in ("chat", "export", "push", "from_pretrained"):
        assert command not in after


def test_its_report_says_so_and_nothing_is_green(run: Path):
    page = write_report([run], pictures=False).read_text()
    assert f'<p class="verdict">{SAID}' in page
    assert "There was nothing to game. Nothing was learned" in page
    assert "Nothing was found" not in page and "so few prompts" not in page


def test_its_card_says_so(run: Path):
    limits = _limits(run, {"results": {}})
    assert SAID in limits


def test_a_run_that_learned_is_asked_for_nothing_of_that(tmp_path: Path):
    run = write_run(tmp_path / "run")
    assert why_nothing_was_learned(read_metrics(run)) == ""
    assert "Nothing was learned" not in write_report([run], pictures=False).read_text()
    assert "Nothing was learned" not in " ".join(_limits(run, {"results": {}}))
