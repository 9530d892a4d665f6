"""Code with GRPO: the model writes a function, and the share of tests that it passes is the reward.

    accelerate launch recipes/coding.py                                    # Python: Qwen2.5-Coder-1.5B-Instruct on MBPP
    accelerate launch recipes/coding.py --dataset_path ./mbpp              # local rows with text and test_list
    accelerate launch recipes/coding.py --language rust                    # cargo test and clippy, on eight exercises

MBPP (arXiv 2108.07732) has a task in one sentence and three assertions. The sentence does not say what the function is
called, so the prompt shows the first assertion; the others stay hidden, or a model could learn to return what the
prompt shows instead of computing it. What the model writes runs in a sandbox: rewards/python_tests.py and
rewards/rust_cargo.py say what that prevents.

The file is not called code.py because Python would then import it in the place of its own `code`.
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


def with_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """A row of MBPP with a prompt: the task and the first of its tests.

    Raises:
        DataError: there is no task or no test.
    """
    task, tests = row.get("text"), row.get("test_list")
    if not (isinstance(task, str) and task.strip() and isinstance(tests, list) and tests):
        raise DataError(
            f"{row.get('__place__', 'a row')}: expected MBPP's columns text (the task) and test_list (its tests), "
            f"got {', '.join(key for key in row if key != '__place__')}. Rename one: --columns text=<its name there>."
        )
    kept = {
        name: row[name]
        for name in ("test_list", "test_setup_code", "test_imports")
        if row.get(name) is not None
    }
    return {"prompt": f"{task.strip()}\nThe function has to pass this test:\n{tests[0]}", **kept}


def write_prompts(recipe: Any) -> Path:
    """Write the splits of MBPP with prompts into a folder beside the output folder."""
    from grpo_hf.data.prompts import rename_columns
    from grpo_hf.data.readers import read_split

    task = recipe.task
    output = Path(recipe.training.output_dir)
    folder = output.with_name(f"{output.name}-prompts")
    folder.mkdir(parents=True, exist_ok=True)
    where = {"path": task.dataset_path, "name": task.dataset_name, "config": task.dataset_config}
    for name, split in (("train", task.dataset_train_split), ("test", task.dataset_test_split)):
        rows = read_split(**where, split=split, optional=name == "test")
        if rows is not None:
            lines = [
                json.dumps(with_prompt(row)) for row in rename_columns(rows, recipe.column_map).rows
            ]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def main(arguments: Sequence[str]) -> None:
    """Run the recipe that the flags describe."""
    quiet()
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--language", choices=RECIPES, default="python")
    chosen, rest = own.parse_known_args(arguments)
    from accelerate import PartialState

    from grpo_hf.runs.recipe import read_recipe

    with exit_on_error():
        recipe = read_recipe(rest, default=RECIPES[chosen.language])
        if chosen.language == "python":
            with PartialState().main_process_first():
                folder = write_prompts(recipe)
            task = recipe.task
            task.dataset_path, task.columns = str(folder), []
            task.dataset_train_split, task.dataset_test_split = "train", "test"
        from grpo_hf.runs.train import train

        train(recipe)


if __name__ == "__main__":
    main(sys.argv[1:])
