"""Raw rows into the dataset that the trainer takes: renamed columns, a prompt for every row.

A row keeps all its columns, because rewards read them by name, and gets the column `prompt`;
`prompts.py` makes it.
"""

import random
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset

from ..errors import DataError, ModelError, did_you_mean
from .prompts import ANSWERED_COLUMN, PromptForm, prompt_builder
from .readers import PLACE, BadRow, Row, Split, check_filled

# Of so many rows one is held out at most.
_FEW = 5
PROMPT_COLUMNS = ("prompt", "messages", "question", "problem")


def rename_columns(split: Split, mapping: dict[str, str]) -> Split:
    """Give columns the names that rewards know.

    Args:
        split: rows whose columns still have the names of the data.
        mapping: from the new name to the name in the data, as in `{"answer": "Answer"}`.

    Raises:
        DataError: the data has no column of such a name.
    """
    columns = column_names(split.rows)
    for new, old in mapping.items():
        if old not in columns:
            raise DataError(
                f"{split.source}: --columns {new}={old}: there is no column {old!r}."
                f"{did_you_mean(old, columns)} The columns are {', '.join(columns)}."
            )
    rows = []
    for row in split.rows:
        rows.append(_renamed(row, mapping))
    return replace(split, rows=rows)


def _renamed(row: Row, mapping: dict[str, str]) -> Row:
    # A column that already has one of the new names is dropped, also from a row that lacks the old
    # column. Otherwise one column would hold two kinds of values.
    dropped = {*mapping, *mapping.values()}
    renamed = {}
    for name, value in row.items():
        if name not in dropped:
            renamed[name] = value
    # Values come from the original row, so two columns can swap their names.
    for new, old in mapping.items():
        if old in row:
            renamed[new] = row[old]
    return renamed


def column_names(rows: Sequence[Row]) -> list[str]:
    """Return the names of the data's columns, in the order in which they first occur."""
    # A dict, because it keeps that order. The first row alone may lack columns.
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    names.pop(PLACE, None)
    return list(names)


def usual_prompt_column(columns: Container[str]) -> str | None:
    """Return the first of `PROMPT_COLUMNS` that is among the columns, or None."""
    return next((name for name in PROMPT_COLUMNS if name in columns), None)


def is_blank(value: Any) -> bool:
    """Return whether a value is nothing, or a text of nothing but whitespace."""
    return value is None or (isinstance(value, str) and not value.strip())


