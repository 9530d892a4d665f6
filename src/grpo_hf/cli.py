"""The command `grpo-hf`: train a recipe, list and try rewards, plot a run, show token credit.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cli_rewards import add_rewards_commands, json_lines
from .errors import ConfigError, DataError, OutputExistsError
from .runs.program import exit_on_error, quiet


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with code 2 on an error that the user can correct."""
    parser = _parser()
    # A recipe's settings are flags too. Their parser is slow to import, so they stay in `rest`.
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.takes_settings:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    quiet()
    with exit_on_error():
        options.command(options, rest)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grpo-hf", description="GRPO on one frozen base model.")
    parser.set_defaults(takes_settings=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a recipe", description=_train.__doc__)
    train.add_argument("recipe", type=Path, help="YAML file; every setting in it is also a flag")
    train.set_defaults(command=_train, takes_settings=True)

    add_rewards_commands(commands)

    plot = commands.add_parser("plot", help="draw a run's rewards", description=_plot.__doc__)
    plot.add_argument("run", type=Path, help="output folder of a run")
    plot.add_argument("picture", type=Path, help="PNG or SVG file to write")
    plot.set_defaults(command=_plot)

    credit = commands.add_parser(
        "credit", help="show what each token was trained on", description=_credit.__doc__
    )
    credit.add_argument("run", type=Path, help="output folder of a run")
    credit.add_argument("--step", type=int, help="a logged step (default: the last)")
    credit.add_argument("--html", type=Path, metavar="FILE", help="write a page instead")
    credit.set_defaults(command=_credit)

    replay = commands.add_parser(
        "replay", help="compute a step again that was not finite", description=_replay.__doc__
    )
    replay.add_argument("run", type=Path, help="output folder of a run")
    replay.add_argument("--step", type=int, help="a kept step (default: the last)")
    replay.set_defaults(command=_replay)
    return parser


# The docstrings of the commands are what `--help` shows as their descriptions.


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    """Train any dataset with any rewards, named in a YAML file and flags. On several devices:
    accelerate launch -m grpo_hf.cli train recipe.yaml."""
    from .runs.recipe import read_recipe

    recipe = read_recipe(["--config", str(options.recipe), *rest])
    # This import takes longer than reading a recipe, and a mistake in a recipe should show soon.
    from .runs.train import train

    train(recipe)


def _plot(options: argparse.Namespace, rest: list[str]) -> None:
    """Draw the mean of every reward and the KL over the steps of a run (needs matplotlib)."""
    _check_run(options.run)
    # matplotlib would find this out last, and with a traceback.
    if options.picture.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"{options.picture}: expected a name that ends in .png, .svg or .pdf.")
    from .reporting.report import plot_rewards

    try:
        plot_rewards(options.run, options.picture)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"`grpo-hf plot` needs {error.name}: pip install 'grpo-hf[plot]'."
        ) from error
    print(options.picture)


def _credit(options: argparse.Namespace, rest: list[str]) -> None:
    """Show completions of a step of a run, each token coloured by the advantage that it was trained
    on."""
    from rich.console import Console

    from .reporting.credit_display import to_html, to_text
    from .reporting.token_credit import Group

    _check_run(options.run)
    group = Group.of(_credit_row(options.run, options.step))
    if options.html is None:
        # The terminal's own width: a completion is text that may wrap, not a table.
        Console(highlight=False).print(to_text(group))
        return
    try:
        # Mode "x" fails where the file exists, so nobody's page is lost.
        with options.html.open("x", encoding="utf-8") as page:
            page.write(to_html([group]))
    except FileExistsError:
        raise OutputExistsError(
            f"{options.html} exists, and is not overwritten. Give --html another name."
        ) from None
    except OSError as error:
        raise OutputExistsError(
            f"{options.html} cannot be written ({error.strerror}). Give another --html."
        ) from error
    print(options.html)


def _replay(options: argparse.Namespace, rest: list[str]) -> None:
    """Compute loss and gradient of each row of a step again that was stopped at or left out,
    because its numbers were not finite."""
    from .durability.kept_batch import read_batch

    # Before the model loads, which takes longer.
    kept = read_batch(options.run, options.step)
    from .runs.replay import replay

    for line in replay(options.run, kept):
        print(line)


def _credit_row(run: Path, step: int | None) -> dict[str, Any]:
    """Return the line of a run's credit file for a step, by default for the last step."""
    from .reporting.token_credit import CREDIT_FILE

    file = run / CREDIT_FILE
    row_by_step = {}
    if file.is_file():
        # A run that was resumed may have logged a step twice; the later row counts.
        for row in json_lines(file):
            row_by_step[row["step"]] = row
    if not row_by_step:
        raise DataError(
            f"{run} has no step in {CREDIT_FILE}: the run was made with log_credit false, or "
            "without logging by steps. Train with --log_credit true --logging_strategy steps."
        )
    if step is None:
        step = max(row_by_step)
    if step not in row_by_step:
        known = ", ".join(map(str, sorted(row_by_step)))
        raise DataError(f"{file} has no step {step}. Give --step one of {known}.")
    return row_by_step[step]


def _check_run(folder: Path) -> None:
    if not (folder / "metrics.jsonl").is_file():
        raise DataError(f"{folder} is not the output folder of a run: it has no metrics.jsonl.")


if __name__ == "__main__":
    main(sys.argv[1:])
