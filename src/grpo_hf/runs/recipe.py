"""A recipe: YAML and flags, read into TRL's dataclasses and the few settings that name the task.

Flags win over the YAML file, and the YAML file wins over the defaults. There is no second
configuration system: the parser is TRL's `TrlParser`, and the settings are the fields of
`ModelConfig`, `GRPOConfig` and `TaskArguments`.
"""

import os
from argparse import Action, ArgumentTypeError, Namespace
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from trl import ModelConfig, TrlParser

from ..config import GRPOConfig
from ..errors import ConfigError, OutputExistsError
from ..recipe_keys import load_mapping, unknown_flag, unknown_key
from ..run_files import RECIPE_FILE, write_whole
from ..run_folders import recipe_at
from ..trl_seam import parser_actions
from .defaults import defaults_for
from .task_arguments import TaskArguments

# The name of the small model that comes with this library; it is trained from random weights.
EMBEDDED_MODEL = "embedded:tiny"
# TRL's parser returns its results in this order.
KINDS = (TaskArguments, ModelConfig, GRPOConfig)
# A run's folder may be pushed to the Hub, so a saved recipe must not hold a token.
_SECRETS = ("hub_token",)
# Their entries may name files, relative to the recipe.
_OF_FILES = ("rewards", "tools")
# What argparse calls a flag that takes several values.
_SEVERAL = ("+", "*")
# A saved recipe that runs again needs its own output folder and starts from the beginning.
_OF_ONE_RUN = ("output_dir", "resume_from_checkpoint")
# A completion of fewer tokens than these would hardly be one that was asked for.
_SHORTEST_COMPLETION = 16


@dataclass(frozen=True)
class Recipe:
    """The full description of one run.

    Args:
        file: the YAML file, or None where flags gave everything.
        given: the settings that the file and the flags set, without secrets.
        chosen: the settings that it gets where neither says anything, other than TRL's.
    """

    task: TaskArguments
    model: ModelConfig
    training: GRPOConfig
    file: Path | None = None
    given: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder that relative reward files start from: the recipe's, or the current one."""
        return self.file.parent if self.file is not None else Path.cwd()

    @property
    def column_map(self) -> dict[str, str]:
        """`columns` as a mapping from the new name to the name in the data.

        Raises:
            ConfigError: an entry lacks the `=` or one of the two names.
        """
        renames = {}
        for entry in self.task.columns:
            # The name in the data may hold a "=" itself: only the first one separates.
            new, separator, old = entry.partition("=")
            if not (new and separator and old):
                raise ConfigError(
                    f"--columns {entry}: expected name_that_rewards_know=name_in_the_data, as "
                    "answer=Answer."
                )
            renames[new] = old
        return renames

    def shorten_completions(self, most: int | None) -> None:
        """Lower `max_completion_length` to what a model can do, unless the recipe gives it.

        Args:
            most: the most tokens that a completion can have, or None without a limit.
        """
        length = self.training.max_completion_length
        if most is None or length is None or "max_completion_length" in self.given:
            return
        if _SHORTEST_COMPLETION <= most < length:
            self.training.max_completion_length = most
            self.chosen["max_completion_length"] = most

    def save(self, folder: Path) -> None:
        """Write the settings as `recipe.yaml`, which runs again with a new --output_dir.

        Those that were chosen for it are written out, so that it means the same in any version.

        Raises:
            OutputExistsError: it cannot be written.
        """
        try:
            write_whole(folder / RECIPE_FILE, self.saved_in(folder))
        except OSError as error:
            raise OutputExistsError(
                f"{folder}/recipe.yaml cannot be written ({error.strerror or error}). Free space "
                "there, or give another --output_dir."
            ) from error

    def saved_in(self, folder: Path) -> str:
        """Return what `save` writes into a folder."""
        settings = _without(self.chosen | self.given, _OF_ONE_RUN)
        for name, value in settings.items():
            # Steps are whole, or a share of all; transformers makes a float of either.
            if name.endswith("_steps") and isinstance(value, float) and value.is_integer():
                settings[name] = int(value)
        for name in _OF_FILES:
            moved = []
            for spec in settings.get(name, ()):
                moved.append(relocated(spec, self.folder, folder))
            if moved:
                settings[name] = moved
        return str(yaml.safe_dump(settings, sort_keys=True, allow_unicode=True))


