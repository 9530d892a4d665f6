"""A recipe: YAML and flags, read into TRL's own dataclasses plus the few settings that name the task.

Flags win over the YAML file, which wins over the defaults. There is no second configuration system: the parser is TRL's
`TrlParser`, the fields are `ModelConfig`'s, `GRPOConfig`'s and `TaskArguments`'.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig, TrlParser

from .config import GRPOConfig
from .errors import ConfigError, did_you_mean


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
        rewards (`list[str]`): names, `./file.py:function` relative to the recipe, or `package.module:function`.
        adapter (`str`, *optional*): a saved adapter to continue; the reference is then its frozen copy.
        gguf_file (`str`, *optional*): a GGUF file inside the model folder or repository to take the base from.
        eval_rows (`int`): held-out prompts to compare base and adapter on at the end; 0 for none.
        eval_reward (`str`, *optional*): the reward whose full mark counts as a right answer; by default the first.
        cold_start_steps (`int`): supervised steps that teach the embedded model the format first (recipes/gsm8k.py).
    """

    dataset_path: str | None = field(default=None, metadata={"help": "Local folder, or jsonl/csv/parquet file."})
    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    prompt_column: str | None = field(default=None, metadata={"help": "Column with the prompt."})
    columns: list[str] = field(
        default_factory=list, metadata={"help": "Renames: name_that_rewards_know=name_in_the_data."}
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message of every prompt."})
    instruction: str | None = field(default=None, metadata={"help": "Text below every prompt."})
    rewards: list[str] = field(default_factory=list, metadata={"help": "Rewards: names or ./file.py:function."})
    adapter: str | None = field(default=None, metadata={"help": "Saved adapter to continue."})
    gguf_file: str | None = field(default=None, metadata={"help": "GGUF file to take the base from."})
    eval_rows: int = field(default=200, metadata={"help": "Held-out prompts to evaluate on at the end; 0: none."})
    eval_reward: str | None = field(default=None, metadata={"help": "Reward whose full mark is a right answer."})
    cold_start_steps: int = field(default=0, metadata={"help": "Supervised steps of the embedded model."})


@dataclass(frozen=True)
class Recipe:
    """One run, fully described."""

    task: TaskArguments
    model: ModelConfig
    training: GRPOConfig
    file: Path | None = None
    given: dict[str, Any] = field(default_factory=dict)  # what the YAML file and the flags set, without defaults

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
            raise ConfigError(f"--columns {wrong}: expected name_that_rewards_know=name_in_the_data, as answer=Answer.")
        return {new: old for new, _, old in pairs}

    def save(self, folder: Path) -> None:
        """Write what was given as `recipe.yaml`, which runs again as it is."""
        text = yaml.safe_dump(self.given, sort_keys=True, allow_unicode=True)
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")


def read_recipe(arguments: Sequence[str], *, default: Path | None = None) -> Recipe:
    """Read `--config FILE` (or `default`) and flags.

    Raises:
        ConfigError: the file is missing or not a mapping, a key or flag is unknown (with the closest known one), or a
            value does not fit.
    """
    arguments = list(arguments)
    parser = TrlParser((TaskArguments, ModelConfig, GRPOConfig), allow_abbrev=False)
    file = _config_file(arguments) or default
    settings = _read_yaml(file) if file is not None else {}
    known = {f.name for kind in (TaskArguments, ModelConfig, GRPOConfig) for f in fields(kind)}
    unknown = next((key for key in settings if key not in known and key != "env"), None)
    if unknown is not None:
        raise ConfigError(f"{file}: setting {unknown!r} is not known.{did_you_mean(unknown, known)}")
    parser.set_defaults_with_config(**{"use_peft": True, **{k: v for k, v in settings.items() if k != "env"}})
    parser.error = _raise_config_error
    try:
        task, model, training, rest = parser.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file or 'flags'}: {error}") from error
    if rest:
        flag = rest[0].lstrip("-").partition("=")[0]
        raise ConfigError(f"flag {rest[0]} is not known.{did_you_mean(flag, known)} Try --help.")
    flags = {arg[2:].partition("=")[0].replace("-", "_") for arg in arguments if arg.startswith("--")}
    values = {**vars(training), **vars(model), **vars(task)}
    given = settings | {name: values[name] for name in flags if name in values}
    return Recipe(task, model, training, file, given)


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


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = [p.name for p in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
        raise ConfigError(f"{file}: no such recipe.{did_you_mean(file.name, siblings)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: not a YAML file ({error}).") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: expected settings as `key: value` lines, got {type(settings).__name__}.")
    return settings


def _raise_config_error(message: str) -> None:
    raise ConfigError(message)
