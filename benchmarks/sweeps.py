"""Train one task at several values of one setting, and write down what each of them learned.

    python -m benchmarks.sweeps --task demo --setting learning_rate --values 1e-4 5e-4 2e-3
    python -m benchmarks.sweeps --task calculations --data FOLDER --setting lora_r --values 4 16
    python -m benchmarks.sweeps --page

Each run is one of `grpo-hf train` in a process of its own, judged greedily on held-out problems.
`demo` is recipes/gsm8k_tiny.yaml, with a cold start for each seed that all values share; the other
tasks are those of `benchmarks.learning`.
`--recipe NAME=VALUE` changes another setting for all values, and a value may bring some of its own:
`--setting dynamic_sampling --values false true true,max_steps=20`. What came goes to
`results/sweeps/TASK-SETTING.json`, from which `--page` writes docs/guidance.md and its pictures.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from grpo_hf.evaluation.intervals import difference_estimates, share_estimates
from grpo_hf.run_files import read_lines
from grpo_hf.runs.settings import all_settings

from . import learning, sweeps_page
from .common import RESULTS, ROOT, Row, machine, train_alone
from .tasks import TASKS

SWEEPS = RESULTS / "sweeps"
# The curves that are written down, and their names in metrics.jsonl.
CURVES = {"reward": "reward", "kl": "kl", "length": "completions/mean_length"}


def recipe_of(arguments: argparse.Namespace, folder: Path) -> tuple[Path, list[str]]:
    """Return the recipe of the task, and the flags that all of its runs have."""
    as_it_is = argparse.Namespace(**vars(arguments) | {"recipe": []})
    recipe = learning.write_recipe(TASKS[arguments.task], folder / "task", as_it_is)
    # Greedy answers tell what a setting does, and samples take most of an evaluation's time.
    flags = ["--eval_samples", "0"]
    for setting in arguments.recipe:
        flags += _flag(setting)
    return recipe, flags


def _flag(setting: str) -> list[str]:
    """Return the flag of NAME=VALUE."""
    name, _, value = setting.partition("=")
    return [f"--{name}", value]


def default_of(setting: str) -> Any:
    """Return what a recipe has that does not give a setting.

    Raises:
        SystemExit: no recipe has such a setting.
    """
    known = all_settings()
    if setting not in known:
        raise SystemExit(f"error: {setting} is no setting of a recipe. `grpo-hf settings` has all.")
    return known[setting].default


def train(recipe: Path, run: Path, flags: Sequence[str], seed: int, threads: int) -> Row:
    """Train once, unless the folder holds the run already, and return what it says."""
    if not (run / "evaluation.jsonl").is_file():
        took = train_alone(recipe, run, flags, threads)
        (run / "took.json").write_text(json.dumps(took), encoding="utf-8")
    took = json.loads((run / "took.json").read_text(encoding="utf-8"))
    return {"seed": seed, **took, **read_run(run)}


def read_run(run: Path) -> Row:
    """Return the curves of a run, and how many held-out problems were right before and after."""
    right = []
    for line in read_lines(run / "evaluation.jsonl"):
        right.append([float(line[side]["right"]) for side in ("base", "adapter")])
    values = np.array(right)
    base, adapter = share_estimates(values)
    (difference,) = difference_estimates(values[:, 1:] - values[:, :1])
    return {
        "problems": len(values),
        "base": base.as_dict(),
        "adapter": adapter.as_dict(),
        "difference": difference.as_dict(),
        "curves": learning.curves_of(run, CURVES),
    }


def run_sweep(arguments: argparse.Namespace) -> Row:
    """Train at each value with each seed, and return what is written down."""
    folder = arguments.runs / arguments.task
    recipe, flags = recipe_of(arguments, folder)
    given = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    usual = given.get(arguments.setting, default_of(arguments.setting))
    values = []
    for value in arguments.values:
        runs = []
        # All sweeps of a task share the runs of the recipe as it is.
        is_usual = _same(value, usual) and not arguments.recipe
        name = "usual" if is_usual else "-".join([arguments.setting, value, *arguments.recipe])
        alone, *others = value.split(",")
        for seed in arguments.seeds:
            own = [f"--{arguments.setting}", alone, "--seed", str(seed)]
            for other in others:
                own += _flag(other)
            run = folder / f"{name}-{seed}"
            runs.append(train(recipe, run, [*flags, *own], seed, arguments.threads))
        values.append({"value": value, "runs": runs})
        show(arguments, values)
    command = f"python -m benchmarks.sweeps --task {arguments.task}"
    command += f" --setting {arguments.setting} --values {' '.join(arguments.values)}"
    command += f" --seeds {' '.join(map(str, arguments.seeds))}"
    command += "" if TASKS[arguments.task].recipe else " --data FOLDER"
    for setting in arguments.recipe:
        command += f" --recipe {setting}"
    return {
        "task": arguments.task,
        "setting": arguments.setting,
        "usual": usual,
        "command": command,
        "machine": {**machine(), "threads": arguments.threads},
        "values": values,
    }


def _same(value: str, usual: object) -> bool:
    """Return whether a value of the command line is what the recipe has."""
    # YAML takes 5e-4 for text.
    try:
        return float(value) == usual
    except ValueError:
        return yaml.safe_load(value) == usual


def show(arguments: argparse.Namespace, values: Sequence[Row]) -> None:
    """Print a row for each value: means over the seeds."""
    table = Table(title=f"{arguments.task}, {arguments.setting}, seeds {arguments.seeds}")
    for heading in ("value", "base", "adapter", "difference", "KL at the end", "CPU s"):
        table.add_column(heading, justify="right")
    for found in values:
        table.add_row(str(found["value"]), *sweeps_page.means(found["runs"]))
    Console().print(table)


def flags() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=list(TASKS), default="demo")
    parser.add_argument("--setting", help="of a recipe")
    parser.add_argument("--values", nargs="+", help="of the setting")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--model", default=str(learning.MODEL), help="a folder or a name")
    parser.add_argument("--data", type=Path, help="folder with a folder for each real data set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipe", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "sweeps")
    parser.add_argument("--results", type=Path, default=SWEEPS, help="folder of the records")
    parser.add_argument("--page", action="store_true", help="write docs/guidance.md, and end")
    parser.set_defaults(choose=False)
    return parser


def main(given: Sequence[str] | None = None) -> None:
    """Train at all values and write the record, or write the page of all records.

    Raises:
        SystemExit: no setting or no value is named, its data is not there, or a run failed.
    """
    arguments = flags().parse_args(given)
    if arguments.page:
        print(f"written to {sweeps_page.write_page(arguments.results, ROOT / 'docs')}")
        return
    if not arguments.setting or not arguments.values:
        raise SystemExit("error: --setting names a key of a recipe, and --values what to try.")
    record = run_sweep(arguments)
    arguments.results.mkdir(parents=True, exist_ok=True)
    file = arguments.results / f"{arguments.task}-{arguments.setting}.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
