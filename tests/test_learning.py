"""The suite of learning runs: tasks, records and the page that is made of them."""

import argparse
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from benchmarks import learning, learning_page, supervised
from benchmarks.tasks import CHOICE, HELD_OUT, TASKS, Task, gsm8k_solutions
from grpo_hf import load_reward
from grpo_hf.runs.recipe import read_recipe


@pytest.fixture
def data() -> Path:
    folder = Path(os.environ.get("GRPO_HF_DATA", ""))
    if "GRPO_HF_DATA" not in os.environ or not (folder / "svamp").is_dir():
        pytest.skip("GRPO_HF_DATA does not name a folder with svamp/test.jsonl")
    return folder


def question(row: dict[str, Any]) -> str:
    return row["prompt"][-1]["content"]


REAL = [name for name, task in TASKS.items() if task.recipe is None]


@pytest.mark.parametrize("name", REAL)
def test_no_question_is_on_two_sides(name: str, data: Path) -> None:
    train, choice, held_out = TASKS[name].splits(data)
    assert len(choice) == CHOICE
    # GSM8K has a split of its own for tests, and a GPU takes all of it.
    assert len(held_out) == (1319 if name in ("gsm8k", "gsm8k_taught") else HELD_OUT)
    assert len(train) >= CHOICE
    asked = [question(row) for row in [*train, *choice, *held_out]]
    assert len(set(asked)) == len(asked)
    # The same rows on every machine.
    assert TASKS[name].splits(data)[2] == held_out


def test_gold_answers_are_right(data: Path) -> None:
    for row in TASKS["calculations"].splits(data)[2]:
        asked = question(row).removeprefix("What is ").removesuffix("?")
        for word, sign in (("plus", "+"), ("minus", "-"), ("times", "*"), ("divided by", "/")):
            asked = asked.replace(word, sign)
        assert eval(asked) == row["answer"]
    for row in TASKS["smallest_number"].splits(data)[2]:
        assert re.search(rf"(?<!\d){row['answer']}(?!\d)", question(row))
        assert all(int(number) >= row["answer"] for number in re.findall(r"\d+", question(row)))
    for row in TASKS["last_argument"].splits(data)[2]:
        names = list(signature_of(question(row).partition("\n")[0]).parameters)
        assert names[-1] == row["answer"] and len(names) > 1


def signature_of(line: str) -> inspect.Signature:
    """Return the signature of a function of which there is only the first line."""
    made: dict[str, Any] = {}
    exec(f"from __future__ import annotations\n{line} ...", made)
    (function,) = [value for value in made.values() if inspect.isfunction(value)]
    return inspect.signature(function)


def test_data_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"svamp/test.jsonl, and --data is not given"):
        TASKS["smallest_number"].splits(None)
    with pytest.raises(SystemExit, match="does not hold it"):
        TASKS["smallest_number"].splits(tmp_path)


@pytest.mark.parametrize(
    ("reward", "text", "answer", "mark"),
    [
        ("last_number", "12 times 12 is 1,144.", 1144, 1.0),
        ("last_number", "It is 7, or 8.", 7, 0.0),
        ("last_number", "no idea", 7, 0.0),
        ("last_word", "The last argument is n_items.", "n_items", 1.0),
        ("last_word", "n_items is the last one", "n_items", 0.0),
        ("last_word", "...", "n_items", 0.0),
    ],
)
def test_what_is_right(reward: str, text: str, answer: Any, mark: float) -> None:
    judge = load_reward(f"{learning.REWARDS}:{reward}")
    assert judge(completions=[text], answer=[answer]) == [mark]


def sums(_: Path | None) -> list[dict[str, Any]]:
    rows = []
    for left in range(20):
        for right in range(20):
            asked = [{"role": "user", "content": f"What is {left} plus {right}?"}]
            rows.append({"prompt": asked, "answer": left + right})
    return rows


SUMS = Task("sums", "Sums.", "They are generated.", "last_number", sums)


def options(tmp_path: Path, *given: str) -> argparse.Namespace:
    return learning.flags().parse_args(["--task", "demo", "--runs", str(tmp_path), *given])


