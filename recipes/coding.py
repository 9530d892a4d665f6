"""Train on code with GRPO: the reward is the share of tests that the model's function passes.

    # Python: Qwen2.5-Coder-1.5B-Instruct on MBPP, from the Hub
    python recipes/coding.py
    # local rows with the columns text and test_list
    python recipes/coding.py --dataset_path ./mbpp
    # Rust: cargo test and clippy on eight exercises
    python recipes/coding.py --language rust

A row of MBPP (arXiv 2108.07732) has a task in one sentence and three assertions. The sentence does
not name the function, so the prompt shows the first assertion. The other assertions stay hidden.
Otherwise a model could learn to return the values that the prompt shows. The model's code runs in a
sandbox; rewards/python_tests.py and rewards/rust_cargo.py say what the sandbox prevents.

The file is not called code.py, because Python would import it instead of its own module `code`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_hf.errors import DataError
from grpo_hf.runs.program import exit_on_error, quiet

HERE = Path(__file__).parent
RECIPES = {"python": HERE / "coding.yaml", "rust": HERE / "coding_rust.yaml"}

# Columns that the reward reads. Local rows may have only the first one.
REWARD_COLUMNS = ("test_list", "test_setup_code", "test_imports")

# The reader adds this column, which names a row in error messages.
PLACE = "__place__"


def with_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of MBPP with a prompt: the task and the first test.

    Raises:
        DataError: there is no task or no test.
    """
    task = row.get("text")
    tests = row.get("test_list")
    has_task = isinstance(task, str) and task.strip()
    has_tests = isinstance(tests, list) and tests
    if not (has_task and has_tests):
        names = [name for name in row if name != PLACE]
        raise DataError(
            f"{row.get(PLACE, 'a row')}: expected MBPP's columns text (the task) and test_list "
            f"(its tests), got {', '.join(names)}. Rename one: --columns text=<its name there>."
        )
    result = {"prompt": f"{task.strip()}\nThe function has to pass this test:\n{tests[0]}"}
    for name in REWARD_COLUMNS:
        if row.get(name) is not None:
            result[name] = row[name]
    return result


def write_prompts(recipe: Any) -> Path:
    """Write the splits of MBPP with prompts into a folder beside the output folder; return it."""
    from grpo_hf.data.readers import read_split

    task = recipe.task
    output = Path(recipe.training.output_dir)
    # Not inside the output folder, which has to be free when a run begins.
    folder = output.with_name(f"{output.name}-prompts")
    folder.mkdir(parents=True, exist_ok=True)
    source = {"path": task.dataset_path, "name": task.dataset_name, "config": task.dataset_config}
    for name, split in (("train", task.dataset_train_split), ("test", task.dataset_test_split)):
        # Training needs no test split; without it there is no evaluation.
        rows = read_split(**source, split=split, optional=name == "test")
        if rows is not None:
            write_split(folder / f"{name}.jsonl", rows, recipe.column_map)
    return folder


def write_split(file: Path, rows: Any, column_map: dict[str, str]) -> None:
    """Write the rows of a split with prompts to a JSON Lines file."""
    from grpo_hf.data.rows import rename_columns

    lines = []
    for row in rename_columns(rows, column_map).rows:
        lines.append(json.dumps(with_prompt(row)))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the flags describe."""
    quiet()
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--language", choices=RECIPES, default="python")
    settings, recipe_flags = parser.parse_known_args(arguments)
    from accelerate import PartialState

    from grpo_hf.runs.recipe import read_recipe

    with exit_on_error():
        recipe = read_recipe(recipe_flags, default=RECIPES[settings.language])
        # The Rust exercises have prompts already.
        if settings.language == "python":
            # The other processes read the files that the first one writes.
            with PartialState().main_process_first():
                folder = write_prompts(recipe)
            # From here on the run reads the written files, whose columns have their final names.
            recipe.task.dataset_path = str(folder)
            recipe.task.columns = []
            recipe.task.dataset_train_split = "train"
            recipe.task.dataset_test_split = "test"
        # This import takes seconds. It stands here so that wrong data is reported before it.
        from grpo_hf.runs.train import train

        train(recipe)


if __name__ == "__main__":
    main(sys.argv[1:])
