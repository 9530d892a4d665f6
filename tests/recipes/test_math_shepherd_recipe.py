"""Test recipes/math_shepherd.py: its measures against brute force, and a short run."""

import itertools
import json
import math
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from peft import AutoPeftModelForSequenceClassification
from support.programs import load_recipe


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("math_shepherd")


def test_correlation_and_auc_against_brute_force(recipe: ModuleType) -> None:
    chance = random.Random(0)
    values = [chance.choice([0.0, 0.25, 0.5, 0.75, 1.0]) for _ in range(60)]
    # Rounded, so that some scores are equal.
    scores = [round(value + chance.gauss(0, 0.6), 1) for value in values]
    assert recipe.pearson(scores, values) == pytest.approx(np.corrcoef(scores, values)[0, 1])
    won = []
    for i, j in itertools.product(range(60), repeat=2):
        if values[i] > 0.5 > values[j]:
            won.append((np.sign(scores[i] - scores[j]) + 1) / 2)
    assert recipe.auc(scores, values) == pytest.approx(sum(won) / len(won))
    assert recipe.pearson([1.0, 1.0], [0.0, 1.0]) is recipe.pearson((), ()) is None
    assert recipe.auc([1.0, 2.0], [0.5, 1.0]) is recipe.auc((), ()) is None


def test_what_is_known_of_a_step_from_its_number(recipe: ModuleType) -> None:
    train = [[0.5, 1.0], [1.0], [0.0, 0.0, 0.6]]
    held_out = [[0.1, 0.2, 0.3, 0.4], [0.9]]
    everywhere = (0.5 + 1.0 + 1.0 + 0.0 + 0.0 + 0.6) / 6
    numbers = recipe.by_number(train, held_out)
    assert numbers == [pytest.approx([0.5, 0.5, 0.6, everywhere]), pytest.approx([0.5])]
    found = recipe.measured(numbers, held_out)
    assert found["all steps"]["steps"] == 5 and found["before the last"]["steps"] == 3
    expected = np.corrcoef([0.5, 0.5, 0.6], [0.1, 0.2, 0.3])[0, 1]
    assert found["before the last"]["correlation"] == pytest.approx(expected)


@pytest.mark.long
def test_a_run_from_cold_start_to_table(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--cold_start_steps", "2", "--problems", "6", "--samples", "2"]
    flags += ["--continuations", "2", "--eval_rows", "4"]
    flags += ["--eval_continuations", "3", "--reward_epochs", "1", "--max_completion_length", "24"]
    flags += ["--output_dir", str(tmp_path / "run")]
    recipe.main(flags)
    said = capsys.readouterr().out
    assert "training: 6 problems" in said and "held-out: 4 problems" in said and "step " in said
    assert "mean of the step's number" in said
    assert "correlation" in (tmp_path / "run" / "report.html").read_text()
    report = json.loads((tmp_path / "run" / "results.json").read_text())
    assert report["settings"]["eval_continuations"] == 3 and report["settings"]["eval_rows"] == 4
    for found in report["results"].values():
        assert found["all steps"]["steps"] >= 1
        correlation = found["all steps"]["correlation"]
        assert correlation is None or math.isfinite(correlation)
    AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "run" / "reward_model", num_labels=1
    )
    with pytest.raises(SystemExit):
        recipe.main(flags)
    assert "holds a run already" in capsys.readouterr().err


def test_nothing_to_measure_on_is_said_before_the_cold_start(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        recipe.main(["--eval_rows", "0", "--output_dir", str(tmp_path / "run")])
    assert "eval_rows is 0, and there is nothing to measure on" in capsys.readouterr().err
