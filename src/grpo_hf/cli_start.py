"""The commands that begin a task: `grpo-hf init`, `settings` and `schema`."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .cli_rewards import check_recipe
from .errors import ConfigError, DataError, GrpoError, did_you_mean_path
from .runs.program import LOADING

if TYPE_CHECKING:
    from rich.console import Console

    from .runs.settings import Setting
    from .starting.data_facts import DataFacts
    from .starting.task_files import Plan

_Answer = TypeVar("_Answer")

_WIDTH = 100
# What is answered for a reward that is to be written.
_NEW = "new"
# Of files that hold data, as `data.readers` knows them.
_DATA_FILES = (".jsonl", ".json", ".csv", ".parquet")


def add_start_commands(commands: Any) -> None:
    """Add `init`, `settings` and `schema` to the parser of the command."""
    init = commands.add_parser(
        "init", help="begin a task: a recipe and a reward from data", description=_init.__doc__
    )
    init.add_argument("folder", type=Path, help="folder for the files; it may be new")
    init.add_argument("--data", help="jsonl, json, csv or parquet file, folder, or Hub dataset")
    init.add_argument("--model", help="folder, or name on the Hub")
    init.add_argument("--prompt", metavar="COLUMN", help="column of the prompt")
    init.add_argument("--gold", metavar="COLUMN", help="column of the right answer; - for none")
    init.add_argument("--reward", help="a reward that is there, instead of a new file")
    init.set_defaults(command=_init, begins_with=LOADING)

    settings = commands.add_parser(
        "settings", help="every setting by topic, or one", description=_settings.__doc__
    )
    settings.add_argument(
        "name", nargs="?", help="a setting, a word of a topic, or `all` (default: names by topic)"
    )
    settings.set_defaults(command=_settings, begins_with=LOADING)

    schema = commands.add_parser(
        "schema", help="a JSON schema of recipes, for editors", description=_schema.__doc__
    )
    schema.set_defaults(command=_schema, begins_with=LOADING)


# The docstrings of the commands are what `--help` shows as their descriptions.


def _init(options: argparse.Namespace, rest: list[str]) -> None:
    """Begin a task: look at the data, write a recipe with comments, a reward with examples that are
    a test, and a schema for editors; try them, and say what comes next. Nothing is written over. In
    a terminal it asks for what is not given."""
    from .starting.next_steps import next_steps
    from .starting.task_folder import RECIPE, REWARD, refuse_existing

    # Before the imports, which take longer.
    refuse_existing(options.folder)
    if options.model is not None:
        _checked_model(options.model)
    if options.data is not None:
        _checked_data_file(options.data)
    from .starting.data_facts import guess_gold, guess_prompt, look_at
    from .starting.task_files import Plan, write_task

    facts = _settled(
        options.data,
        _Question("Data: a jsonl, csv or parquet file, or a name on the Hub", flag="--data"),
        lambda data: look_at(_checked_data_file(data)),
    )
    _show_columns(facts)
    prompt = _settled(
        options.prompt,
        _Question("Column of the prompt", lambda: guess_prompt(facts, options.gold)),
        facts.checked,
    )
    guessed = guess_gold(facts, prompt)
    gold = _settled(
        options.gold,
        _Question("Column of the right answer (- for none)", lambda: guessed or "-"),
        lambda column: None if column == "-" else facts.checked(column),
    )
    note = _note_on_gold(facts, prompt, gold, guessed) if options.gold is None else ""
    # Of a flag it was checked above.
    model = options.model or _settled(
        None, _Question("Model: a folder, or a name on the Hub", _default_model), _checked_model
    )
    reward_there = _settled(
        options.reward,
        _Question(
            f"Reward: {_NEW} writes one, or the name of one that is there (FILE.py:FUNCTION)",
            lambda: _NEW,
        ),
        _checked_reward,
    )
    plan = Plan(options.folder, model, facts, prompt, gold, _moved_reward(reward_there, options))
    written = write_task(plan)
    console = _console()
    console.print(f"prompt: {prompt}; right answer: {gold or 'none'}{note}", markup=False)
    if note and gold is None and guessed is None:
        _say_second_try(plan, None if reward_there == _NEW else reward_there)
    console.print(f"written: {', '.join(map(str, written))}", markup=False, soft_wrap=True)
    recipe = options.folder / RECIPE
    reward = options.folder / REWARD
    if reward in written:
        _run_examples(reward)
    check_recipe(recipe)
    if plan.reward:
        print(
            "note: the reward is yours, so the recipe has no instruction. Say in it what the "
            "reward pays for, unless your prompts do."
        )
    is_guessed = plan.instruction is not None and not plan.reward
    examples = reward if reward in written else None
    print(next_steps(recipe, Path(plan.output_dir), examples, is_guessed=is_guessed))


def _checked_data_file(name: str) -> str:
    """Check that a data file is there; a folder or a name on the Hub is looked at later."""
    file = Path(name)
    if file.suffix in _DATA_FILES and not file.exists():
        siblings = [each.name for each in file.parent.glob("*")]
        raise DataError(f"{file}: no such data file.{did_you_mean_path(file, siblings)}")
    return name


def _checked_model(name: str) -> str:
    """Check that the folder of a model is there; a name that may be on the Hub is noted."""
    if name.startswith("embedded:"):
        return name
    from .models.places import check_local, folder_meant, is_at_hand

    check_local(name, "model", "config.json")
    if not is_at_hand(name):
        print(
            f"note: {name} is no folder here, so `grpo-hf train` will fetch it from the Hub."
            f"{folder_meant(name)}"
        )
    return name


def _checked_reward(spec: str) -> str:
    """Check that a reward can be loaded, before a recipe is written that names it."""
    from .scoring.registry import load_reward

    if spec != _NEW:
        load_reward(spec, relative_to=Path.cwd())
    return spec


def _note_on_gold(facts: "DataFacts", prompt: str, gold: str | None, guessed: str | None) -> str:
    """Return what to do about a right answer that no flag has named."""
    others = ", ".join(name for name in facts.columns if name not in (prompt, gold))
    if gold is not None:
        return f" (--gold COLUMN for another: {others}; - for none)" if others else ""
    if not others:
        return ""
    note = ", so the reward looks at the form alone, and cannot tell what is right"
    # In a terminal it was offered, and refused.
    if guessed is not None:
        return note
    return (
        f"{note}. No column is called as right answers are: name it with --gold COLUMN ({others})"
    )


def _say_second_try(plan: "Plan", reward: str | None) -> None:
    """Print the command that begins the task again with a right answer, if a column may hold it."""
    from .starting.data_facts import possible_gold

    possible = possible_gold(plan.facts, plan.prompt)
    if not possible:
        return
    # Of several the first is as likely a wrong one, and would be copied.
    gold = possible[0] if len(possible) == 1 else "COLUMN"
    # Nothing is written over, so it needs a folder of its own.
    name = plan.folder.name.strip(".") or "again"
    number = 2
    while (folder := plan.folder.parent / f"{name}-{number}").exists():
        number += 1
    (data,) = plan.facts.place.values()
    words = ["grpo-hf", "init", str(folder), "--data", data, "--model", plan.model]
    words += ["--prompt", plan.prompt]
    if reward is not None:
        words += ["--reward", reward]
    # In one line, to be copied.
    print(f"with a right answer:\n  {shlex.join([*words, '--gold', gold])}")


def _default_model() -> str:
    """Return the small model that `make smollm2` makes, where it is, or its name on the Hub."""
    here = Path("models/smollm2-135m-instruct")
    return str(here) if here.is_dir() else "HuggingFaceTB/SmolLM2-135M-Instruct"


def _moved_reward(reward: str, options: argparse.Namespace) -> str | None:
    """Return the reward that was asked for; a file is named from the recipe's folder."""
    from .runs.recipe import relocated

    if reward == _NEW:
        return None
    moved: str = relocated(reward, Path.cwd(), options.folder.resolve())
    return moved