def rows_to_hold_out(count: int, wanted: int) -> int:
    """Return how many rows of a single file are held out, where nobody says: a fifth at most."""
    return min(wanted, max(1, count // _FEW)) if count > 1 else 0


def prompt_column(split: Split, wanted: str | None = None) -> str:
    """Return the name of the column that holds the prompt.

    This is `wanted`, and without it the first of `PROMPT_COLUMNS` that the data has.

    Raises:
        DataError: the data has no such column.
    """
    columns = column_names(split.rows)
    if wanted is not None and wanted not in columns:
        raise DataError(
            f"{split.source}: --prompt_column {wanted}: there is no such column."
            f"{did_you_mean(wanted, columns)} The columns are {', '.join(columns)}."
        )
    if wanted:
        return wanted
    usual = usual_prompt_column(columns)
    if usual is not None:
        return usual
    raise DataError(
        f"{split.source}: no column {', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]} to "
        f"take the prompt from. The columns are {', '.join(columns)}. Name one with "
        "--prompt_column."
    )


def build_dataset(
    split: Split,
    column: str,
    build: Callable[[Any], list[Row] | str],
    needed: Iterable[str] = (),
    gold: Container[str] = (),
) -> tuple[Dataset, Split]:
    """Give every usable row its `prompt`, and leave out the other rows.

    A row is left out if its prompt, or one of the needed columns, is empty.

    Args:
        split: raw rows.
        column: the column that holds the raw prompt.
        build: makes the prompt of the raw prompt; see `prompts.prompt_builder`.
        needed: columns that the rewards read.
        gold: of those, the ones where a blank text is as empty as null.

    Returns:
        The dataset that the trainer takes, and the split, whose `bad` now also has the rows that
        were left out here.

    Raises:
        DataError: no row is usable, or a column holds what no dataset can.
        ModelError: the prompts are lists of messages, and there is no chat template.
    """
    checked = usable_rows(split, column, build, needed, gold)
    return _as_dataset(checked), checked


def usable_rows(
    split: Split,
    column: str,
    build: Callable[[Any], list[Row] | str],
    needed: Iterable[str] = (),
    gold: Container[str] = (),
) -> Split:
    """Return a split whose rows have their `prompt`; arguments and errors of `build_dataset`."""
    rows: list[Row] = []
    bad = list(split.bad)
    for index, raw in enumerate(split.rows):
        try:
            rows.append(with_prompt(raw, column, build, needed, gold))
        except ModelError:
            # It is a ValueError as well, but not a fault of this row: no row could be used.
            raise
        except ValueError as error:
            place = raw.get(PLACE, f"row {index}")
            bad.append(BadRow(place, str(error)))
    # What was left out before counts as well, so that every count of a source has the same total.
    checked = replace(split, rows=rows, bad=bad)
    check_filled(checked)
    return checked


def is_usable(raw: Row, column: str, needed: Iterable[str], gold: Container[str] = ()) -> bool:
    """Return whether a raw row stays where `build_dataset` has these arguments.

    The model's tokenizer need not be known, and is taken to have a chat template.
    """
    build = prompt_builder(PromptForm(chat=True, answered=column == ANSWERED_COLUMN))
    try:
        with_prompt(raw, column, build, needed, gold)
    except ValueError:
        return False
    return True


def count_usable(
    split: Split, column: str, needed: Iterable[str], gold: Container[str] = ()
) -> int:
    """Return how many rows of a split stay; arguments of `is_usable`."""
    return sum(is_usable(raw, column, needed, gold) for raw in split.rows)


def missing_column(raw: Row, needed: Iterable[str], gold: Container[str]) -> str | None:
    """Return the first needed column in which a raw row has nothing; arguments of `build_dataset`.

    A prompt is not in the row yet, and is not looked for.
    """
    for name in needed:
        value = raw.get(name)
        if name != "prompt" and (value is None or (name in gold and is_blank(value))):
            return name
    return None


def with_prompt(
    raw: Row,
    column: str,
    build: Callable[[Any], list[Row] | str],
    needed: Iterable[str],
    gold: Container[str] = (),
) -> Row:
    """Return a copy of a row with its prompt; raise `ValueError` for a row that cannot be used."""
    name = missing_column(raw, needed, gold)
    if name is not None:
        raise ValueError(f"{name} is empty")
    prompt = build(raw.get(column))
    row = dict(raw)
    # The place has named the row so far, and is no column of the data.
    row.pop(PLACE, None)
    row["prompt"] = prompt
    return row


def _as_dataset(split: Split) -> Dataset:
    # Dataset.from_list would take the columns of the first row alone.
    columns = {}
    for name in column_names(split.rows):
        columns[name] = [row.get(name) for row in split.rows]
    try:
        # As `load_dataset` does with files: else a message would get the keys of all others, and
        # chat templates tell a key that is None from one that is not there.
        return Dataset.from_dict(columns, on_mixed_types="use_json")
    # pyarrow's ArrowInvalid is a ValueError; which error a value raises depends on its type.
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{split.source}: a column cannot be loaded ({error}).") from error


def hold_out(split: Split, count: int, seed: int, column: str | None = None) -> tuple[Split, Split]:
    """Split off `count` random rows, the same ones for the same seed.

    Args:
        column: rows with the same value there stay together, so that no prompt that was trained on
            is held out. Fewer rows are held out where no more fit; where that would be less than
            half of them, they are taken one by one.

    Returns:
        The rows that are held out, and the rest; both keep the order of the data.
    """
    order = list(range(len(split.rows)))
    random.Random(seed).shuffle(order)
    alike: dict[str, list[int]] = {}
    for index in order:
        value = index if column is None else split.rows[index].get(column)
        alike.setdefault(repr(value), []).append(index)
    picked: set[int] = set()
    for indices in alike.values():
        if len(picked) + len(indices) <= count:
            picked.update(indices)
    if 2 * len(picked) < count:
        picked = set(order[:count])
    held_out = []
    rest = []
    for index, row in enumerate(split.rows):
        if index in picked:
            held_out.append(row)
        else:
            rest.append(row)
    # The rest keeps the bad rows: they are counted once, where the training data is described.
    kept = replace(split, rows=rest, total=split.count)
    return Split(held_out, [], f"{split.source}, held out"), kept
