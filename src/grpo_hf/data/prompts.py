"""From raw rows to the dataset that the trainer takes: columns renamed, every row with its prompt.

A row keeps all its columns, because rewards read them by name; what this module adds is the column `prompt`: a list of
messages where the tokenizer has a chat template, plain text where it has none.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from datasets import Dataset

from ..errors import DataError, ModelError, did_you_mean
from .readers import PLACE, BadRow, Row, Split, check_filled

PROMPT_COLUMNS = ("prompt", "messages", "question", "problem")


def rename_columns(split: Split, mapping: dict[str, str]) -> Split:
    """Give columns the names that rewards know (`{"answer": "Answer"}`: new name, name in the data)."""
    columns = column_names(split.rows)
    for new, old in mapping.items():
        if old not in columns:
            raise DataError(
                f"{split.source}: --columns {new}={old}: there is no column {old!r}.{did_you_mean(old, columns)} "
                f"The columns are {', '.join(columns)}."
            )
    replaced = {*mapping, *mapping.values()}
    rows = [
        {key: value for key, value in row.items() if key not in replaced}
        | {new: row[old] for new, old in mapping.items() if old in row}
        for row in split.rows
    ]
    return Split(rows, split.bad, split.source)


def column_names(rows: Sequence[Row]) -> list[str]:
    """Names of the data's columns, in their order."""
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key != PLACE]


def prompt_column(split: Split, wanted: str | None = None) -> str:
    """The column that holds the prompt: `wanted`, else the first of `PROMPT_COLUMNS` that is there."""
    columns = column_names(split.rows)
    if wanted is not None and wanted not in columns:
        raise DataError(
            f"{split.source}: --prompt_column {wanted}: there is no such column.{did_you_mean(wanted, columns)} "
            f"The columns are {', '.join(columns)}."
        )
    found = wanted or next((name for name in PROMPT_COLUMNS if name in columns), None)
    if found is None:
        raise DataError(
            f"{split.source}: no column {', '.join(PROMPT_COLUMNS[:-1])} or {PROMPT_COLUMNS[-1]} to take the prompt "
            f"from. The columns are {', '.join(columns)}. Name one with --prompt_column."
        )
    return found


def prompt_builder(
    *, chat: bool, system_prompt: str | None = None, instruction: str | None = None
) -> Callable[[Any], list[Row] | str]:
    """A function from a raw prompt to what the trainer takes.

    With a chat template (`chat`) a text becomes a system message, where there is a system prompt, and a user message
    that ends with the instruction. Without one the same parts stand above each other as plain text.
    """

    def build(raw: Any) -> list[Row] | str:
        if isinstance(raw, list):
            return _from_messages(raw, chat, system_prompt, instruction)
        if not isinstance(raw, str) or not raw.strip():
            raise ValueError(f"prompt is {_shown(raw)}; expected text or a list of messages")
        text = f"{raw}\n{instruction}" if instruction else raw
        if not chat:
            return f"{system_prompt}\n\n{text}\n" if system_prompt else f"{text}\n"
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return [*system, {"role": "user", "content": text}]

    return build


def _from_messages(
    raw: list[Any], chat: bool, system_prompt: str | None, instruction: str | None
) -> list[Row]:
    if not chat:
        raise ModelError(
            "the prompts are lists of messages, and the tokenizer has no chat template to render them. Use an instruct "
            "model, or a column of plain text (--prompt_column)."
        )
    messages = [dict(message) for message in raw if isinstance(message, dict)]
    parts = [message.get(key) for message in messages for key in ("role", "content")]
    if len(messages) != len(raw) or not all(isinstance(part, str) and part for part in parts):
        raise ValueError("a message lacks its role or text content")
    while (
        messages and messages[-1]["role"] == "assistant"
    ):  # the answer of a supervised dataset is not the prompt
        messages.pop()
    if not messages or messages[-1]["role"] == "system":
        raise ValueError("no message of a user")
    if instruction:
        messages[-1]["content"] = f"{messages[-1]['content']}\n{instruction}"
    if system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages


def build_dataset(
    split: Split, column: str, build: Callable[[Any], list[Row] | str], needed: Iterable[str] = ()
) -> tuple[Dataset, Split]:
    """Give every usable row its `prompt`; set rows aside whose prompt or needed columns are empty.

    Returns:
        The dataset that the trainer takes, and the split with the rows that were set aside added to `bad`.

    Raises:
        DataError: no row is usable, or a column mixes types.
    """
    rows: list[Row] = []
    bad = list(split.bad)
    for index, raw in enumerate(split.rows):
        place = raw.get(PLACE, f"row {index}")
        empty = next((name for name in needed if name != "prompt" and raw.get(name) is None), None)
        try:
            if empty is not None:
                raise ValueError(f"{empty} is empty")
            prompt = build(raw.get(column))
        except ModelError:
            raise
        except ValueError as error:
            bad.append(BadRow(place, str(error)))
            continue
        rows.append(
            {key: value for key, value in raw.items() if key not in (PLACE, "messages")}
            | {"prompt": prompt}
        )
    checked = Split(rows, bad, split.source)
    check_filled(checked)
    try:
        # not from_list: its columns are those of the first row alone
        return Dataset.from_dict(
            {name: [row.get(name) for row in rows] for name in column_names(rows)}
        ), checked
    except (
        TypeError,
        ValueError,
        OverflowError,
    ) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DataError(
            f"{split.source}: a column mixes types, so it cannot be loaded ({error})."
        ) from error


def _shown(value: Any) -> str:
    return "empty" if value is None or value == "" else repr(value)[:60]


def prompt_token_ids(
    prompts: Iterable[Any], tokenizer: Any, template_options: dict[str, Any] | None = None
) -> list[list[int]]:
    """Token ids of each prompt as the trainer feeds it: messages through the chat template, texts as they are.

    Args:
        prompts: all lists of messages, or all plain texts.
        tokenizer: the model's.
        template_options: keyword arguments of the chat template.
    """
    prompts = list(prompts)
    if not prompts:
        return []
    if isinstance(prompts[0], list):
        return tokenizer.apply_chat_template(
            prompts,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **(template_options or {}),
        )["input_ids"]
    return tokenizer(prompts)["input_ids"]


def hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Take `count` rows out of a split at random, the same for the same seed: (held out, rest)."""
    order = list(range(len(split.rows)))
    random.Random(seed).shuffle(order)
    picked = set(order[:count])
    held = [row for index, row in enumerate(split.rows) if index in picked]
    rest = [row for index, row in enumerate(split.rows) if index not in picked]
    return Split(held, [], f"{split.source}, held out"), Split(rest, split.bad, split.source)
