"""A mistake in a recipe's keys or flags, found before the libraries are imported that know them.

The names of the settings are read from the source of the dataclasses that hold them. Whoever passes
here is checked again by `runs.recipe`, with the dataclasses themselves; where their source is not
as expected, nothing is checked here.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, did_you_mean

# The files that hold the settings of a recipe, by package, and the classes.
_FILES = {
    "grpo_hf": ("config.py", "runs/task_arguments.py"),
    "trl": ("trainer/grpo_config.py", "trainer/base_config.py", "trainer/model_config.py"),
    "transformers": ("training_args.py",),
}
_CLASSES = ("TaskArguments", "ModelConfig", "GRPOConfig")
# What is no setting, and is explained by who reads it.
_OTHERS = {"config", "help", "env"}


def check_keys(file: Path) -> None:
    """Check that the keys of a recipe are settings.

    Raises:
        ConfigError: the file is no mapping in YAML, or a name is not known; the message has the
            closest known one.
    """
    settings = load_mapping(file)
    known = setting_names()
    if known is None:
        return
    for key in settings:
        if key not in known and key not in _OTHERS:
            raise unknown_key(file, key, known)


def check_flags(flags: Sequence[str], own: Iterable[str] = ()) -> None:
    """Check that flags which a command does not know are settings of a recipe.

    Args:
        own: the flags of the command itself, one of which may have been meant.

    Raises:
        ConfigError: a name is not known; the message has the closest known one.
    """
    # Most commands have none, and the names are read from the source of libraries.
    known = setting_names() if flags else None
    if known is None:
        return
    for flag in flags:
        name = flag.removeprefix("--").partition("=")[0].replace("-", "_")
        is_known = name in known or name in _OTHERS or name.removeprefix("no_") in known
        if flag.startswith("--") and name and not is_known:
            raise unknown_flag(flag, {*known, *own})


def load_mapping(file: Path) -> dict[str, Any]:
    """Return the mapping at the top of a YAML file.

    Raises:
        ConfigError: there is none.
    """
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: not a YAML file ({error}).") from error
    if settings is None:
        raise ConfigError(f"{file} is empty: expected settings as `key: value` lines.")
    if not isinstance(settings, dict):
        kind = type(settings).__name__
        raise ConfigError(f"{file}: expected settings as `key: value` lines, got {kind}.")
    return settings


def unknown_key(file: Path, key: Any, known: Sequence[str] | set[str]) -> ConfigError:
    """Return the error about a key of a recipe that is no setting."""
    return ConfigError(f"{file}: setting {str(key)!r} is not known.{did_you_mean(str(key), known)}")


def unknown_flag(flag: str, known: Sequence[str] | set[str]) -> ConfigError:
    """Return the error about a flag that is no setting."""
    name = flag.lstrip("-").partition("=")[0].replace("-", "_")
    meant = did_you_mean(name, known, before="--")
    return ConfigError(f"flag {flag} is not known.{meant} Try --help, or `grpo-hf settings`.")


def setting_names() -> set[str] | None:
    """Return the names of all settings; None where the source does not tell them for certain."""
    fields: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    try:
        for tree in _sources():
            real = _real_names(tree)
            for made in tree.body:
                if isinstance(made, ast.ClassDef):
                    fields.setdefault(made.name, set()).update(_fields_of(made))
                    above = {real.get(base, base) for base in map(_name_of, made.bases)}
                    bases.setdefault(made.name, set()).update(above - {made.name})
        return _with_those_above(fields, bases)
    # A library of another version may keep its settings elsewhere.
    except (OSError, ValueError, SyntaxError, AttributeError, TypeError, LookupError):
        return None


def _sources() -> Iterator[ast.Module]:
    for package, files in _FILES.items():
        found = find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise LookupError(package)
        folder = Path(found.submodule_search_locations[0])
        for file in files:
            yield ast.parse((folder / file).read_text(encoding="utf-8"))


def _real_names(tree: ast.Module) -> dict[str, str]:
    """Return the names of what a file imports under another one."""
    real = {}
    for line in tree.body:
        if isinstance(line, ast.ImportFrom):
            for each in line.names:
                real[each.asname or each.name] = each.name
    return real


def _name_of(base: ast.expr) -> str:
    return base.attr if isinstance(base, ast.Attribute) else ast.unparse(base)


def _fields_of(made: ast.ClassDef) -> Iterator[str]:
    for line in made.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            yield line.target.id


def _with_those_above(fields: dict[str, set[str]], bases: dict[str, set[str]]) -> set[str]:
    """Return the fields of the classes of a recipe and of all classes above them.

    Raises:
        LookupError: one of them is in another file.
    """
    names: set[str] = set()
    wanted = list(_CLASSES)
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        names |= fields[name]
        seen.add(name)
        wanted += bases[name] - seen
    return names
