"""Every setting of a recipe: its topic, its type, its default, and what it does.

The explanations are those of the docstrings: of `TaskArguments`, of TRL's `ModelConfig`, of
`GRPOConfig` here and in TRL, and of transformers' `TrainingArguments`, which also have the topics.
"""

import re
from collections.abc import Container, Iterator
from dataclasses import MISSING, dataclass
from inspect import get_annotations
from typing import Any, get_args

from ..errors import ConfigError, did_you_mean
from .defaults import defaults_for
from .recipe import KINDS, alternatives_of, settings_parser, settings_types
from .task_arguments import TaskArguments

_TASK = "task: data, prompts, rewards, evaluation"
_MODEL = "model and adapter"
_OURS = "grpo-hf: what it adds to TRL"
_SAVING = "saving, resuming and the Hub"
_LOGGING = "logging: metrics, trackers, printed completions"
_OPTIMIZER = "optimizer: rate, batch, steps"
_EVALUATION = "evaluation during training"
_SPEED = "precision, memory and speed"
_DEVICES = "devices: processes, sharding, loading"
_GENERATION = "generation: sampling of completions"
_OTHER = "other"
# TRL and transformers have forty headings in their docstrings. The first word that occurs in one
# says where its settings are listed here.
_TOPICS = {
    "vllm": "vLLM: an engine for sampling",
    "generation": _GENERATION,
    "data preprocessing": _GENERATION,
    "model and reference": _MODEL,
    "deprecated": _OTHER,
    "control the training": "objective: loss, KL term, advantages",
    "metrics": _EVALUATION,
    "best model": _EVALUATION,
    "evaluation": _EVALUATION,
    "logging": _LOGGING,
    "log levels": _LOGGING,
    "tracking": _LOGGING,
    "duration": _OPTIMIZER,
    "learning rate": _OPTIMIZER,
    "optimizer": _OPTIMIZER,
    "regularization": _OPTIMIZER,
    "reproducibility": _OPTIMIZER,
    "precision": _SPEED,
    "checkpointing & saving": _SAVING,
    "activation": _SPEED,
    "compilation": _SPEED,
    "kernels": _SPEED,
    "optimizations": _SPEED,
    "hub": _SAVING,
    "resuming": _SAVING,
    "script": _SAVING,
    "hardware": _DEVICES,
    "accelerate": _DEVICES,
    "ddp": _DEVICES,
    "fsdp": _DEVICES,
    "deepspeed": _DEVICES,
    "dataloader": _DEVICES,
}
# What stands under no heading, and is no odd end.
_WITHOUT_HEADING = {"output_dir": _SAVING}
# A name, and its type in brackets, at the depth at which docstrings list parameters.
_ENTRY = re.compile(r"^ {8}(\w+) ?\((.*)$")
_HEADING = re.compile(r"^ {8}> (.+)$")
# TRL writes `[`~transformers.Trainer`]` for links between its pages, `[Guide](kernels_hub)` too,
# and frames tips in two ways.
_LINK = re.compile(r"\[`~?([^`]+)`\](?!\()")
_PAGE = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")
_TIP = re.compile(r"</?Tip[^>]*>\s*|> \[!\w+\] > ")


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe.

    Args:
        kind: its type, as Python writes it.
        choices: the only values that it takes, if there are such.
        default: what a recipe has that does not give it, with a new adapter.
        default_in_python: the default of the class.
        text: what it does, in one paragraph.
        types: the alternatives of its type hint.
    """

    name: str
    topic: str
    kind: str
    choices: tuple[Any, ...]
    default: Any
    default_in_python: Any
    text: str
    types: tuple[Any, ...]

    @property
    def summary(self) -> str:
        """The first sentence of the explanation."""
        return re.split(r"(?<=[^.][.;])\s", self.text, maxsplit=1)[0]


def all_settings() -> dict[str, Setting]:
    """Return every setting by name."""
    _, actions = settings_parser()
    hints = settings_types()
    documented = _documented()
    chosen = defaults_for({})
    fields: dict[str, Any] = {}
    for kind in KINDS:
        fields |= kind.__dataclass_fields__
    settings = {}
    # The actions are in the reversed order of the classes.
    for name in reversed(actions):
        topic, text = documented.get(name, (_OTHER, actions[name].help or ""))
        topic = _WITHOUT_HEADING.get(name, topic)
        settings[name] = Setting(
            name,
            topic,
            _type_name(hints[name]),
            tuple(actions[name].choices or ()),
            chosen.get(name, _default(fields[name])),
            _default(fields[name]),
            text,
            alternatives_of(hints[name]),
        )
    return settings


def by_topic(settings: dict[str, Setting]) -> dict[str, list[Setting]]:
    """Return the settings of each topic."""
    topics: dict[str, list[Setting]] = {}
    for setting in settings.values():
        topics.setdefault(setting.topic, []).append(setting)
    return topics


def find(name: str) -> Setting | list[Setting]:
    """Return the setting of a name, or the settings of a topic that has the word in its title.

    Raises:
        ConfigError: there is neither; the message names the closest setting.
    """
    settings = all_settings()
    # Flags are written with dashes, too.
    wanted = name.lstrip("-").replace("-", "_")
    if wanted in settings:
        return settings[wanted]
    found: list[Setting] = []
    for topic, members in by_topic(settings).items():
        if name.lower() in re.findall(r"[\w-]+", topic.lower()):
            found += members
    if found:
        return found
    raise ConfigError(
        f"setting {name!r} is not known.{did_you_mean(wanted, settings)} `grpo-hf settings` lists "
        "them all."
    )


def _documented() -> dict[str, tuple[str, str]]:
    """Return topic and explanation of each setting that a docstring explains."""
    found: dict[str, tuple[str, str]] = {}
    for kind in KINDS:
        # The base classes come first: what a subclass says of the same setting counts.
        for owner in reversed(kind.__mro__):
            home = _home(owner)
            entries = list(_entries(owner.__dict__.get("__doc__") or ""))
            entries += _entries_of_fields(owner, {name for name, _, _ in entries})
            for name, topic, text in entries:
                earlier = found.get(name, (home or _OTHER, ""))[0]
                found[name] = (topic or earlier, text)
    return found


def _entries_of_fields(owner: type, documented: Container[str]) -> Iterator[tuple[str, str, str]]:
    """Yield what our fields say of themselves, where the docstring of their class does not.

    They are TRL's with another default, which TRL's docstring does not know.
    """
    if owner in KINDS:
        fields: Any = owner
        for name in get_annotations(owner):
            text = fields.__dataclass_fields__[name].metadata.get("help")
            if text and name not in documented:
                yield name, "", text


def _home(owner: type) -> str | None:
    """Return the topic of the settings of a class, where its docstring has no topics."""
    if owner is TaskArguments:
        return _TASK
    if owner.__name__ == "ModelConfig":
        return _MODEL
    return _OURS if owner in KINDS else None


def _entries(docstring: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, topic and explanation of the parameters that a docstring lists.

    The topic is empty where the docstring has none.
    """
    topic = ""
    name = ""
    lines: list[str] = []
    # What raises which error comes behind the last parameter.
    parameters = docstring.partition("\n    Raises:")[0]
    for line in [*parameters.splitlines(), "        end (", ""]:
        heading = _HEADING.match(line)
        entry = _ENTRY.match(line)
        if (heading or entry) and name:
            yield name, topic, _plain(lines)
            name, lines = "", []
        if heading:
            topic = _topic(heading.group(1))
        elif entry:
            name = entry.group(1)
            # Ours has the explanation behind the type: `name (`str`): text`.
            lines = [entry.group(2).partition("):")[2]]
        elif line.startswith(" " * 12):
            lines.append(line)


def _topic(heading: str) -> str:
    """Return the topic of the settings below a heading of a docstring."""
    for word, topic in _TOPICS.items():
        if word in heading.lower():
            return topic
    return _OTHER


def _plain(lines: list[str]) -> str:
    """Return the lines of an explanation as one paragraph, without links between pages."""
    text = " ".join(" ".join(lines).split())
    text = _TIP.sub("", _PAGE.sub(r"\1", _LINK.sub(r"`\1`", text)))
    # A Greek letter would become one of another meaning.
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def _type_name(hint: Any) -> str:
    if isinstance(hint, type) and not get_args(hint):
        return hint.__name__
    names = []
    # The last part of `transformers.trainer_utils.SchedulerType`, and None as the other values.
    for part in re.split(r" \| ", str(hint)):
        names.append(re.sub(r"\b(?:\w+\.)+", "", part))
    return " | ".join(names)


def _default(field: Any) -> Any:
    value = field.default
    if field.default_factory is not MISSING:
        value = field.default_factory()
    # Enumerations are written as what they stand for.
    return getattr(value, "value", value)
