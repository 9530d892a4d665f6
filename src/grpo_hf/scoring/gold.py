"""Which column of the data holds what is right: by its name, or because a reward reads it."""

from collections.abc import Mapping, Sequence
from typing import Any

# Where datasets keep what is right; the fullest form of it first.
GOLD_COLUMNS = ("solution", "answer", "code", "target", "gold", "label")


def gold_texts(rows: Sequence[Mapping[str, Any]], read: Sequence[str]) -> dict[str, list[str]]:
    """Return the texts that may be right answers: one for each row, by where they come from.

    Args:
        rows: rows of the data.
        read: the columns that a reward reads. Any of them may hold what is right.

    Returns:
        The texts by column. Those of a column that is called as gold answers are called come
        first, and rows without one have an empty text.
    """
    texts: dict[str, list[str]] = {}
    for row in rows:
        for name in GOLD_COLUMNS:
            if row.get(name) is not None:
                # Rows may have their answer in different columns.
                texts = {name: [_named_gold(other) for other in rows]}
                break
        if texts:
            break
    for name in read:
        values = [row.get(name) for row in rows]
        # Lists and mappings are tests, messages, or what else no model would write.
        is_scalar = all(value is None or isinstance(value, str | int | float) for value in values)
        if name not in texts and is_scalar and any(value is not None for value in values):
            texts[name] = ["" if value is None else str(value) for value in values]
    return texts or {"": [""] * len(rows)}


def _named_gold(row: Mapping[str, Any]) -> str:
    """Return the answer that a row calls right, as text; empty where no column is called so."""
    for name in GOLD_COLUMNS:
        if row.get(name) is not None:
            return str(row[name])
    return ""
