"""Test recipes/coding.py: prompts from MBPP's rows, one training step, and the Rust exercises."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.programs import RECIPES, load_recipe

from grpo_hf.errors import DataError
from grpo_hf.rewards.rust_cargo import rust_cargo


def mbpp_row(n: int) -> dict[str, Any]:
    """Return a row with MBPP's columns."""
    return {
        "task_id": n,
        "text": f"Write a function to add {n} to a number.",
        "code": f"def add_{n}(x):\n    return x + {n}",
        "test_list": [f"assert add_{n}(1) == {n + 1}", f"assert add_{n}(5) == {n + 5}"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


ROWS = list(map(mbpp_row, range(6)))
# In the exercises' order.
SOLUTIONS = (Path(__file__).parent / "rust_solutions.rs").read_text().split("//---\n")
EXERCISES = list(map(json.loads, (RECIPES / "rust_exercises.jsonl").read_text().splitlines()))


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("coding")


def test_the_prompt_shows_the_task_and_one_test(recipe: ModuleType) -> None:
    row = recipe.with_prompt(ROWS[3])
    assert row["prompt"] == (
        "Write a function to add 3 to a number.\n"
        "The function has to pass this test:\n"
        "assert add_3(1) == 4"
    )
    assert row["test_list"] == ROWS[3]["test_list"]
    assert set(row) == {"prompt", "test_list", "test_setup_code"}


@pytest.mark.parametrize(
    "row", [{"text": "Add."}, {"test_list": ["assert f()"]}, {"text": " ", "test_list": ["x"]}]
)
def test_rows_of_another_form_are_refused(recipe: ModuleType, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"expected MBPP's columns text .* and test_list"):
        recipe.with_prompt(row)


@pytest.mark.long
def test_a_step_on_local_rows(
    recipe: ModuleType, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    flags = ["--model_name_or_path", str(tiny_checkpoint), "--dataset_path", str(tmp_path)]
    flags += ["--dtype", "float32", "--use_cpu", "--gradient_checkpointing", "false"]
    flags += ["--gradient_accumulation_steps", "1", "--per_device_train_batch_size", "2"]
    flags += ["--num_generations", "2", "--max_completion_length", "8", "--eval_rows", "2"]
    recipe.main([*flags, "--max_steps", "1", "--output_dir", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "rewards: python_tests" in said
    assert "step 1/1" in said
    assert "base (adapter disabled)" in said
    lines = (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        # The prompt shows the first test only, and both are what is right.
        asked = json.dumps(row["prompt"])
        assert "(1) ==" in asked and "(5) ==" not in asked
        assert len(row["gold"]) == 2


def test_there_is_a_solution_for_every_rust_exercise() -> None:
    assert len(EXERCISES) == len(SOLUTIONS)
    for exercise, solution in zip(EXERCISES, SOLUTIONS, strict=True):
        signature = exercise["prompt"].split("`")[1]
        assert signature in solution and exercise["tests"].count("#[test]") >= 2


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cargo"), reason="cargo is not installed")
@pytest.mark.parametrize("number", range(len(EXERCISES)))
def test_the_solutions_have_the_full_mark(number: int) -> None:
    (reward,) = rust_cargo([f"```rust\n{SOLUTIONS[number]}\n```"], [EXERCISES[number]["tests"]])
    assert reward == pytest.approx(1.0)
