"""The commands `grpo-hf rewards`: list rewards, try them on texts, and on the data of a recipe."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, DataError, RewardOutputError
from .recipe_keys import check_keys
from .run_folders import recipe_at

if TYPE_CHECKING:
    from rich.console import Console

    from .scoring.finding import Finding
    from .scoring.outcomes import Outcome
    from .scoring.reward import Reward

# The width of tables in a file or a pipe, where rich would assume 80 columns.
_WIDTH_WITHOUT_TERMINAL = 160
# Rows that `rewards check` tries, unless told otherwise.
_CHECKED_ROWS = 8
# `rewards test` prints this many characters of a completion.
_SHOWN_CHARACTERS = 100


def add_rewards_commands(commands: Any) -> None:
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
        "--rows",
        type=int,
        default=_CHECKED_ROWS,
        help=f"rows of the training data to try (default {_CHECKED_ROWS})",
    )
    check.set_defaults(command=_rewards_check, takes_settings=True)

    test = rewards.add_parser(
        "test", help="score texts with a reward", description=_rewards_test.__doc__
    )
    test.add_argument(
        "reward", help="name, ./file.py:function or package.module:function, with options"
    )
    test.add_argument(
        "--messages",
        action="store_true",
        help="give each text as a model with a chat template does, as a list with a message",
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
        "--column",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a column, read as JSON: answer=42 is a number, answer='\"42\"' a text",
    )
    test.set_defaults(command=_rewards_test)
    # Known to who explains a wrong name.
    group.set_defaults(subcommands=rewards.choices)


# The docstrings of the commands are what `--help` shows as their descriptions.


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
    given = [_as_messages(each) for each in completions] if options.messages else completions
    outcomes = _scored(reward, given, columns)
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
    if options.rows < 2:
        raise ConfigError(
            f"--rows is {options.rows}; expected 2 or more, to try a row's answer on another."
        )
    # Before the imports, which take longer.
    failed = check_recipe(recipe_at(options.recipe), rest, options.rows)
    if failed:
        raise RewardOutputError(
            f"{', '.join(failed)}: see the note{'s' if len(failed) > 1 else ''} above. `grpo-hf "
            "rewards test` shows the whole traceback of a failure; with a chat model a completion "
            "is a list of messages, which --messages makes of a text, and "
            "grpo_hf.completion_text(completion) its text."
        )


def check_recipe(file: Path, flags: Sequence[str] = (), count: int = _CHECKED_ROWS) -> list[str]:
    """Try the rewards of a recipe on so many rows, and print what they pay for.

    Returns:
        The names of the rewards that failed on any of them.
    """
    # Before the imports, which take longer.
    check_keys(file)
    from rich.markup import escape
    from rich.table import Table

    from .runs.preflight import sample_rows
    from .runs.recipe import read_recipe
    from .scoring.trial import examine

    recipe = read_recipe(["--config", str(file), *flags])
    rewards, rows, notes = sample_rows(recipe, count)
    findings = examine(rewards, rows, timeout=recipe.training.reward_timeout)
    table = Table(title=f"mean reward on {len(rows)} rows, by what the completion is")
    # Kinds below each other: beside each other they are too wide for a terminal.
    table.add_column("completion")
    for finding in findings:
        table.add_column(escape(finding.reward.name), justify="right")
        notes.extend(finding.notes())
    facts = [_facts(finding) for finding in findings]
    for name in facts[0]:
        table.add_row(name, *(of_reward[name] for of_reward in facts))
    console = _console()
    console.print(table)
    for note in notes:
        # Without markup, because a note may quote a text in square brackets.
        console.print(f"note: {note}", markup=False)
    return [finding.reward.name for finding in findings if finding.failures]


def _facts(finding: "Finding") -> dict[str, str]:
    """Return what the table of `rewards check` says of a reward, by the name of the row."""
    facts = {kind: "-" if mean is None else f"{mean:.2f}" for kind, mean in finding.pays.items()}
    known = finding.lowest is not None
    facts["range"] = f"{finding.lowest:.2f} to {finding.highest:.2f}" if known else "-"
    facts["ms for each"] = f"{finding.milliseconds:.2f}"
    facts["the same twice"] = "yes" if finding.deterministic else "[red]no[/]"
    return facts


def _console() -> "Console":
    """Return a console for tables, which is wide where the output is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    return Console(highlight=False, width=width)


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
        for row in json_lines(options.completions):
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


def _as_messages(completion: Any) -> Any:
    """Return a text as the answer in a conversation; messages stay."""
    is_text = isinstance(completion, str)
    return [{"role": "assistant", "content": completion}] if is_text else completion


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


def json_lines(file: Path) -> list[dict[str, Any]]:
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
