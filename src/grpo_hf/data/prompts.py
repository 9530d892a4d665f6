"""Turn raw rows into the dataset that the trainer takes: rename columns, give every row a prompt.

A row keeps all its columns, because rewards read them by name. This module adds the column
`prompt`: a list of messages where the tokenizer has a chat template, plain text where it has none.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from datasets import Dataset

from ..errors import DataError, ModelError, did_you_mean
from .readers import PLACE, BadRow, Row, Split, check_filled

PROMPT_COLUMNS = ("prompt", "messages", "question", "problem")
# Enough of a wrong value to recognise it, and still a message of one line.
_LONGEST_SHOWN_VALUE = 60


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
    return Split(rows, split.bad, split.source)


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
    for name in PROMPT_COLUMNS:
        if name in columns:
            return name
    raise DataError(
        f"{split.source}: no column {', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]} to "
        f"take the prompt from. The columns are {', '.join(columns)}. Name one with "
        "--prompt_column."
    )


def prompt_builder(
    *, chat: bool, system_prompt: str | None = None, instruction: str | None = None
) -> Callable[[Any], list[Row] | str]:
    """Return a function that turns a raw prompt into the prompt that the trainer takes.

    The function raises `ValueError` for a value that is no prompt, and `ModelError` for a list of
    messages without a chat template.

    Args:
        chat: whether the tokenizer has a chat template. With one, a text becomes a system message,
            if there is a system prompt, and a user message that ends with the instruction. Without
            one, the same texts follow each other as plain text.
        system_prompt: text before every prompt.
        instruction: text after every prompt.
    """

    def build(raw: Any) -> list[Row] | str:
        if isinstance(raw, list):
            return _from_messages(raw, chat, system_prompt, instruction)
        if not isinstance(raw, str) or not raw.strip():
            raise ValueError(f"prompt is {_shown(raw)}; expected text or a list of messages")
        return _from_text(raw, chat, system_prompt, instruction)

    return build


def _from_text(
    raw: str, chat: bool, system_prompt: str | None, instruction: str | None
) -> list[Row] | str:
    text = f"{raw}\n{instruction}" if instruction else raw
    if not chat:
        # A base model continues the text; the newline at the end lets it start a line of its own.
        return f"{system_prompt}\n\n{text}\n" if system_prompt else f"{text}\n"
    messages = []
    if system_prompt:
        messages.append({"role": "system", "content": system_prompt})
    messages.append({"role": "user", "content": text})
    return messages


def _from_messages(
    raw: list[Any], chat: bool, system_prompt: str | None, instruction: str | None
) -> list[Row]:
    if not chat:
        raise ModelError(
            "the prompts are lists of messages, and the tokenizer has no chat template to render "
            "them. Use an instruct model, or a column of plain text (--prompt_column)."
        )
    messages = _copied_messages(raw)
    # Datasets for supervised training end with the answer, which is not part of the prompt.
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] == "system":
        raise ValueError("no message of a user")
    if instruction:
        messages[-1]["content"] = f"{messages[-1]['content']}\n{instruction}"
    # A row's own system message is more specific than the one of the recipe.
    if system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages


def _copied_messages(raw: list[Any]) -> list[Row]:
    """Copy the messages; raise `ValueError` if one has no role or no text."""
    messages = []
    for message in raw:
        if not _has_text(message, "role") or not _has_text(message, "content"):
            raise ValueError("a message lacks its role or text content")
        # The data stays as it is when the instruction is added.
        messages.append(dict(message))
    return messages


def _has_text(message: Any, key: str) -> bool:
    if not isinstance(message, dict):
        return False
    text = message.get(key)
    return isinstance(text, str) and text != ""


def build_dataset(
    split: Split, column: str, build: Callable[[Any], list[Row] | str], needed: Iterable[str] = ()
) -> tuple[Dataset, Split]:
    """Give every usable row its `prompt`, and leave out the other rows.

    A row is left out if its prompt, or one of the needed columns, is empty.

    Args:
        split: raw rows.
        column: the column that holds the raw prompt.
        build: makes the prompt of the raw prompt; see `prompt_builder`.
        needed: columns that the rewards read.

    Returns:
        The dataset that the trainer takes, and the split, whose `bad` now also has the rows that
        were left out here.

    Raises:
        DataError: no row is usable, or a column mixes types.
        ModelError: the prompts are lists of messages, and there is no chat template.
    """
    rows: list[Row] = []
    bad = list(split.bad)
    for index, raw in enumerate(split.rows):
        try:
            rows.append(_with_prompt(raw, column, build, needed))
        except ModelError:
            # It is a ValueError as well, but not a fault of this row: no row could be used.
            raise
        except ValueError as error:
            place = raw.get(PLACE, f"row {index}")
            bad.append(BadRow(place, str(error)))
    checked = Split(rows, bad, split.source)
    check_filled(checked)
    return _as_dataset(checked), checked


def _with_prompt(
    raw: Row, column: str, build: Callable[[Any], list[Row] | str], needed: Iterable[str]
) -> Row:
    for name in needed:
        # The prompt is not in the raw row yet; `build` checks it.
        if name != "prompt" and raw.get(name) is None:
            raise ValueError(f"{name} is empty")
    prompt = build(raw.get(column))
    row = dict(raw)
    # The place has named the row so far, and is no column of the data.
    row.pop(PLACE, None)
    # TRL 1.16 takes a row with `messages` for one of supervised training.
    row.pop("messages", None)
    row["prompt"] = prompt
    return row


def _as_dataset(split: Split) -> Dataset:
    # Dataset.from_list would take the columns of the first row alone.
    columns = {}
    for name in column_names(split.rows):
        columns[name] = [row.get(name) for row in split.rows]
    try:
        return Dataset.from_dict(columns)
    # pyarrow's ArrowInvalid is a ValueError; which error a mix raises depends on its types.
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{split.source}: a column mixes types, so it cannot be loaded ({error})."
        ) from error


def _shown(value: Any) -> str:
    return "empty" if value is None or value == "" else repr(value)[:_LONGEST_SHOWN_VALUE]


def prompt_token_ids(
    prompts: Iterable[Any], tokenizer: Any, template_options: dict[str, Any] | None = None
) -> list[list[int]]:
    """Return the token ids of each prompt as the trainer feeds it to the model.

    Messages go through the chat template; texts are tokenized as they are.

    Args:
        prompts: all lists of messages, or all plain texts.
        tokenizer: the model's tokenizer.
        template_options: keyword arguments of the chat template.
    """
    prompts = list(prompts)
    if not prompts:
        # There is no first prompt that shows the form of the others.
        return []
    if not isinstance(prompts[0], list):
        return tokenizer(prompts)["input_ids"]
    return tokenizer.apply_chat_template(
        prompts,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **(template_options or {}),
    )["input_ids"]


def hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Split off `count` random rows, the same ones for the same seed.

    Returns:
        The rows that are held out, and the rest; both keep the order of the data.
    """
    order = list(range(len(split.rows)))
    random.Random(seed).shuffle(order)
    picked = set(order[:count])
    held_out = []
    rest = []
    for index, row in enumerate(split.rows):
        if index in picked:
            held_out.append(row)
        else:
            rest.append(row)
    # The rest keeps the bad rows: they are counted once, where the training data is described.
    return Split(held_out, [], f"{split.source}, held out"), Split(rest, split.bad, split.source)
