"""The command `grpo-hf`: train a recipe, see and try rewards, draw a run and the credit of its tokens.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .errors import ConfigError, DataError, OutputExistsError, RewardOutputError
from .runs.program import exit_on_error, quiet


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; errors that are the user's to mend leave with exit code 2."""
    parser = _parser()
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

    group = commands.add_parser("rewards", help="list and try rewards")
    rewards = group.add_subparsers(required=True, metavar="COMMAND")
    listing = rewards.add_parser(
        "list", help="every installed reward", description=_rewards_list.__doc__
    )
    listing.set_defaults(command=_rewards_list)
    check = rewards.add_parser(
        "check", help="what a recipe's rewards pay for", description=_rewards_check.__doc__
    )
    check.add_argument("recipe", type=Path, help="YAML file; every setting in it is also a flag")
    check.add_argument(
        "--rows", type=int, default=8, help="rows of the training data to try (default 8)"
    )
    check.set_defaults(command=_rewards_check, takes_settings=True)
    test = rewards.add_parser(
        "test", help="score texts with a reward", description=_rewards_test.__doc__
    )
    test.add_argument(
        "reward", help="name, ./file.py:function or package.module:function, with options"
    )
    test.add_argument(
        "--completion", action="append", default=[], help="a text to score; repeat for more"
    )
    test.add_argument(
        "--completions",
        type=Path,
        help="jsonl file: rows with `completion` and the columns it needs",
    )
    test.add_argument(
        "--column", action="append", default=[], metavar="NAME=VALUE", help="a column, as answer=42"
    )
    test.set_defaults(command=_rewards_test)

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
    return parser


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    """Train any dataset with any rewards, named in a YAML file and flags. On several devices: accelerate launch -m
    grpo_hf.cli train recipe.yaml."""
    from .runs.recipe import read_recipe

    recipe = read_recipe(["--config", str(options.recipe), *rest])
    from .runs.train import train

    train(recipe)


