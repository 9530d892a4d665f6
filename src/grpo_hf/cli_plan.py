"""The commands before a run: `grpo-hf plan` and `grpo-hf baseline`."""

import argparse
import math
from pathlib import Path
from typing import Any

from .recipe_keys import check_keys
from .run_folders import recipe_at


def add_plan_commands(commands: Any) -> None:
    """Add `plan` and `baseline` to the parser of the command."""
    plan = commands.add_parser(
        "plan", help="what a recipe needs, before it runs", description=_plan.__doc__
    )
    plan.add_argument("recipe", type=Path, help="YAML file; every setting in it is also a flag")
    plan.add_argument("--gpus", type=_count, metavar="N", help="GPUs that train side by side")
    plan.add_argument(
        "--accelerate", type=Path, metavar="FILE", help="configuration of accelerate to plan for"
    )
    plan.add_argument(
        "--prompt_tokens", type=_count, metavar="N", help="tokens of a prompt (those of the data)"
    )
    plan.add_argument(
        "--completion_tokens",
        type=_count,
        metavar="N",
        help="tokens of a completion on average, for time and cost (those of --like, or "
        "max_completion_length)",
    )
    plan.add_argument(
        "--tokens_per_second", type=_rate, metavar="X", help="rate of all GPUs, as a run prints it"
    )
    plan.add_argument(
        "--like",
        type=Path,
        metavar="RUN",
        help="output folder of a run, to take its rate and the length of its completions",
    )
    plan.add_argument("--dollars_per_hour", type=_rate, metavar="X", help="price of one GPU")
    plan.add_argument("--device", choices=["cuda", "cpu"], help="what it runs on")
    plan.add_argument(
        "--table", action="store_true", help="which well-known model fits where, instead"
    )
    plan.set_defaults(command=_plan, takes_settings=True)

    baseline = commands.add_parser(
        "baseline",
        help="what the base earns before it is trained",
        description=_baseline.__doc__,
    )
    baseline.add_argument("recipe", type=Path, help="YAML file; every setting in it is also a flag")
    baseline.add_argument(
        "--prompts", type=_count, default=8, metavar="N", help="prompts that it answers (8)"
    )
    baseline.set_defaults(command=_baseline, takes_settings=True)


def _count(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _rate(text: str) -> float:
    """Read a number above 0 that is finite."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return rate


def _plan(options: argparse.Namespace, rest: list[str]) -> None:
    """Show what a recipe needs, from the model's config.json and the lengths of the data's prompts,
    without weights: batches, the memory of each phase, what fits where, tokens, and at a known rate
    time and cost."""
    # Before the imports, which take longer.
    file = recipe_at(options.recipe)
    check_keys(file)
    from .config_checks import planned_processes
    from .runs.plan import Question, gpus_of, plan_text, table_text
    from .runs.recipe import read_recipe

    question = Question(
        gpus=options.gpus,
        accelerate=options.accelerate,
        prompt_tokens=options.prompt_tokens,
        completion_tokens=options.completion_tokens,
        rate=options.tokens_per_second,
        like=options.like,
        dollars_per_hour=options.dollars_per_hour,
        device=options.device,
    )
    with planned_processes(gpus_of(question)[0]):
        recipe = read_recipe(["--config", str(file), *rest])
    print((table_text if options.table else plan_text)(recipe, question), end="")


def _baseline(options: argparse.Namespace, rest: list[str]) -> None:
    """Let the model of a recipe answer a few training prompts as the training would sample them,
    before it is trained: what the rewards pay, how many prompts have answers that differ, which is
    what GRPO learns from, how many are cut off, and the best and worst answer to some of them."""
    # Before the imports, which take longer.
    file = recipe_at(options.recipe)
    check_keys(file)
    from .runs.baseline import show_baseline
    from .runs.recipe import read_recipe

    show_baseline(read_recipe(["--config", str(file), *rest]), options.prompts)
