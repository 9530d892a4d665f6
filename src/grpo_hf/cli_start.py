"""The commands that begin a task: `grpo-hf init`, `settings` and `schema`."""

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from .runs.settings import Setting

_WIDTH = 100


def add_start_commands(commands: Any) -> None:
    """Add `settings` and `schema` to the parser of the command."""
    settings = commands.add_parser(
        "settings", help="every setting by topic, or one", description=_settings.__doc__
    )
    settings.add_argument(
        "name", nargs="?", help="a setting, a word of a topic, or `all` (default: names by topic)"
    )
    settings.set_defaults(command=_settings)

    schema = commands.add_parser(
        "schema", help="a JSON schema of recipes, for editors", description=_schema.__doc__
    )
    schema.set_defaults(command=_schema)


# The docstrings of the commands are what `--help` shows as their descriptions.


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
    print(schema_text())


def schema_text() -> str:
    """Return the JSON schema of recipes as text."""
    from .runs.recipe_schema import recipe_schema

    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False)