def read_recipe(
    arguments: Sequence[str],
    *,
    default: Path | None = None,
    instead: Mapping[str, Any] | None = None,
) -> Recipe:
    """Read `--config FILE` (or `default`) and flags.

    Args:
        instead: settings in the place of the file's; a flag counts more.

    Raises:
        ConfigError: the file is missing or not a mapping, a key or flag is unknown (the message
            names the closest known one), or a value does not fit.
    """
    arguments = list(arguments)
    # TRL's own --config is not used: it names no similar key, and it sets what `env` holds.
    file = _config_file(arguments) or default
    file = None if file is None else recipe_at(file)
    parser, known = settings_parser()
    settings = _read_yaml(file, known) if file is not None else {}
    settings |= instead or {}
    # --help then shows the recipe's values as the defaults.
    parser.set_defaults(**defaults_for(settings), **settings)
    flags = _read_flags(parser, arguments, known)
    if file is not None:
        _read_from_here(flags, file.parent)
    given = settings | flags
    if "tools" in given:
        # An empty name says none, which is how a flag takes back the tools of a recipe.
        given["tools"] = [name for name in given["tools"] if name.strip()]
    chosen = defaults_for(given)
    try:
        task, model, training = parser.parse_dict(chosen | given)
    except ConfigError:
        # It is a ValueError as well, and its message already says what to do.
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file or 'flags'}: {error}") from error
    return Recipe(task, model, training, file, _without(given, _SECRETS), chosen)


def saved_settings(
    values: dict[str, Any],
) -> tuple[TaskArguments, ModelConfig, dict[str, Any]]:
    """Return the settings of a run that has ended, from what its `recipe.yaml` holds.

    Those of `GRPOConfig` are returned by name and not checked, since they may ask for devices that
    this machine lacks.

    Raises:
        ValueError, TypeError: the values are no settings.
    """
    training = {}
    for setting in fields(GRPOConfig):
        made = setting.default_factory
        training[setting.name] = setting.default if made is MISSING else made()
    task, model, given = (_those_of(kind, values) for kind in KINDS)
    return TaskArguments(**task), ModelConfig(**model), training | given


