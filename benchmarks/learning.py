"""Train a model on a short task with several seeds, and write down what it learned.

    python -m benchmarks.learning --task calculations [--seeds 0 1 2] [--data FOLDER]
    python -m benchmarks.learning --task calculations --choose [--recipe learning_rate=3e-4 ...]
    python -m benchmarks.learning --page

Each seed is a run of `grpo-hf train` in a process of its own, as a user would start it: held-out
problems, base against adapter, report and gaming page. Their numbers go to
`results/learning/TASK.json`, which the last command turns into docs/learning.md and its pictures.

Settings are chosen with `--choose`: the runs are then judged on problems that are neither trained
on nor held out, and nothing is written down. `tasks.py` has the tasks. Those on real data read it
from `--data`, a folder with a folder for each set (`svamp`, `gsm8k`, `mbpp`).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from grpo_hf.run_files import METRICS_FILE, read_lines

from .common import MODEL, RESULTS, ROOT, Row, machine, train_alone
from .learning_page import gain, write_page
from .tasks import REWARDS, TASKS, Task

LEARNING = RESULTS / "learning"
# What every task's recipe says; the rest is what any recipe gets.
SETTINGS = {
    "num_generations": 8,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "dtype": "float32",
    "eval_samples": 4,
    "learning_rate": 2e-4,
    "max_steps": 40,
}
# Those of them that a task which is a recipe has as well.
SHARED = ("logging_steps", "save_strategy", "report_to", "eval_samples")
# The columns of the curves that are written down, and their names in metrics.jsonl.
CURVES = {"reward": "reward", "kl": "kl", "length": "completions/mean_length"}


def write_recipe(task: Task, folder: Path, arguments: argparse.Namespace) -> Path:
    """Write the data and the recipe of a task into a folder, and return the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    if task.recipe is not None:
        given = (ROOT / "recipes" / task.recipe).read_text(encoding="utf-8")
        recipe = yaml.safe_load(given)
        recipe |= {name: SETTINGS[name] for name in SHARED}
        return _write(recipe, folder, arguments)
    train, choice, held_out = task.splits(arguments.data)
    judged = choice if arguments.choose else held_out
    for name, rows in (("train", train), ("test", judged)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    recipe = {
        "model_name_or_path": arguments.model,
        "dataset_path": str(folder),
        "eval_rows": len(judged),
        "rewards": [f"{REWARDS}:{task.reward}"],
        **SETTINGS,
        **task.settings,
    }
    return _write(recipe, folder, arguments)


def _write(recipe: Row, folder: Path, arguments: argparse.Namespace) -> Path:
    """Write a recipe with the settings that the command line changes."""
    for setting in arguments.recipe:
        name, _, value = setting.partition("=")
        recipe[name] = yaml.safe_load(value)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def train(recipe: Path, run: Path, seed: int, threads: int) -> Row:
    """Train once, and return what the run took and what its folder says.

    Raises:
        SystemExit: the run failed.
    """
    took = train_alone(recipe, run, ["--seed", str(seed)], threads)
    return {"seed": seed, **took, **read_run(run)}


def read_run(run: Path) -> Row:
    """Return the curves of a run, its evaluation and what its gaming page says."""
    summary = json.loads((run / "evaluations" / "held_out.json").read_text(encoding="utf-8"))
    found = json.loads((run / "gaming.json").read_text(encoding="utf-8"))
    flips = {way: len(rows) for way, rows in summary["flips"].items()}
    return {
        "problems": summary["problems"],
        "base": summary["base"],
        "adapter": summary["adapter"],
        "difference": summary["difference"],
        "flips": flips,
        "gaming": [finding["text"] for finding in found],
        "curves": curves_of(run, CURVES),
    }


def curves_of(run: Path, columns: dict[str, str]) -> dict[str, list[float]]:
    """Return columns of a run's metrics over its steps, by the names that they are to have.

    A column that no step has is empty, as the KL is without a KL term.
    """
    curves: dict[str, list[float]] = {name: [] for name in columns}
    for line in read_lines(run / METRICS_FILE):
        # The last line sums up the run.
        if "reward" in line:
            for name, column in columns.items():
                if column in line:
                    curves[name].append(round(line[column], 5))
    return curves


def record_of(task: Task, arguments: argparse.Namespace, recipe: Path, seeds: list[Row]) -> Row:
    """Return what is written down of a task: what was run, on what, and what came."""
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for place in ("model_name_or_path", "dataset_path", "output_dir"):
        # Paths of one machine say nothing to readers of the file.
        if place in settings:
            settings[place] = Path(settings[place]).name
    settings["rewards"] = [reward.rpartition("/")[2] for reward in settings["rewards"]]
    command = f"python -m benchmarks.learning --task {task.name} --seeds"
    command += "".join(f" {row['seed']}" for row in seeds)
    command += "" if task.recipe else " --data FOLDER"
    for setting in arguments.recipe:
        command += f" --recipe {setting}"
    return {
        "task": task.name,
        "about": task.about,
        "source": task.source,
        "command": command,
        "machine": {**machine(), "threads": arguments.threads},
        "settings": settings,
        "example": None if task.recipe else task.splits(arguments.data)[2][0],
        "seeds": seeds,
    }


def show(name: str, seeds: Sequence[Row]) -> None:
    """Print a row for each seed: right answers before and after, and the paired difference."""
    table = Table(title=name)
    for heading in ("seed", "base", "adapter", "difference (paired)", "pass@4 before", "after"):
        table.add_column(heading, justify="right")
    for row in seeds:
        cells = [f"{row[side]['accuracy']['value']:.3f}" for side in ("base", "adapter")]
        cells.append(gain(row["difference"]["accuracy"]))
        for side in ("base", "adapter"):
            pass_at: dict[str, Any] = row[side].get("pass_at", {})
            cells.append(f"{list(pass_at.values())[-1]['value']:.3f}" if pass_at else "")
        table.add_row(str(row["seed"]), *cells)
    Console().print(table)


def flags() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=list(TASKS), help="what to learn")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--model", default=str(MODEL), help="a folder, or a name on the Hub")
    parser.add_argument("--data", type=Path, help="folder with a folder for each real data set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--choose", action="store_true", help="judge on the rows for choosing")
    parser.add_argument(
        "--recipe", action="append", default=[], metavar="NAME=VALUE", help="another setting"
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "learning")
    parser.add_argument("--results", type=Path, default=LEARNING, help="folder of the records")
    parser.add_argument("--page", action="store_true", help="write docs/learning.md, and end")
    return parser


def main(given: Sequence[str] | None = None) -> None:
    """Train the task with each seed and write its record, or write the page of all records.

    Raises:
        SystemExit: no task is named, its data is not there, or a run failed.
    """
    arguments = flags().parse_args(given)
    if arguments.page:
        print(f"written to {write_page(arguments.results, ROOT / 'docs')}")
        return
    if arguments.task is None:
        raise SystemExit(f"error: --task names what to learn: {', '.join(TASKS)}.")
    task = TASKS[arguments.task]
    folder = arguments.runs / (f"{task.name}-choose" if arguments.choose else task.name)
    recipe = write_recipe(task, folder / "task", arguments)
    seeds = []
    for seed in arguments.seeds:
        seeds.append(train(recipe, folder / f"seed{seed}", seed, arguments.threads))
        show(f"{task.name}, {Path(arguments.model).name}", seeds)
        if not arguments.choose:
            # After every seed, so that a machine that vanishes leaves what it has done.
            arguments.results.mkdir(parents=True, exist_ok=True)
            record = record_of(task, arguments, recipe, seeds)
            text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
            (arguments.results / f"{task.name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
