"""Names as others may see them: without the folders of this machine."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml

# Settings of a recipe that are texts for the model, and no names.
_TEXTS = ("system_prompt", "instruction")
# Settings that name the model that was trained.
_BASES = ("base_model_name_or_path", "model_name_or_path")
# Of a card: comments, blocks of code and headings; and how pictures, tags, tables and lists begin.
_NO_TEXT = re.compile(r"<!--.*?-->|```.*?```|^#[^\n]*$", re.DOTALL | re.MULTILINE)
_NO_SENTENCE = ("![", "[![", "<", "|", ">", "- ", "* ", "---")
_LOCAL_PATH = re.compile(r"(?<![\w:/.])(?:[/~]|[A-Za-z]:\\)[\w.]")
_LONGEST_SENTENCE = 200


def public_name(name: str) -> str:
    """Return a name that a public card may show; of a local path that is the last part alone.

    >>> public_name("/home/me/models/llama"), public_name("org/llama")
    ('llama', 'org/llama')
    """
    # `org/name` may be a folder as well; then it is this folder that was read.
    is_path = (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or "\\" in name
        or os.path.exists(name)
    )
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name


def hub_names(name: str) -> list[str]:
    """Return the `org/name` of a Hub repository, without the split that may follow it.

    Returns:
        One name, or none where this is no repository.
    """
    return re.findall(r"^[\w.-]+/[\w.-]+(?= \(|$)", name)


def hub_base(name: str) -> str | None:
    """Return the Hub's name of a base, also where it was read from a folder that says so.

    Such folders are those of the Hub's cache, and those with a configuration, a card or an adapter
    that names the model that they come from.

    Args:
        name: as the run named it: a folder, or a name on the Hub.
    """
    return _origin(name)[0]


def own_weights(name: str) -> str | None:
    """Return what the folder of a base says of itself where its weights may not be the Hub's.

    On the Hub the `base_model` of a card is what a model was made from: by training, in another
    precision, or from a file of fewer bits.

    Args:
        name: as the run named it: a folder, or a name on the Hub.

    Returns:
        The first sentence of the card in the folder, which may be empty; None where the weights are
        those that `hub_base` names, as far as is known.
    """
    folder = Path(name).expanduser()
    return _first_sentence(_card_of(folder)[1]) if _origin(name)[1] else None


def _origin(name: str) -> tuple[str | None, bool]:
    """Return the Hub's name of a base, and whether that is what its folder was made from."""
    folder = Path(name).expanduser()
    if not name or not folder.is_dir():
        return next(iter(hub_names(public_name(name))), None), False
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", f"{folder.absolute()}/")
    if cached:
        return f"{cached[1]}/{cached[2]}", False
    copied = _hub_name(_read_json(folder / "config.json").get("_name_or_path"))
    made_from = _hub_name(_metadata_of(folder).get("base_model"))
    adapted = _hub_name(_read_json(folder / "adapter_config.json").get("base_model_name_or_path"))
    return copied or made_from or adapted, made_from is not None and copied is None


def _hub_name(recorded: Any) -> str | None:
    # A card may name several.
    first = recorded[0] if isinstance(recorded, list) and recorded else recorded
    return public_name(first) if isinstance(first, str) and hub_names(public_name(first)) else None


def _first_sentence(card: str) -> str:
    """Return the first sentence of a card in one line; nothing where it names a folder."""
    for paragraph in re.split(r"\n\s*\n", _NO_TEXT.sub("", card)):
        line = " ".join(paragraph.split()).replace('"', "'")
        if line and not line.startswith(_NO_SENTENCE):
            sentence = re.split(r"(?<=[.!?])\s", line, maxsplit=1)[0]
            return "" if _LOCAL_PATH.search(sentence) else shorten(sentence, _LONGEST_SENTENCE)
    return ""


def license_of(name: str) -> str | None:
    """Return the licence that the card in a base's folder names, or None."""
    found = _metadata_of(Path(name).expanduser()).get("license") if name else None
    return found if isinstance(found, str) else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # What cannot be read names no model.
        return {}
    return values if isinstance(values, dict) else {}


def _metadata_of(folder: Path) -> dict[str, Any]:
    return _card_of(folder)[0]


def _card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """Return what stands above the card in a folder, between two lines of dashes, and the card."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        _, above, below = text.split("---\n", 2) if text.startswith("---\n") else ("", "", text)
        values = yaml.safe_load(above)
    except (OSError, ValueError, yaml.YAMLError):
        return {}, ""
    return (values if isinstance(values, dict) else {}), below


def public_text(text: str) -> str:
    """Return a reward's spec or another text with the last part of each quoted path alone.

    >>> public_text("/home/me/mine.py:judge(model='/home/me/llama', way='a/b')")
    "mine.py:judge(model='llama', way='a/b')"
    """
    # A reward's file is named without its folder, which is of one machine.
    without_folder = re.sub(r"^.*?([^/\\]+\.py:)", r"\1", text)
    return re.sub(r"""(?<=['"])(?:/|~/|[A-Za-z]:\\)[^'"\n]*[/\\](?=[^'"])""", "", without_folder)


def without_folders(file: Path) -> Path | bytes:
    """Return a file, or its bytes without the folders of this machine if it names some."""
    try:
        # An evaluation's summary names its data, which may be a file of this machine.
        if file.name.endswith("config.json") or file.match("evaluations/*.json"):
            values = json.loads(file.read_text(encoding="utf-8"))
            public = _public_value(values, local=("base_model_name_or_path", "_name_or_path"))
            text = json.dumps(public, indent=2, ensure_ascii=False) + "\n"
        elif file.name == "recipe.yaml":
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
            public = _public_value(values, local=())
            text = yaml.safe_dump(public, sort_keys=True, allow_unicode=True)
        else:
            return file
    except (ValueError, yaml.YAMLError):
        # It is not ours: nothing is known of it.
        return file
    return file if public == values else text.encode()


def _public_value(value: Any, local: Sequence[str], key: str = "") -> Any:
    """Return a value of JSON or YAML with the last part of each path of this machine alone.

    Args:
        local: keys whose value is a name or a folder, which may be a relative one.
        key: of the value.
    """
    if isinstance(value, dict):
        public = {}
        for name, inner in value.items():
            public[public_text(str(name))] = _public_value(inner, local, str(name))
        return public
    if isinstance(value, list):
        return [_public_value(inner, local, key) for inner in value]
    if not isinstance(value, str) or key in _TEXTS:
        return value
    # A reward's spec is not one path: its options are kept.
    if ".py:" in value:
        return public_text(value)
    is_folder = os.path.isabs(value) or value.startswith(("~/", ".."))
    if "\n" not in value and (is_folder or key in local):
        # Who loads the adapter finds its base by the name that the Hub has for it.
        return (hub_base(value) if key in _BASES else None) or public_name(value)
    return public_text(value)
