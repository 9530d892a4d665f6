"""The command `grpo-hf`: train a recipe, list and try rewards, plot a run, show token credit.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, DataError, OutputExistsError, RewardOutputError
from .runs.program import exit_on_error, quiet

if TYPE_CHECKING:
    from rich.console import Console

    from .scoring.outcomes import Outcome
    from .scoring.reward import Reward
    from .scoring.trial import Finding

# The width of tables in a file or a pipe, where rich would assume 80 columns.
_WIDTH_WITHOUT_TERMINAL = 160
# `rewards test` prints this many characters of a completion.
_SHOWN_CHARACTERS = 100


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

    _add_rewards_commands(commands)

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


def _add_rewards_commands(commands: Any) -> None:
    """Add `rewards list`, `rewards check` and `rewards test` to the parser of the command."""
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


# The docstrings of the commands below are what `--help` shows as their descriptions.


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    """Train any dataset with any rewards, named in a YAML file and flags. On several devices:
    accelerate launch -m grpo_hf.cli train recipe.yaml."""
    from .runs.recipe import read_recipe

    recipe = read_recipe(["--config", str(options.recipe), *rest])
    # This import takes longer than reading a recipe, and a mistake in a recipe should show soon.
    from .runs.train import train

    train(recipe)


def _rewards_list(options: argparse.Namespace, rest: list[str]) -> None:
    """List every reward that can be named, with the columns that it reads and its options."""
    from rich.markup import escape
    from rich.table import Table

    from .scoring.registry import installed_rewards

    table = Table(box=None, pad_edge=False)
    # A name that is wrapped could not be copied.
    table.add_column("reward", no_wrap=True)
    table.add_column("reads", ratio=1)
    table.add_column("what it pays for", ratio=4)
    table.add_column("options", ratio=4)
    table.add_column("from", ratio=1)
    for reward in installed_rewards():
        reward_options = ", ".join(f"{name}={value!r}" for name, value in reward.options.items())
        # Any of these may hold square brackets, which rich would read as markup.
        table.add_row(
            escape(reward.name),
            escape(", ".join(reward.columns)),
            escape(reward.error or reward.doc),
            escape(reward_options),
            escape(reward.source),
        )
    _console().print(table)


def _rewards_test(options: argparse.Namespace, rest: list[str]) -> None:
    """Score completions given as text or as a jsonl file, one line of output each."""
    from .scoring.registry import load_reward

    reward = load_reward(options.reward)
    rows = _rows(options)
    for name in reward.columns:
        if not all(name in row for row in rows):
            raise DataError(
                f"reward {reward.name!r} needs the column {name!r}: give --column {name}=VALUE, or "
                "rows with it in --completions."
            )
    columns = _columns(rows)
    completions = columns.pop("completion")
    outcomes = _scored(reward, completions, columns)
    failure = None
    for outcome, text in zip(outcomes, completions, strict=True):
        if outcome.failure:
            failure = failure or outcome.failure
            shown = f"failed ({outcome.failure.reason})"
        elif outcome.value is None:
            shown = "cannot judge"
        else:
            shown = f"{outcome.value:.3f}"
        print(f"{shown}  {str(text)[:_SHOWN_CHARACTERS]!r}")
    # The other scores are printed first; the exit code then says that one is missing.
    if failure is not None:
        raise RewardOutputError(f"reward {reward.spec} failed ({failure.reason}): {failure.detail}")


def _rewards_check(options: argparse.Namespace, rest: list[str]) -> None:
    """Try the rewards of a recipe on rows of its data: with the gold answer, and with answers that
    nobody should be paid for. Names each reward that pays for one of those."""
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
    for finding in findings:
        table.add_row(*_finding_cells(finding))
        notes.extend(finding.notes())
    console = _console()
    console.print(table)
    for note in notes:
        # Without markup, because a note may quote a text in square brackets.
        console.print(f"note: {note}", markup=False)


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


def _credit_row(run: Path, step: int | None) -> dict[str, Any]:
    """Return the line of a run's credit file for a step, by default for the last step."""
    from .reporting.token_credit import CREDIT_FILE

    file = run / CREDIT_FILE
    row_by_step = {}
    if file.is_file():
        # A run that was resumed may have logged a step twice; the later row counts.
        for row in _json_lines(file):
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


