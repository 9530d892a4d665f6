"""Test recipes/countdown.py: solvable problems, disjoint splits, and a short run."""

import itertools
import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from itertools import islice
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.programs import RECIPES, load_recipe

from grpo_hf.errors import ConfigError
from grpo_hf.rewards.countdown import countdown
from grpo_hf.runs.recipe import read_recipe

EASY = "numbers=3,largest=9,operators=+-"
SPLITS = ("cold_start", "train", "test")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("countdown")


def some(
    recipe: ModuleType, split: str, count: int = 200, difficulty: str | None = None, seed: int = 0
) -> list[Any]:
    problems = recipe.problems(split, recipe.Difficulty.read(difficulty), seed=seed)
    return list(islice(problems, count))


def reachable(numbers: list[Fraction], operators: str) -> set[Fraction]:
    """Return the values of all expressions that use each number once."""
    if len(numbers) == 1:
        return {numbers[0]}
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a = numbers[i]
        b = numbers[j]
        rest = numbers.copy()
        # The larger index first, so that the other one stays valid.
        for k in sorted((i, j), reverse=True):
            del rest[k]
        results = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}
        for operator in operators:
            if results[operator] is not None:
                found |= reachable([*rest, results[operator]], operators)
    return found


@pytest.mark.parametrize(
    "difficulty", [EASY, "numbers=2,largest=30,operators=*/", "numbers=4", None]
)
@pytest.mark.parametrize("split", SPLITS)
def test_every_problem_is_solved_by_its_answer(
    recipe: ModuleType, split: str, difficulty: str | None
) -> None:
    rows = some(recipe, split, 300, difficulty)
    answers, numbers, targets = zip(
        *map(itemgetter("answer", "numbers", "target"), rows), strict=True
    )
    # 1 for the solution and 0.1 for the format.
    rewards = countdown(list(answers), numbers=list(numbers), target=list(targets))
    assert rewards == [1.1] * len(rows)


@pytest.mark.parametrize("operators", ["+-", "+-*/"])
def test_brute_force_finds_a_solution_too(recipe: ModuleType, operators: str) -> None:
    for row in some(recipe, "test", 40, f"numbers=3,largest=25,operators={operators}"):
        assert row["target"] in reachable(list(map(Fraction, row["numbers"])), operators)


@pytest.mark.parametrize("operators", ["+-", "+-*/"])
def test_splits_share_no_numbers_and_no_problem_comes_twice(
    recipe: ModuleType, operators: str
) -> None:
    sets = {}
    for split in SPLITS:
        rows = some(recipe, split, 5000, f"numbers=3,largest=9,operators={operators}")
        keys = [(*sorted(row["numbers"]), row["target"]) for row in rows]
        assert len(keys) == len(set(keys)) > 30
        sets[split] = {key[:-1] for key in keys}
    for first, second in itertools.combinations(SPLITS, 2):
        assert not sets[first] & sets[second]


def test_easy_problems_come_to_an_end(recipe: ModuleType) -> None:
    assert 0 < len(some(recipe, "train", 10_000, "numbers=2,largest=5,operators=+")) < 30


def test_difficulty_is_kept_to(recipe: ModuleType) -> None:
    for row in some(recipe, "train", 300, "numbers=5,largest=7,operators=*"):
        assert len(row["numbers"]) == 5 and max(row["numbers"]) <= 7
        assert not {*"+-/"} & {*row["answer"].replace("</answer>", "")}
        numbers = ", ".join(map(str, row["numbers"]))
        assert row["question"] == f"Make {row['target']} from {numbers}."


def test_seed_and_split_decide_the_problems_in_every_process(recipe: ModuleType) -> None:
    rows = some(recipe, "train", 20)
    assert rows == some(recipe, "train", 20)
    assert rows != some(recipe, "train", 20, seed=1)
    # Another process has another seed of hash(), which must not matter.
    program = (
        "import json, runpy; found = runpy.run_path('countdown.py');"
        "print(json.dumps(next(found['problems']('test', found['Difficulty'](), seed=7))))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=RECIPES,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == some(recipe, "test", 1, seed=7)[0]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("number=3", "dataset_config has 'number'. Did you mean 'numbers'?"),
        ("numbers=three", "expected a whole number"),
        ("numbers=1", "expected 2 to 6 numbers"),
        ("operators=^", "expected 2 to 6 numbers"),
    ],
)
def test_a_difficulty_that_is_none(recipe: ModuleType, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        recipe.Difficulty.read(text)


@pytest.mark.long
def test_a_short_run_from_cold_start_to_table(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--cold_start_steps", "2", "--max_steps", "2", "--logging_steps", "1"]
    short += ["--eval_rows", "12"]
    short += ["--per_device_train_batch_size", "16", "--dataset_config", EASY]
    config = ["--config", str(RECIPES / "countdown_tiny.yaml")]
    recipe.main([*config, *short, "--output_dir", str(tmp_path / "first")])
    said = capsys.readouterr().out
    assert "cold start: 2 supervised steps" in said
    assert "step 2/2" in said
    assert "base (adapter disabled)" in said
    saved = read_recipe(["--config", str(tmp_path / "first" / "recipe.yaml")])
    # The saved file is a valid recipe for recipes/countdown.py again.
    assert saved.task.dataset_config == EASY
    # The run ends before another cold start.
    with pytest.raises(SystemExit):
        recipe.main([*config, *short, "--seed", "1", "--output_dir", str(tmp_path / "first")])
    assert "holds a run already" in capsys.readouterr().err
    assert len(list(tmp_path.glob("cold_start-*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [42])
def test_the_tiny_run_gets_better(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    config = str(RECIPES / "countdown_tiny.yaml")
    recipe.main(["--config", config, "--seed", str(seed), "--output_dir", str(tmp_path / "run")])
    said = capsys.readouterr().out
    difference = re.search(r"difference \(paired\).*?([+-]\d\.\d{3}) to", said)
    assert difference is not None, said
    # The lower end of the gain's 95% interval. How large the gain is depends on how far the cold
    # start came, which differs between processors.
    assert float(difference[1]) > 0
