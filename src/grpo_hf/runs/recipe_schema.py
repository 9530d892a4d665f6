"""The JSON schema of a recipe, for editors: what each key is called, takes and does."""

import json
from types import NoneType
from typing import Any, get_origin

from .settings import Setting, all_settings

# PyYAML reads 5e-4 as text, so a recipe may have a number that is one.
_NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"
_NAMES = {bool: "boolean", int: "integer", NoneType: "null", dict: "object"}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe."""
    properties = {}
    for name, setting in all_settings().items():
        properties[name] = _property(setting)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of grpo-hf",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def schema_text() -> str:
    """Return the JSON schema of a recipe as text."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False)


def _property(setting: Setting) -> dict[str, Any]:
    described: dict[str, Any] = {"description": setting.text, **_values(setting)}
    default = setting.default
    if default is None or isinstance(default, bool | int | float | str | list):
        described["default"] = default
    return described


def _values(setting: Setting) -> dict[str, Any]:
    """Return the part of a schema that says which values a setting takes."""
    if setting.choices:
        values = list(setting.choices)
        if NoneType in setting.types:
            values.append(None)
        if "no" in values:
            # YAML 1.1 reads a bare `no` as false.
            values.append(False)
        return {"enum": values}
    alternatives = []
    for kind in setting.types:
        alternatives += _alternatives(setting.name, kind)
    return alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}


def _alternatives(name: str, kind: Any) -> list[dict[str, Any]]:
    """Return the schemas of one alternative of a type hint."""
    origin = get_origin(kind) or kind
    if origin is float:
        return [{"type": "number"}, {"type": "string", "pattern": _NUMBER}]
    if origin is list:
        # A single entry stands for a list of one; a reward with options is a mapping.
        entry: dict[str, Any] = {"type": ["string", "number"]}
        if name == "rewards":
            entry = {"type": ["string", "object"]}
        return [{"type": "array", "items": entry}, entry]
    if origin is str:
        # Some texts of TRL are also true or false, such as scale_rewards.
        return [{"type": ["string", "boolean"]}]
    if origin in _NAMES:
        return [{"type": _NAMES[origin]}]
    # A literal `False`, or a class of another library, which a mapping or a text describes.
    return [{"type": ["boolean", "string", "object"]}]