def _console() -> "Console":
    """Return a console for tables, which is wide where the output is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    return Console(highlight=False, width=width)


def _finding_cells(finding: "Finding") -> list[str]:
    """Return the cells of a reward's row in the table of `rewards check`."""
    cells = [finding.reward.name]
    for mean in finding.pays.values():
        cells.append("-" if mean is None else f"{mean:.2f}")
    if finding.lowest is None:
        cells.append("-")
    else:
        cells.append(f"{finding.lowest:.2f} to {finding.highest:.2f}")
    cells.append(f"{finding.milliseconds:.2f}")
    cells.append("yes" if finding.deterministic else "[red]no[/]")
    return cells


def _check_run(folder: Path) -> None:
    if not (folder / "metrics.jsonl").is_file():
        raise DataError(f"{folder} is not the output folder of a run: it has no metrics.jsonl.")


def _rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of `--completion` and `--completions` with the columns of `--column`."""
    shared: dict[str, Any] = {}
    for entry in options.column:
        name, separator, value = entry.partition("=")
        if not separator or not name:
            raise ConfigError(f"--column {entry}: expected NAME=VALUE, as in --column answer=42.")
        shared[name] = _literal(value)
    rows: list[dict[str, Any]] = []
    for text in options.completion:
        rows.append(shared | {"completion": text})
    if options.completions is not None:
        for row in _json_lines(options.completions):
            # A completion that comes from --column alone would be the same text in every row.
            if "completion" not in row:
                raise _no_text()
            # A column of the file wins over --column.
            rows.append(shared | row)
    if not rows:
        raise _no_text()
    return rows


def _no_text() -> DataError:
    return DataError(
        "no text to score: give --completion TEXT, or --completions FILE with rows that have one."
    )


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the columns of rows under the names by which a trainer passes them to rewards."""
    columns: dict[str, Any] = {}
    for place, row in enumerate(rows):
        for name, value in row.items():
            # A row without the column has None there.
            columns.setdefault(name, [None] * len(rows))[place] = value
    prompts = columns.pop("prompt", [""] * len(rows))
    columns.setdefault("prompts", prompts)
    # There is no tokenizer here; words are about as many as tokens.
    words = [str(text).split() for text in columns["completion"]]
    columns.setdefault("completion_ids", words)
    return columns


def _scored(reward: "Reward", completions: list[Any], columns: dict[str, Any]) -> "list[Outcome]":
    """Return the outcome of each completion, scored in worker processes as in a run."""
    from .scoring.run_rewards import isolate
    from .scoring.scored_reward import ScoredReward

    scored = ScoredReward(reward)
    # None means as many workers as this process has cores.
    process = isolate([scored], workers=None, timeout=None)
    if reward.reads("trainer_state"):
        # It imports torch, which takes seconds.
        from transformers import TrainerState

        columns["trainer_state"] = TrainerState(max_steps=1, epoch=0.0)
    outcomes = scored.score(completions, columns)
    if process is not None:
        process.close()
    return outcomes


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a jsonl file; empty lines are skipped."""
    try:
        # Only a newline ends a line: `splitlines` would also cut at U+2028 in a text. Editors on
        # Windows put a byte order mark at the start, which utf-8-sig drops.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}).") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{number}: not JSON ({error.msg}).") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}:{number}: expected an object, got {type(row).__name__}.")
        rows.append(row)
    return rows


def _literal(value: str) -> Any:
    """Return a value as JSON reads it (42, true, [1, 2]), or else the text itself (1,234)."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


if __name__ == "__main__":
    main(sys.argv[1:])
