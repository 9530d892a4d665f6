"""Train the same short task at several learning rates, and show which of them learn.

    python -m benchmarks.learning_rate [--model PATH] [--rates 1e-6 1e-5 1e-4 1e-3] [--seeds 0]
        [--steps 24] [--runs FOLDER]

With `--model embedded:tiny` the task is the demo's: recipes/gsm8k_tiny.yaml after its cold start.
With any other model it is the product of two small numbers, in answers of at most 20 tokens. 300
rows are made, of which 40 are held out. Everything but the rate is what a recipe of six lines gets,
with two prompts to a step instead of four, which takes half the time. docs/settings.md has the
figures.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from .common import MODEL, ROOT, train_alone
from .tasks import REWARDS

TINY = "embedded:tiny"
ROWS = 300
HELD_OUT = 40
LONGEST_ANSWER = 20
# A single step says little: its reward is the mean of a few prompts.
ENDS = 5


def write_task(folder: Path, model: str) -> Path:
    """Write the rows and the recipe of the task, and return the recipe."""
    generator = random.Random(0)
    lines = []
    for _ in range(ROWS):
        left, right = generator.randint(2, 12), generator.randint(3, 19)
        row = {"question": f"What is {left} times {right}?", "answer": left * right}
        lines.append(json.dumps(row))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "products.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: {model}\n"
        f"dataset_path: {folder / 'products.jsonl'}\n"
        f'rewards: ["{REWARDS}:last_number"]\n'
        f"eval_rows: {HELD_OUT}\n"
        f"max_completion_length: {LONGEST_ANSWER}\n"
        "gradient_accumulation_steps: 2\n"
        "gradient_checkpointing: false\n",
        encoding="utf-8",
    )
    return recipe


def train(recipe: Path, rate: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Train once, in a process of its own, and return the folder of the run."""
    run = arguments.runs / f"rate_{rate}_seed_{seed}"
    # The order of the prompts: another `seed` would be another cold start of the embedded model.
    settings = ["--use_cpu", "true", "--learning_rate", rate, "--data_seed", str(seed)]
    settings += ["--max_steps", str(arguments.steps), "--logging_steps", "1"]
    train_alone(recipe, run, [*settings, "--save_strategy", "no", "--report_to", "none"])
    return run


def read_run(run: Path) -> dict[str, float]:
    """Return the reward at both ends of a run, its last KL, and the accuracy before and after."""
    rewards = []
    divergences = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        metrics = json.loads(line)
        if "reward" in metrics:
            rewards.append(metrics["reward"])
            divergences.append(metrics["kl"])
    right: dict[str, list[bool]] = {"base": [], "adapter": []}
    for line in (run / "evaluation.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for model, answers in right.items():
            answers.append(bool(row[model]["right"]))
    return {
        "reward, first": fmean(rewards[:ENDS]),
        "reward, last": fmean(rewards[-ENDS:]),
        "KL, last": fmean(divergences[-ENDS:]),
        "base": fmean(right["base"]),
        "adapter": fmean(right["adapter"]),
    }


def main(given: Sequence[str] | None = None) -> None:
    """Train at each rate with each seed, and print a row for each rate: means over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=str(MODEL), help=f"a folder, a name, or {TINY}")
    parser.add_argument("--rates", nargs="+", default=["1e-6", "1e-5", "1e-4", "1e-3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "learning_rate")
    arguments = parser.parse_args(given)
    if arguments.model == TINY:
        recipe = ROOT / "recipes" / "gsm8k_tiny.yaml"
    else:
        recipe = write_task(arguments.runs, arguments.model)
    table = Table(title=f"{arguments.model}, {arguments.steps} steps, seeds {arguments.seeds}")
    table.add_column("learning rate")
    for rate in arguments.rates:
        results = []
        for seed in arguments.seeds:
            results.append(read_run(train(recipe, rate, seed, arguments)))
        if not table.rows:
            for name in results[0]:
                table.add_column(name, justify="right")
        means = [f"{fmean(result[name] for result in results):.3f}" for name in results[0]]
        table.add_row(rate, *means)
    Console().print(table)


if __name__ == "__main__":
    main()
