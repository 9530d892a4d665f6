"""Read a judge's rubric and fill in its placeholders."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from grpo_hf.data.completions import message_text
from grpo_hf.errors import RewardSpecError, did_you_mean

# `{{` and `}}` are plain braces; they match without a name.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}")


# Read once, so that one run has one rubric.
@lru_cache
def read_rubric(path: str) -> str:
    """Return the text of the rubric; raise RewardSpecError if it cannot be used."""
    try:
        template = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RewardSpecError(
            f"judge: the rubric cannot be read: {error}. Name a UTF-8 text."
        ) from error
    if "completion" not in _PLACEHOLDER.findall(template):
        raise RewardSpecError(
            f"judge: rubric {path!r} has no {{completion}}. Put it where the completion belongs."
        )
    return template


def fill_in(template: str, values: dict[str, str]) -> str:
    """Return the rubric with its values, in one pass, so that braces in a value mean nothing.

    >>> fill_in("Is {completion} in {{2, 3}}?", {"completion": "{answer}"})
    'Is {answer} in {2, 3}?'
    """

    def value_or_brace(match: re.Match[str]) -> str:
        return values[match[1]] if match[1] else match[0][0]

    return _PLACEHOLDER.sub(value_or_brace, template)


def rubric_values(template: str, columns: dict[str, Any]) -> list[dict[str, str] | None]:
    """Return for each row the text of each placeholder, or None if the row lacks a value.

    >>> rubric_values("{question}: {completion}", {"question": ["6 * 7?"], "completion": ["42"]})
    [{'completion': '42', 'question': '6 * 7?'}]

    Raises:
        RewardSpecError: a placeholder is no column.
    """
    # TRL passes its state and its loggers beside the columns; they are no lists.
    known = {}
    for name, values in columns.items():
        if isinstance(values, list):
            known[name] = values
    # The empty name is that of the plain braces.
    names = sorted(set(_PLACEHOLDER.findall(template)) - {""})
    for name in names:
        if name not in known:
            raise RewardSpecError(
                f"judge: the rubric has the placeholder {{{name}}}, which is no column."
                f"{did_you_mean(name, known)} There are {', '.join(sorted(known))}. "
                f"Write {{{{{name}}}}} if the braces are meant."
            )
    row_values: list[dict[str, str] | None] = []
    wanted_columns = map(known.__getitem__, names)
    for row in zip(*wanted_columns, strict=True):
        if any(value is None for value in row):
            row_values.append(None)
        else:
            texts = map(_as_text, row)
            row_values.append(dict(zip(names, texts, strict=True)))
    return row_values


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not _is_conversation(value):
        return json.dumps(value, ensure_ascii=False, default=str)
    turns = []
    for turn in value:
        turns.append(f"{turn['role']}: {message_text(turn)}")
    return "\n".join(turns)


def _is_conversation(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, dict) and "role" in turn for turn in value)
