"""A recipe: YAML and flags, read into TRL's own dataclasses plus the few settings that name the task.

Flags win over the YAML file, which wins over the defaults. There is no second configuration system: the parser is TRL's
`TrlParser`, the fields are `ModelConfig`'s, `GRPOConfig`'s and `TaskArguments`'.
"""

import os
from argparse import Action, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from trl import ModelConfig, TrlParser

from ..config import GRPOConfig
from ..errors import ConfigError, did_you_mean
from ..trl_seam import parser_actions


@dataclass
class TaskArguments:
    """What to train on and what to reward.

    Args:
        dataset_path (`str`, *optional*): a local folder with a file per split, or one jsonl, json, csv or parquet
            file, or `embedded:word_problems`.
        dataset_name (`str`, *optional*): a dataset on the Hub; used when `dataset_path` is not given.
        dataset_config (`str`, *optional*): its configuration.
        dataset_train_split (`str`): split to train on.
        dataset_test_split (`str`): split to evaluate on; without one, rows are held out from the training split.
        prompt_column (`str`, *optional*): column with the prompt; by default the first of prompt, messages, question,
            problem that is there.
        columns (`list[str]`): renames, `name_that_rewards_know=name_in_the_data`.
        system_prompt (`str`, *optional*): system message of every prompt.
        instruction (`str`, *optional*): text below every prompt.
        rewards (`list[str]`): names, `./file.py:function` relative to the recipe, or `package.module:function`; with
            options `name(key=value)`, or in YAML `name: {key: value}`.
        adapter (`str`, *optional*): a saved adapter to continue; the reference is then its frozen copy.
        gguf_file (`str`, *optional*): a GGUF file inside the model folder or repository to take the base from.
        eval_rows (`int`): held-out prompts to compare base and adapter on at the end; 0 for none.
        eval_reward (`str`, *optional*): the reward whose full mark counts as a right answer; by default the first.
        cold_start_steps (`int`): supervised steps that teach the embedded model the format first (recipes/gsm8k.py).
    """

    dataset_path: str | None = field(
        default=None, metadata={"help": "Local folder, or jsonl/csv/parquet file."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub."})
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the Hub dataset."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    prompt_column: str | None = field(default=None, metadata={"help": "Column with the prompt."})
    columns: list[str] = field(
        default_factory=list, metadata={"help": "Renames: name_that_rewards_know=name_in_the_data."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "System message of every prompt."}
    )
    instruction: str | None = field(default=None, metadata={"help": "Text below every prompt."})
    rewards: list[str] = field(
        default_factory=list, metadata={"help": "Rewards: names or ./file.py:function."}
    )
    adapter: str | None = field(default=None, metadata={"help": "Saved adapter to continue."})
    gguf_file: str | None = field(
        default=None, metadata={"help": "GGUF file to take the base from."}
    )
    eval_rows: int = field(
        default=200, metadata={"help": "Held-out prompts to evaluate on at the end; 0: none."}
    )
    eval_reward: str | None = field(
        default=None, metadata={"help": "Reward whose full mark is a right answer."}
    )
    cold_start_steps: int = field(
        default=0, metadata={"help": "Supervised steps of the embedded model."}
    )


EMBEDDED_MODEL = "embedded:tiny"
_KINDS = (TaskArguments, ModelConfig, GRPOConfig)
_SECRETS = ("hub_token",)  # given, used, and never written down
_OF_ONE_RUN = (
    "output_dir",
    "resume_from_checkpoint",
)  # a recipe that runs again needs a folder of its own


@dataclass(frozen=True)
class Recipe:
    """One run, fully described."""

    task: TaskArguments
    model: ModelConfig
    training: GRPOConfig
    file: Path | None = None
    given: dict[str, Any] = field(default_factory=dict)  # by file and flags; no secrets

    @property
    def folder(self) -> Path:
        """What relative reward files are relative to: the recipe's folder."""
        return self.file.parent if self.file is not None else Path.cwd()

    @property
    def column_map(self) -> dict[str, str]:
        """`columns` as a mapping from the new name to the name in the data."""
        pairs = [entry.partition("=") for entry in self.task.columns]
        wrong = next(("".join(pair) for pair in pairs if not all(pair)), None)
        if wrong is not None:
            raise ConfigError(
                f"--columns {wrong}: expected name_that_rewards_know=name_in_the_data, as answer=Answer."
            )
        return {new: old for new, _, old in pairs}

    def save(self, folder: Path) -> None:
        """Write what was given as `recipe.yaml`, which runs again with an --output_dir of its own."""
        given = {name: value for name, value in self.given.items() if name not in _OF_ONE_RUN}
        if "rewards" in given:
            given["rewards"] = [
                _relocated(reward, self.folder, folder) for reward in given["rewards"]
            ]
        text = yaml.safe_dump(given, sort_keys=True, allow_unicode=True)
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")


def read_recipe(arguments: Sequence[str], *, default: Path | None = None) -> Recipe:
    """Read `--config FILE` (or `default`) and flags.

    Raises:
        ConfigError: the file is missing or not a mapping, a key or flag is unknown (with the closest known one), or a
            value does not fit.
    """
    arguments = list(arguments)
    file = _config_file(arguments) or default
    parser = TrlParser(_KINDS, allow_abbrev=False)
    parser.error = _raise_config_error
    # TRL's parser reads the same list; of the two actions of a boolean the first is not its --no_ form.
    known = {
        action.dest: action for action in reversed(parser_actions(parser)) if action.dest != "help"
    }
    settings = _read_yaml(file, known) if file is not None else {}
    parser.set_defaults(**settings)  # for --help
    flags, rest = parser.parse_known_args(arguments, Namespace(**dict.fromkeys(known)))
    if rest and not rest[0].startswith("-"):
        raise ConfigError(f"{rest[0]!r} is not a flag. A recipe is named as --config {rest[0]}.")
    if rest:
        flag = rest[0].lstrip("-").partition("=")[0].replace("-", "_")
        raise ConfigError(f"flag {rest[0]} is not known.{did_you_mean(flag, known)} Try --help.")
    given = settings | {name: value for name, value in vars(flags).items() if value is not None}
    try:
        task, model, training = parser.parse_dict({"use_peft": True} | given)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file or 'flags'}: {error}") from error
    return Recipe(
        task, model, training, file, {name: given[name] for name in given if name not in _SECRETS}
    )


def _config_file(arguments: list[str]) -> Path | None:
    """Take `--config FILE` out of the arguments."""
    for index, argument in enumerate(arguments):
        if argument == "--config" or argument.startswith("--config="):
            del arguments[index]
            if "=" in argument:
                return Path(argument.partition("=")[2])
            if index >= len(arguments):
                raise ConfigError("--config needs a file, as in --config recipes/gsm8k.yaml.")
            return Path(arguments.pop(index))
    return None


def _read_yaml(file: Path, known: dict[str, Action]) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = [p.name for p in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
        raise ConfigError(f"{file}: no such recipe.{did_you_mean(file.name, siblings)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: not a YAML file ({error}).") from error
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{file}: expected settings as `key: value` lines, got {type(settings).__name__}."
        )
    if "env" in settings:
        raise ConfigError(
            f"{file}: `env` is not read; set environment variables in the shell that starts the run."
        )
    unknown = next((str(key) for key in settings if key not in known), None)
    if unknown is not None:
        raise ConfigError(
            f"{file}: setting {unknown!r} is not known.{did_you_mean(unknown, known)}"
        )
    hints = {name: hint for kind in _KINDS for name, hint in get_type_hints(kind).items()}
    for name, value in settings.items():
        try:
            settings[name] = _converted(value, known[name], hints[name])
        except (ValueError, TypeError, ArgumentTypeError):
            choices, hint = known[name].choices, hints[name]
            wanted = (
                f"one of {', '.join(choices)}"
                if choices
                else hint.__name__
                if isinstance(hint, type)
                else hint
            )
            got = f"{value!r} ({type(value).__name__})"
            raise ConfigError(f"{file}: {name} is {got}; expected {wanted}.") from None
    return settings


def _converted(value: Any, action: Action, hint: Any) -> Any:
    """A value from YAML as its setting's type, by the conversion of the flag (to YAML, 5e-4 is text)."""
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(kind) or kind for kind in alternatives]
    if value is None and NoneType in kinds:
        return None
    if value is False and "no" in (action.choices or ()):
        return "no"  # which YAML reads as false
    if action.nargs == "+":
        entries = value if isinstance(value, list) else [value]
        return [
            e if action.dest == "rewards" and isinstance(e, dict) else _as_flag(e, action)
            for e in entries
        ]
    if isinstance(value, bool) and action.type is str:
        kinds.append(bool)  # TRL means true and false in some of its text settings: scale_rewards
    return value if type(value) in kinds and not action.choices else _as_flag(value, action)


def _as_flag(value: Any, action: Action) -> Any:
    if not isinstance(value, str | int | float):
        raise TypeError(value)
    converted = action.type(str(value)) if callable(action.type) else value
    if action.choices and converted not in action.choices:
        raise ValueError(value)
    return converted


def _relocated(reward: Any, old: Path, new: Path) -> Any:
    """A reward spec that was read in folder `old`, for a recipe in folder `new`."""
    if isinstance(reward, dict):
        return {_relocated(name, old, new): options for name, options in reward.items()}
    stem, is_file, rest = reward.partition(".py:")
    file = Path(f"{stem}.py")
    if not is_file or file.is_absolute() or not (old / file).is_file():
        return reward
    return f"{os.path.relpath(old / file, new)}:{rest}"


def _raise_config_error(message: str) -> None:
    raise ConfigError(message)
