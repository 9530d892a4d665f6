"""What each reader makes of files that are as the recipes write them, against numbers made here.

Where a recipe has a function that writes its file, that function writes it.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from support.programs import load_recipe

from benchmarks.experiment_readers import READERS
from first_mistakes.measures import judge
from first_mistakes.traces import Trace
from grpo_hf.evaluation.statistics import Accuracy
from r1_stages.table import EVALUATIONS, SAMPLES_FILE, write_results

# Two-sided 95% of Student's t with two degrees of freedom, from a printed table.
T_OF_THREE = 4.303


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def cells(table: dict[str, Any], column: str) -> list[Any]:
    """Return a column of a table."""
    place = table["columns"].index(column)
    return [row[place] for row in table["rows"]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a run of five steps, and ten held-out problems: 3 right before, 8 after."""
    steps = [
        {"step": n, "reward": n / 10, "kl": n / 100, "rewards/gsm8k/mean": n} for n in range(1, 6)
    ]
    write_lines(tmp_path / "run" / "metrics.jsonl", [*steps, {"train_runtime": 1.0}])
    rows = []
    for problem in range(10):
        base = {"right": problem < 3, "answer": "12"}
        adapter = {"right": problem < 8, "answer": "#### 12" if problem < 6 else "so 12"}
        rows.append({"base": base, "adapter": adapter})
    write_lines(tmp_path / "run" / "evaluation.jsonl", rows)
    return tmp_path


def test_base_and_adapter(run: Path) -> None:
    table = READERS["comparison"](run, runs={"right": "run"})
    ((name, steps, base, adapter, difference),) = table["rows"]
    assert (name, steps) == ("right", 5) and table["signed"] == ["difference (paired)"]
    assert (base["right"], base["total"], base["value"]) == (3, 10, 0.3)
    # Jeffreys' interval: quantiles of Beta(8.5, 2.5), by mpmath's betainc.
    assert (adapter["low"], adapter["high"]) == pytest.approx((0.4972, 0.9559), abs=0.006)
    assert difference["value"] == pytest.approx(0.5)
    assert 0 < difference["low"] < 0.5 < difference["high"] < 1


def test_more_rewards_and_the_length(run: Path) -> None:
    table = READERS["comparison"](run, runs={"right": "run"}, full_marks={"answer_format": "form"})
    assert cells(table, "") == ["right", "form", "mean length, characters"]
    assert [cell["right"] for cell in (table["rows"][1][2], table["rows"][1][3])] == [0, 6]
    # Two characters before; six answers of 7 and four of 5 after, which is 6.2.
    assert table["rows"][2][2:] == [2, 6, None]


def test_blocks_of_steps(run: Path) -> None:
    metrics = {"KL": "kl", "right": "rewards/gsm8k/mean"}
    table = READERS["blocks"](run, run="run", metrics=metrics, size=2)
    assert table["columns"] == ["steps", "KL", "right"]
    assert cells(table, "steps") == ["1–2", "3–4", "5–5"]
    assert cells(table, "KL") == pytest.approx([0.015, 0.035, 0.05])
    assert cells(table, "right") == [1.5, 3.5, 5]
    # Lines that are means of two steps.
    lines = [{"step": step, "reward": 1, "kl": step} for step in (2, 4, 6, 8)]
    write_lines(run / "run" / "metrics.jsonl", lines)
    table = READERS["blocks"](run, run="run", metrics={"KL": "kl"}, size=4)
    assert table["rows"] == [["1–4", 3], ["5–8", 7]]


def test_stages(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / SAMPLES_FILE).write_text("1\n2\n3\n", encoding="utf-8")
    shares = {"math": Accuracy(1, 4, 0.05, 0.7), "language": Accuracy(4, 4, 0.6, 1.0)}
    write_results(tmp_path, dict.fromkeys(EVALUATIONS, shares))
    names = {stage: f"stage {stage}" for stage in EVALUATIONS}
    table = READERS["stages"](tmp_path, run=".", names=names)
    assert table["columns"] == ["stage", "math", "language", "samples learned"]
    assert cells(table, "stage") == list(names.values())
    expected = {"value": 0.25, "low": 0.05, "high": 0.7, "right": 1, "total": 4}
    assert cells(table, "math") == [expected] * 4
    assert cells(table, "samples learned") == [None, None, 3, None]


def test_iterations(tmp_path: Path) -> None:
    policy = {"right": 2, "total": 8, "low": 0.1, "high": 0.6}
    ranked = {"right": 3, "total": 4, "low": 0.3, "high": 0.9}
    first = {"policy": policy, "ranked": None, "pairs": 7, "replayed": 0}
    write(tmp_path / "results.json", [first, {**first, "ranked": ranked, "replayed": 2}])
    table = READERS["iterations"](tmp_path, run=".")
    assert cells(table, "") == ["the policy as it came", "after iteration 1"]
    assert [cell["value"] for cell in cells(table, "right")] == [0.25, 0.25]
    assert cells(table, "r_φ tells fresh pairs apart") == [None, 0.75]
    assert cells(table, "pairs") == [7, 7] and cells(table, "replayed") == [0, 2]