@dataclass(frozen=True)
class _Question:
    """What is asked in a terminal where a flag is not given.

    Args:
        guess: returns the answer that is offered, and taken where there is no terminal.
        flag: that has to be given there, where nothing can be guessed.
    """

    text: str
    guess: Callable[[], str] | None = None
    flag: str = ""


def _settled(given: str | None, question: _Question, checked: Callable[[str], _Answer]) -> _Answer:
    """Return what a flag, an answer in a terminal, or else a guess stands for.

    What is typed in a terminal and wrong is asked for again: nobody answers all questions twice.

    Args:
        given: the flag.
        checked: returns what an answer stands for, and raises a `GrpoError` for a wrong one.

    Raises:
        ConfigError: there is nobody to ask, and no guess.
        GrpoError: the flag or the guess is wrong.
    """
    if given is not None:
        return checked(given)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        if question.guess is None:
            raise ConfigError(f"give {question.flag}: there is no terminal to ask in.")
        return checked(question.guess())
    default = None
    if question.guess is not None:
        # Without a guess there is still somebody who knows.
        with suppress(GrpoError):
            default = question.guess()
    while True:
        try:
            return checked(_typed(question.text, default))
        except GrpoError as error:
            print(f"error: {error}")


def _typed(text: str, default: str | None) -> str:
    """Return what somebody types in a terminal; an empty line is the default, if there is one."""
    from rich.prompt import Prompt

    answer: str | None = None
    while not answer:
        try:
            answer = Prompt.ask(text, default=default)
        except EOFError:
            # Ctrl-D; nothing is written before the last question.
            raise KeyboardInterrupt from None
    return answer