def test_the_recipe_is_judged_on_other_rows_while_settings_are_chosen(tmp_path: Path) -> None:
    task = SUMS
    for given, count in (([], HELD_OUT), (["--choose"], CHOICE)):
        arguments = options(tmp_path, "--recipe", "learning_rate=3e-4", *given)
        file = learning.write_recipe(task, tmp_path / "task", arguments)
        recipe = read_recipe(["--config", str(file)])
        assert recipe.training.learning_rate == 3e-4
        assert recipe.task.eval_rows == count
        lines = (tmp_path / "task" / "test.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == count


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def side(accuracy: float) -> dict[str, Any]:
    pass_at = {str(k): estimate(accuracy + k / 100) for k in range(1, 5)}
    return {"accuracy": estimate(accuracy), "pass_at": pass_at}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run of three steps, as `grpo-hf train` leaves it."""
    steps = [
        {"reward": n / 10, "kl": n / 100, "completions/mean_length": 9.0, "step": n}
        for n in range(3)
    ]
    lines = [json.dumps(step) for step in [*steps, {"train_runtime": 1.0}]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    summary = {
        "problems": 20,
        "base": side(0.2),
        "adapter": side(0.5),
        "difference": side(0.3),
        "flips": {"gained": [1, 2, 3], "lost": [4]},
    }
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "held_out.json").write_text(json.dumps(summary), encoding="utf-8")
    found = [{"name": "length", "text": "Completions grow.", "samples": []}]
    (tmp_path / "gaming.json").write_text(json.dumps(found), encoding="utf-8")
    return tmp_path


def test_a_task_may_be_a_recipe(tmp_path: Path) -> None:
    arguments = options(tmp_path, "--recipe", "max_steps=3")
    recipe = learning.write_recipe(TASKS["demo"], tmp_path / "task", arguments)
    read = read_recipe(["--config", str(recipe)])
    assert (read.training.max_steps, read.task.eval_samples) == (3, 4)
    assert read.task.cold_start_steps == 300 and read.training.num_iterations == 2
    record = learning.record_of(TASKS["demo"], arguments, recipe, [])
    assert record["settings"]["output_dir"] == "demo" and record["example"] is None


def test_a_run_is_read(run: Path) -> None:
    read = learning.read_run(run)
    assert read["curves"] == {"reward": [0, 0.1, 0.2], "kl": [0, 0.01, 0.02], "length": [9] * 3}
    assert read["flips"] == {"gained": 3, "lost": 1}
    assert read["difference"]["accuracy"]["value"] == 0.3
    assert read["gaming"] == ["Completions grow."]


def test_the_page_is_made_of_the_records(
    run: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("learning")
    arguments = options(folder, "--seeds", "0")
    task = SUMS
    recipe = learning.write_recipe(task, folder / "task", arguments)
    seed = {"seed": 0, "wall": 70.0, "cpu": 60.0, **learning.read_run(run)}
    record = learning.record_of(task, arguments, recipe, [seed])
    assert str(folder) not in json.dumps(record)
    (folder / "sums.json").write_text(json.dumps(record), encoding="utf-8")
    page = learning_page.write_page(folder, folder).read_text(encoding="utf-8")
    assert "| [sums](#sums) | 0 | 0.200 | 0.500 | +0.300 [+0.200, +0.400] | 1 |" in page
    assert "| seed 0, pass@4 | 0.240 [0.140, 0.340] |" in page
    assert "3 problems became right, 1 wrong" in page and "Completions grow." in page
    assert (folder / "learning_sums.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="holds no record"):
        learning_page.write_page(folder / "empty", folder)


def test_a_running_mean_looks_back_only() -> None:
    assert learning_page.running_mean([1, 3, 5, 7], window=2) == [1, 2, 4, 6]


def test_a_model_is_taught_solutions_for_a_start(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """What `gsm8k_taught` begins from is an ordinary checkpoint that has seen no test problem."""
    (tmp_path / "gsm8k").mkdir()
    solved = "He has 3+4=<<3+4=7>>7 pens.\n#### 1,007"
    row = json.dumps({"question": "How many?", "answer": solved})
    (tmp_path / "gsm8k" / "train.jsonl").write_text(f"{row}\n" * 8)
    (row,) = gsm8k_solutions(tmp_path)[:1]
    assert (row["solution"], row["answer"]) == ("He has 3+4=7 pens.\n#### 1,007", 1007)
    out = tmp_path / "taught"
    flags = ["--model", str(tiny_checkpoint), "--data", str(tmp_path), "--batch_size", "4"]
    supervised.main([*flags, "--max_steps", "2", str(out)])
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, out))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert AutoTokenizer.from_pretrained(out).chat_template
    with pytest.raises(SystemExit, match="holds a model already"):
        supervised.main([*flags, str(out)])