def test_step_values(tmp_path: Path) -> None:
    recipe = load_recipe("math_shepherd")
    scores, values = [[0.9, 0.2, 0.4], [0.7, 0.1]], [[1.0, 0.25, 0.0], [0.75, 0.0]]
    results = {"model": recipe.measured(scores, values)}
    recipe.write_results(tmp_path / recipe.RESULTS, {}, results)
    table = READERS["step_values"](tmp_path, run=".")
    assert cells(table, "steps") == [5, 3]
    expected = np.corrcoef([0.9, 0.2, 0.4, 0.7, 0.1], [1.0, 0.25, 0.0, 0.75, 0.0])[0, 1]
    assert cells(table, "correlation")[0] == pytest.approx(expected)
    # Each of the two good steps is above each of the three bad ones.
    assert cells(table, "AUC")[0] == 1.0


def test_first_mistakes(tmp_path: Path) -> None:
    recipe = load_recipe("process_reward_model")
    train = [Trace("sorting", "?", ("a", "b"), 1)]
    held_out = [Trace("sorting", "?", ("a", "b", "c", "d"), place) for place in (1, 2, 0)]
    # The model says step 1, step 1 and step 0.
    scores = [[5.0, -5.0, 5.0, 5.0], [5.0, -5.0, 5.0, 5.0], [-5.0, 5.0, 5.0, 5.0]]
    settings = argparse.Namespace(output_dir=tmp_path)
    recipe.write_results(judge(train, held_out, scores), settings)
    table = READERS["first_mistakes"](tmp_path, run=".")
    assert cells(table, "task") == ["sorting", "all"] and cells(table, "traces") == [3, 3]
    assert cells(table, "found")[0]["value"] == pytest.approx(2 / 3)
    assert cells(table, "chance") == [0.25, 0.25]
    assert cells(table, "always the last step") == [0, 0]
    assert cells(table, "most frequent place")[0] == pytest.approx(1 / 3)
    # At the first place two right steps score higher than the mistake; at the second is a tie.
    assert cells(table, "same place")[0] == pytest.approx(2.5 / 3)


def test_samples_by_seed(tmp_path: Path) -> None:
    def side(value: float) -> dict[str, Any]:
        by_k = {str(k): {"value": value + k, "low": 0.0, "high": 9.0} for k in (1, 8, 32)}
        return {"pass_at": by_k, "maj_at": by_k}

    for seed in (0, 1):
        summary = {"base": side(seed), "adapter": side(seed + 0.5), "difference": side(0.5)}
        write(tmp_path / f"usual-{seed}" / "evaluations" / "held_out.json", summary)
    runs = {"0": "usual-0", "1": "usual-1"}
    table = READERS["samples"](tmp_path, runs=runs, passes=[1, 32], votes=[8])
    named = [tuple(row[:2]) for row in table["rows"]]
    kinds = ("pass@1", "pass@32", "maj@8")
    assert named == [(kind, seed) for kind in kinds for seed in (0, 1)]
    assert [cell["value"] for cell in cells(table, "base")] == [1, 2, 32, 33, 8, 9]
    assert cells(table, "adapter")[-1] == {"value": 9.5, "low": 0.0, "high": 9.0}


def test_greedy_answers_of_an_evaluation(tmp_path: Path) -> None:
    sides = {}
    for side, value in (("base", 0.1), ("adapter", 0.3), ("difference", 0.2)):
        sides[side] = {"accuracy": {"value": value, "low": 0.0, "high": 0.5}}
    summary = {**sides, "cut": {"base": 7, "adapter": 2, "limit": 128}}
    write(tmp_path / "run" / "evaluations" / "held_out.json", summary)
    table = READERS["evaluations"](tmp_path, runs={"a run": "run"})
    assert table["signed"] == ["difference (paired)"]
    assert [cell["value"] for cell in table["rows"][0][1:4]] == [0.1, 0.3, 0.2]
    assert table["rows"][0][0] == "a run" and table["rows"][0][4:] == [7, 2]


@dataclass(frozen=True)
class Method:
    """A method's final accuracy on each seed, and its updates, tokens and seconds."""

    accuracies: tuple[float, ...]
    updates: int
    tokens: int
    seconds: float


BASE = (0.2, 0.3, 0.1)
METHODS = {
    "rft": Method((0.3, 0.3, 0.3), 5, 900, 9.0),
    "grpo": Method((0.6, 0.5, 0.4), 40, 1000, 20.0),
    "grpo_gain": Method((0.5, 0.6, 0.4), 10, 1100, 10.0),
}