def _rewards_list(options: argparse.Namespace, rest: list[str]) -> None:
    """List every reward that can be named, with the columns that it reads and its options."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from .scoring.registry import installed_rewards

    table = Table(box=None, pad_edge=False)
    table.add_column("reward", no_wrap=True)
    for title, share in (("reads", 1), ("what it pays for", 4), ("options", 4), ("from", 1)):
        table.add_column(title, ratio=share)
    for reward in installed_rewards():
        options_shown = ", ".join(f"{name}={value!r}" for name, value in reward.options.items())
        row = (
            reward.name,
            ", ".join(reward.columns),
            reward.error or reward.doc,
            options_shown,
            reward.source,
        )
        table.add_row(*map(escape, row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def _rewards_test(options: argparse.Namespace, rest: list[str]) -> None:
    """Score completions given as text or as a jsonl file, one line of output each."""
    from .scoring.registry import load_reward
    from .scoring.scorer import DEFAULT_TIMEOUT, ScoredReward, isolate

    reward = load_reward(options.reward)
    rows = _rows(options)
    missing = [name for name in reward.columns if any(name not in row for row in rows)]
    if missing:
        raise DataError(
            f"reward {reward.name!r} needs the column {missing[0]!r}: give --column {missing[0]}=VALUE, or rows with "
            "it in --completions."
        )
    names = dict.fromkeys(name for row in rows for name in row)
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
    columns.setdefault("prompts", columns.pop("prompt", [""] * len(rows)))
    columns.setdefault("completion_ids", [str(text).split() for text in columns["completion"]])
    completions = columns.pop("completion")
    scored = ScoredReward(reward)
    process = isolate([scored], workers=None, timeout=DEFAULT_TIMEOUT)
    columns["trainer_state"] = SimpleNamespace(global_step=0, max_steps=1, epoch=0.0)
    scored(completions=completions, **columns)
    if process is not None:
        process.close()
    for outcome, text in zip(scored.outcomes, completions, strict=True):
        shown = "cannot judge" if outcome.value is None else f"{outcome.value:.3f}"
        shown = f"failed ({outcome.failure.reason})" if outcome.failure else shown
        print(f"{shown}  {str(text)[:100]!r}")
    if failure := next(
        (outcome.failure for outcome in scored.outcomes if outcome.failure is not None), None
    ):
        raise RewardOutputError(f"reward {reward.spec} failed ({failure.reason}): {failure.detail}")


def _rewards_check(options: argparse.Namespace, rest: list[str]) -> None:
    """Try the rewards of a recipe on rows of its data: with the gold answer, and with answers that nobody should be
    paid for. Names each reward that pays for one of those."""
    from rich.console import Console
    from rich.table import Table

    from .runs.preflight import sample_rows
    from .runs.recipe import read_recipe
    from .scoring.trial import examine

    if options.rows < 2:
        raise ConfigError(
            f"--rows is {options.rows}; expected 2 or more, to try a row's answer on another."
        )
    recipe = read_recipe(["--config", str(options.recipe), *rest])
    rewards, rows, notes = sample_rows(recipe, options.rows)
    findings = examine(rewards, rows, timeout=recipe.training.reward_timeout)
    table = Table(title=f"mean reward on {len(rows)} rows, by what the completion is")
    table.add_column("reward")
    for title in (*findings[0].pays, "range", "ms each", "the same twice"):
        table.add_column(title, justify="right")
    for found in findings:
        means = ["-" if mean is None else f"{mean:.2f}" for mean in found.pays.values()]
        span = "-" if found.lowest is None else f"{found.lowest:.2f} to {found.highest:.2f}"
        table.add_row(
            found.reward.name,
            *means,
            span,
            f"{found.milliseconds:.2f}",
            "yes" if found.deterministic else "[red]no[/]",
        )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for note in (*notes, *(note for found in findings for note in found.notes())):
        console.print(f"note: {note}", markup=False)


def _plot(options: argparse.Namespace, rest: list[str]) -> None:
    """Draw the mean of every reward and the KL over the steps of a run (needs matplotlib)."""
    _check_run(options.run)
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
    """Show completions of a step of a run, each token coloured by the advantage that it was trained on."""
    from rich.console import Console

    from .reporting.credit_display import to_html, to_text
    from .reporting.token_credit import CREDIT_FILE, Group

    _check_run(options.run)
    file = options.run / CREDIT_FILE
    rows = (
        {row["step"]: row for row in _json_lines(file)} if file.is_file() else {}
    )  # the last of a repeated step
    if not rows:
        raise DataError(
            f"{options.run} has no step in {CREDIT_FILE}: the run was made with log_credit false, or without logging "
            "by steps. Train with --log_credit true --logging_strategy steps."
        )
    step = max(rows) if options.step is None else options.step
    if step not in rows:
        raise DataError(
            f"{file} has no step {step}. Give --step one of {', '.join(map(str, sorted(rows)))}."
        )
    group = Group.of(rows[step])
    if options.html is None:
        return Console(highlight=False).print(to_text(group))
    try:
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


def _check_run(folder: Path) -> None:
    if not (folder / "metrics.jsonl").is_file():
        raise DataError(f"{folder} is not the output folder of a run: it has no metrics.jsonl.")


def _rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of `--completions` and `--completion`, each with the columns of `--column`."""
    shared: dict[str, Any] = {}
    for entry in options.column:
        name, found, value = entry.partition("=")
        if not found or not name:
            raise ConfigError(f"--column {entry}: expected NAME=VALUE, as in --column answer=42.")
        shared[name] = _literal(value)
    rows = [{"completion": text} for text in options.completion]
    if options.completions is not None:
        rows += _json_lines(options.completions)
    if not rows or any("completion" not in row for row in rows):
        raise DataError(
            "no text to score: give --completion TEXT, or --completions FILE with rows that have one."
        )
    return [{**shared, **row} for row in rows]


def _json_lines(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}).") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{number}: not JSON ({error.msg}).") from None
        if line.strip() and not isinstance(row, dict):
            raise DataError(f"{file}:{number}: expected an object, got {type(row).__name__}.")
        rows += [row] if row is not None else []
    return rows


def _literal(value: str) -> Any:
    """A value as JSON would read it (42, true, [1, 2]), else the text itself (1,234)."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


if __name__ == "__main__":
    main(sys.argv[1:])
