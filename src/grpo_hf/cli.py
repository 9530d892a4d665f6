"""The command `grpo-hf`: plan and train a recipe, try rewards; show and use what a run has trained.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import argparse
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from .cli_evaluate import add_evaluate_command
from .cli_plan import add_plan_commands
from .cli_report import add_report_commands
from .cli_rewards import add_rewards_commands
from .cli_start import add_start_commands
from .cli_use import add_use_commands
from .errors import ConfigError, did_you_mean
from .recipe_keys import check_flags, check_keys
from .run_files import METRICS_FILE
from .run_folders import recipe_at
from .runs.program import LOADING, STOPPED_TRAINING, exit_on_error, quiet

# Seconds after which a user wonders what a command does.
_PATIENCE = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with code 2 on an error that the user can correct."""
    parser, commands = _parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    _check_command(parser, commands, given)
    # A recipe's settings are flags too. Their parser is slow to import, so they stay in `rest`.
    options, rest = parser.parse_known_args(given)
    if rest and not options.takes_settings:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    quiet()
    with exit_on_error(options.stopped):
        # Before the command imports what it needs, which takes longer.
        check_flags(rest, _flags_of(commands, given))
        _say_after_a_moment(LOADING if options.takes_settings else options.begins_with)
        options.command(options, rest)


def _say_after_a_moment(said: str) -> None:
    """Say what a command is doing in its first seconds, unless it ends before: imports are slow."""
    # The launcher sets RANK.
    is_loaded = said == LOADING and "trl" in sys.modules
    if not said or is_loaded or os.environ.get("RANK", "0") != "0":
        return
    timer = threading.Timer(_PATIENCE, print, (said,), {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()


def _check_command(
    parser: argparse.ArgumentParser,
    commands: Mapping[str, argparse.ArgumentParser],
    given: Sequence[str],
) -> None:
    """End with a list of the commands where none is given, or with the nearest to a wrong one."""
    if not given:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    name = given[0]
    if name.startswith("-"):
        return
    if name not in commands:
        parser.error(
            f"there is no command {name!r}.{did_you_mean(name, commands)} The commands are "
            f"{', '.join(commands)}."
        )
    below = commands[name].get_default("subcommands")
    if below is not None:
        _check_command(commands[name], below, given[1:])


def _flags_of(commands: Mapping[str, argparse.ArgumentParser], given: Sequence[str]) -> list[str]:
    """Return the flags of the command that is given, without their dashes."""
    command = commands[given[0]]
    below = command.get_default("subcommands")
    if below is not None:
        return _flags_of(below, given[1:])
    return re.findall(r"--(\w+)", command.format_usage())


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Return the parser of the command, and those of its subcommands."""
    parser = argparse.ArgumentParser(prog="grpo-hf", description="GRPO on one frozen base model.")
    parser.add_argument("--version", action="version", version=f"grpo-hf {version('grpo-hf')}")
    parser.set_defaults(takes_settings=False, begins_with="", stopped="stopped.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a recipe",
        description=_train.__doc__,
        epilog="Settings: `grpo-hf settings` lists them by topic, `grpo-hf settings NAME` explains "
        "one. `grpo-hf init` writes a first recipe.",
    )
    train.add_argument("recipe", type=Path, help="YAML file; every setting in it is also a flag")
    train.set_defaults(command=_train, takes_settings=True, stopped=STOPPED_TRAINING)

    add_start_commands(commands)
    add_plan_commands(commands)
    add_evaluate_command(commands)
    add_rewards_commands(commands)

    add_report_commands(commands)

    replay = commands.add_parser(
        "replay", help="compute a step again that was not finite", description=_replay.__doc__
    )
    replay.add_argument("run", type=Path, help="output folder of a run")
    replay.add_argument("--step", type=int, help="a kept step (default: the last)")
    replay.set_defaults(command=_replay)
    add_use_commands(commands)
    return parser, commands.choices


# The docstrings of the commands are what `--help` shows as their descriptions.


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    """Train any dataset with any rewards, named in a YAML file and flags. On several devices:
    accelerate launch -m grpo_hf.cli train recipe.yaml."""
    # Before the imports, which take longer.
    file = recipe_at(options.recipe)
    if options.recipe.is_dir() and (options.recipe / METRICS_FILE).is_file():
        raise ConfigError(
            f"{options.recipe} is the output folder of a run. To go on with it, give its recipe "
            f"with --output_dir {options.recipe} --resume_from_checkpoint auto. To run it again: "
            f"grpo-hf train {file} --output_dir NEW"
        )
    check_keys(file)
    from .runs.recipe import read_recipe

    recipe = read_recipe(["--config", str(file), *rest])
    # This import takes longer than reading a recipe, and a mistake in a recipe should show soon.
    from .runs.train import train

    train(recipe)


def _replay(options: argparse.Namespace, rest: list[str]) -> None:
    """Compute loss and gradient of each row of a step again that was stopped at or left out,
    because its numbers were not finite."""
    from .durability.kept_batch import read_batch

    # Before the model loads, which takes longer.
    kept = read_batch(options.run, options.step)
    from .runs.replay import replay

    for line in replay(options.run, kept):
        print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