def _show_columns(facts: "DataFacts") -> None:
    """Print a table of the data's columns."""
    from rich.markup import escape
    from rich.table import Table

    rows = len(facts.split.rows)
    table = Table(box=None, pad_edge=False, title=f"{escape(facts.split.source)}: {rows:,} rows")
    for title in ("column", "kind", "filled", "different", "characters", "example"):
        table.add_column(title)
    for column in facts.columns.values():
        counts = (column.filled, column.distinct, column.length)
        cells = (column.name, column.kind, *map(str, counts), column.example)
        table.add_row(*map(escape, cells))
    console = _console()
    console.print(table)
    if facts.split.bad:
        console.print(facts.split.describe_bad(), markup=False)


def _run_examples(reward: Path) -> None:
    """Run the examples of a reward file, as its author will."""
    done = subprocess.run(
        [sys.executable, "-B", "-m", "doctest", str(reward)], capture_output=True, text=True
    )
    said = "hold" if done.returncode == 0 else f"do not hold:\n{done.stdout}{done.stderr}"
    print(f"the examples in {reward} {said}")


def _settings(options: argparse.Namespace, rest: list[str]) -> None:
    """List the settings of a recipe by topic, or explain one. Each is a key of the YAML file and a
    flag."""
    from .runs.settings import Setting, all_settings, by_topic, find

    if options.name is None:
        console = _console()
        for topic, members in by_topic(all_settings()).items():
            console.print(topic, style="bold", markup=False)
            names = ", ".join(setting.name for setting in members)
            _print_indented(console, names)
        console.print("`grpo-hf settings NAME` explains one; a word of a topic, or all: in lines.")
        return
    found = list(all_settings().values()) if options.name == "all" else find(options.name)
    if isinstance(found, Setting):
        _explain(found)
    else:
        _print_lines(found)


def _print_lines(settings: "list[Setting]") -> None:
    """Print a line for each setting, below its topic."""
    from .runs.settings import by_topic

    console = _console()
    members: list[Setting]
    for topic, members in by_topic({setting.name: setting for setting in settings}).items():
        console.print(topic, style="bold", markup=False)
        for setting in members:
            start = f"  {setting.name} ({setting.default!r}): "
            room = max(_WIDTH - len(start), 30)
            text = setting.summary
            shown = text if len(text) <= room else f"{text[: room - 3]}..."
            console.print(start + shown, markup=False, soft_wrap=True)


def _explain(setting: "Setting") -> None:
    """Print everything about one setting."""
    console = _console()
    console.print(setting.name, style="bold", end="")
    console.print(f"  {setting.kind}, default {setting.default!r}", markup=False)
    if setting.choices:
        _print_indented(console, f"one of {', '.join(map(str, setting.choices))}")
    _print_indented(console, setting.text)
    if setting.default_in_python != setting.default:
        said = f"{setting.default_in_python!r} in Python's API"
        _print_indented(console, f"The default is a recipe's; {said}: see docs/settings.md.")
    _print_indented(console, f"topic: {setting.topic}; flag: --{setting.name}")


def _print_indented(console: "Console", text: str) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(Padding(Text(text), (0, 0, 0, 2)))


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, width=_WIDTH)


def _schema(options: argparse.Namespace, rest: list[str]) -> None:
    """Print a JSON schema of recipes. An editor that knows YAML completes and checks the keys of a
    file that names it: # yaml-language-server: $schema=./recipe.schema.json"""
    from .runs.recipe_schema import schema_text

    print(schema_text())