def _those_of(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are settings of a dataclass."""
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


def _config_file(arguments: list[str]) -> Path | None:
    """Remove `--config FILE` from the arguments and return the file."""
    for index, argument in enumerate(arguments):
        if argument == "--config" or argument.startswith("--config="):
            del arguments[index]
            if "=" in argument:
                return Path(argument.partition("=")[2])
            if index >= len(arguments):
                raise ConfigError("--config needs a file, as in --config recipes/gsm8k.yaml.")
            return Path(arguments.pop(index))
    return None


def settings_parser() -> tuple[TrlParser, dict[str, Action]]:
    """Return the parser of all settings, and its action of each setting by name.

    argparse has no public list of its actions; TRL 1.16 reads the same private one.
    """
    # With abbreviations a misspelt flag could set another setting than the one that was meant.
    parser = TrlParser(KINDS, allow_abbrev=False)
    # argparse would print its usage and end the process; callers expect an exception.
    parser.error = _raise_config_error
    actions = {}
    # A boolean that is on by default has a second action, --no_NAME. The first action is the one
    # that takes a value, and in reversed order it is the last to be kept.
    for action in reversed(parser_actions(parser)):
        if action.dest != "help":
            actions[action.dest] = action
    # A bare --tools means none, too.
    actions["tools"].nargs = "*"
    return parser, actions


def settings_types() -> dict[str, Any]:
    """Return the type hint of each setting."""
    hints: dict[str, Any] = {}
    for kind in KINDS:
        hints.update(get_type_hints(kind))
    return hints


def _read_flags(
    parser: TrlParser, arguments: list[str], known: dict[str, Action]
) -> dict[str, Any]:
    """Return the settings that flags give, and no defaults."""
    # A namespace that has every setting already keeps argparse from filling in defaults.
    nothing_set = Namespace(**dict.fromkeys(known))
    flags, rest = parser.parse_known_args(arguments, nothing_set)
    if rest and not rest[0].startswith("-"):
        raise ConfigError(f"{rest[0]!r} is not a flag. A recipe is named as --config {rest[0]}.")
    if rest:
        raise unknown_flag(rest[0], list(known))
    given = {}
    for name, value in vars(flags).items():
        if value is not None:
            given[name] = value
    return given


def _read_from_here(flags: dict[str, Any], folder: Path) -> None:
    """Let flags that name files mean those of the current folder, as a shell completes them.

    Args:
        folder: of the recipe, which the files of a recipe's own entries are relative to.
    """
    for name in _OF_FILES:
        for place, spec in enumerate(flags.get(name, ())):
            flags[name][place] = relocated(spec, Path.cwd(), folder.resolve(), is_flag=True)


def _read_yaml(file: Path, known: dict[str, Action]) -> dict[str, Any]:
    """Return the settings of a YAML file, each with the type of its field."""
    settings = load_mapping(file)
    if "env" in settings:
        # torch is imported by now, so variables such as OMP_NUM_THREADS would come too late.
        raise ConfigError(
            f"{file}: `env` is not read; set environment variables in the shell that starts the "
            "run."
        )
    for key in settings:
        if key not in known:
            raise unknown_key(file, key, list(known))
    hints = settings_types()
    for name, value in settings.items():
        try:
            settings[name] = _converted(value, known[name], hints[name])
        except (ValueError, TypeError, ArgumentTypeError):
            got = f"{value!r} ({type(value).__name__})"
            expected = _expected_values(known[name], hints[name])
            raise ConfigError(f"{file}: {name} is {got}; expected {expected}.") from None
    return settings


def _expected_values(action: Action, hint: Any) -> str:
    """Describe the values that a setting takes: its choices, or its type."""
    if action.choices:
        return f"one of {', '.join(action.choices)}"
    if isinstance(hint, type):
        return hint.__name__
    return str(hint)


def _converted(value: Any, action: Action, hint: Any) -> Any:
    """Return a value from YAML in the type of its setting.

    The conversion is the flag's, because YAML 1.1 and Python disagree: PyYAML reads 5e-4 as text.

    Raises:
        ValueError, TypeError, ArgumentTypeError: the value does not fit.
    """
    kinds = _types_of(hint)
    if value is None and NoneType in kinds:
        return None
    if value is False and "no" in (action.choices or ()):
        # YAML 1.1 reads a bare `no` as false, as in `save_strategy: no`.
        return "no"
    if action.nargs in _SEVERAL and isinstance(value, str) and str in kinds:
        # transformers splits such texts itself, and an empty one means none.
        return value
    if action.nargs in _SEVERAL:
        entries = value if isinstance(value, list) else [value]
        return _converted_entries(entries, action)
    if isinstance(value, bool) and action.type is str:
        # Some text settings of TRL also take true and false, such as scale_rewards.
        kinds.append(bool)
    if type(value) in kinds and not action.choices:
        return value
    return _as_flag(value, action)


def alternatives_of(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a type hint, or the hint itself."""
    is_union = get_origin(hint) in (Union, UnionType)
    return get_args(hint) if is_union else (hint,)


def _types_of(hint: Any) -> list[Any]:
    """Return the alternatives of a type hint; `list[str]` counts as `list`."""
    return [get_origin(alternative) or alternative for alternative in alternatives_of(hint)]


def _converted_entries(entries: list[Any], action: Action) -> list[Any]:
    """Return each entry of a list setting in its type."""
    converted = []
    for entry in entries:
        # A reward with options is a mapping, which no flag can express.
        if action.dest == "rewards" and isinstance(entry, dict):
            converted.append(entry)
        else:
            converted.append(_as_flag(entry, action))
    return converted


def _as_flag(value: Any, action: Action) -> Any:
    """Convert a scalar as argparse converts the text of a flag."""
    if not isinstance(value, str | int | float):
        raise TypeError(value)
    converted = action.type(str(value)) if callable(action.type) else value
    if action.choices and converted not in action.choices:
        raise ValueError(value)
    return converted


def relocated(spec: Any, old: Path, new: Path, *, is_flag: bool = False) -> Any:
    """Return a spec of a reward or tool, read in folder `old`, for a recipe in folder `new`.

    Args:
        is_flag: whether a user typed it in `old`. An error about a file that is in neither folder
            then names that folder.
    """
    if isinstance(spec, dict):
        moved = {}
        for name, options in spec.items():
            moved[relocated(name, old, new, is_flag=is_flag)] = options
        return moved
    stem, separator, rest = spec.partition(".py:")
    file = Path(f"{stem}.py")
    # Names, modules, absolute paths and those of the home folder mean the same from every folder.
    if not separator or os.path.isabs(os.path.expanduser(file)):
        return spec
    if not (old / file).is_file() and not (is_flag and not (new / file).is_file()):
        return spec
    # A relative path, because an absolute one of this machine would travel to the Hub.
    return f"{os.path.relpath(old / file, new)}:{rest}"


def _without(settings: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a copy of the settings without some of them."""
    kept = {}
    for name, value in settings.items():
        if name not in names:
            kept[name] = value
    return kept


def _raise_config_error(message: str) -> None:
    raise ConfigError(message)