@pytest.fixture
def paradigm(tmp_path: Path) -> Path:
    """A folder as recipes/paradigm.py leaves it, with straight curves from the base's accuracy."""
    # Of two problems, the first is right in every second sample, and the other in none.
    sampled = [[["7", True], ["8", False]] * 2, [["1", False]] * 4]
    for seed, base in enumerate(BASE):
        folder = tmp_path / "run" / f"seed{seed}"
        write(folder / "base.json", {"accuracy": base, "sampled": sampled})
        for name, method in METHODS.items():
            end = {"share": 1.0, "updates": method.updates, "tokens": method.tokens}
            end |= {"seconds": method.seconds, "accuracy": method.accuracies[seed]}
            start = dict.fromkeys(end, 0) | {"accuracy": base}
            result = {"accuracy": method.accuracies[seed], "curve": [start, end]}
            write(folder / f"{name}.json", {**result, "sampled": sampled})
    return tmp_path


def mean_and_half(values: list[float]) -> dict[str, Any]:
    return {
        "value": pytest.approx(fmean(values)),
        "half": pytest.approx(T_OF_THREE * stdev(values) / 3**0.5),
    }


def test_methods_of_the_paradigm(paradigm: Path) -> None:
    table = READERS["paradigm_accuracies"](paradigm, run="run")
    assert cells(table, "method") == ["base", "rft", "grpo", "grpo_gain"]
    assert cells(table, "seeds 0, 1, 2")[2] == [0.6, 0.5, 0.4]
    assert cells(table, "mean, 95%")[2] == mean_and_half([0.6, 0.5, 0.4])
    assert cells(table, "updates") == [None, 5, 40, 10]
    assert cells(table, "tokens") == [None, 900, 1000, 1100]
    assert cells(table, "CPU seconds")[3] == [10, 10, 10]


def test_differences_of_methods(paradigm: Path) -> None:
    table = READERS["paradigm_differences"](paradigm, run="run", paper=["above"])
    assert cells(table, "paired by seed") == ["grpo_gain − grpo"]
    assert cells(table, "at the end") == [mean_and_half([-0.1, 0.1, 0.0])]
    # In 10 s, half of grpo's, it is half of the way up; in 10 of its 40 updates a quarter.
    half = [a - (b + g) / 2 for a, b, g in zip((0.5, 0.6, 0.4), BASE, (0.6, 0.5, 0.4), strict=True)]
    quarter = [
        a - (b + (g - b) / 4)
        for a, b, g in zip((0.5, 0.6, 0.4), BASE, (0.6, 0.5, 0.4), strict=True)
    ]
    assert cells(table, "at equal processor time") == [mean_and_half(half)]
    assert cells(table, "after as many updates") == [mean_and_half(quarter)]
    assert cells(table, "the paper's figure 5") == ["above"]


def test_curves_of_the_paradigm(paradigm: Path) -> None:
    table = READERS["paradigm_curves"](paradigm, run="run")
    # The base has no curve.
    assert [row[:2] for row in table["rows"]][:3] == [["rft", 0], ["rft", 1], ["rft", 2]]
    assert table["rows"][3][2:] == [[0.2, 0.6], 40, 1000, [20]]


def test_samples_of_the_paradigm(paradigm: Path) -> None:
    table = READERS["paradigm_samples"](paradigm, run="run", passes=[1, 2], votes=[1])
    assert cells(table, "mean over seeds") == ["pass@1", "pass@2", "maj@1"]
    # Of the first problem's six pairs of samples one is wrong twice; the second problem adds 0.
    expected = [0.25, (1 - 1 / 6) / 2, 0.25]
    assert [cell["value"] for cell in cells(table, "grpo")] == pytest.approx(expected)
    assert cells(table, "base")[0]["half"] == 0


def test_columns_without_a_number_are_left_out(paradigm: Path) -> None:
    for folder in (paradigm / "run").glob("seed*"):
        for name in ("rft", "grpo_gain"):
            (folder / f"{name}.json").unlink()
    table = READERS["paradigm_differences"](paradigm, run="run")
    assert table == {"columns": [], "signed": [], "rows": []}
    table = READERS["comparison"](one_run_without_steps(paradigm), runs={"right": "bare"})
    assert table["columns"] == ["", "base", "adapter", "difference (paired)"]


def one_run_without_steps(folder: Path) -> Path:
    sides = {side: {"right": True, "answer": ""} for side in ("base", "adapter")}
    write_lines(folder / "bare" / "evaluation.jsonl", [sides] * 4)
    write_lines(folder / "bare" / "metrics.jsonl", [{"train_runtime": 1.0}])
    return folder
