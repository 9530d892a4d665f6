"""Rows with a prompt, out of local files, the Hub, or the embedded word problems.

A row keeps all its columns, because rewards read them by name; what this module adds is the column `prompt`: a list of
messages where the tokenizer has a chat template, plain text where it has none.
"""

import csv
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

from .errors import DataError, HubUnreachable, ModelError, did_you_mean
from .word_problems import word_problems

EMBEDDED = "embedded:word_problems"
PROMPT_COLUMNS = ("prompt", "messages", "question", "problem")
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_EMBEDDED_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
_EMBEDDED_ROWS = 4096  # more than the demo draws, so that every prompt of a run is fresh
_NAMED_BAD_ROWS = 5

Row = dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it stands and why."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True)
class Split:
    """The usable rows of one split, and those that are not."""

    rows: list[Row]
    bad: list[BadRow]
    source: str

    def describe_bad(self) -> str:
        """One sentence that counts the rows left out and names the first of them."""
        named = "; ".join(map(str, self.bad[:_NAMED_BAD_ROWS]))
        more = f"; and {len(self.bad) - _NAMED_BAD_ROWS} more" if len(self.bad) > _NAMED_BAD_ROWS else ""
        return f"{len(self.bad)} of {len(self.bad) + len(self.rows)} rows of {self.source} left out: {named}{more}"


def read_split(
    *,
    path: str | None = None,
    name: str | None = None,
    config: str | None = None,
    split: str = "train",
    seed: int = 0,
    optional: bool = False,
) -> Split | None:
    """Read one split of raw rows from a local file or folder (`path`) or from the Hub (`name`).

    A folder holds a file per split (`train.jsonl`, `test.csv`, ...); a single file is the split `train`.

    Returns:
        The split, or None when it does not exist and `optional` is set.

    Raises:
        DataError: no such file or split, a format that is not known, or no dataset named at all.
        HubUnreachable: the dataset is on the Hub, and the Hub does not answer.
    """
    if path == EMBEDDED:
        found = _read_embedded(split, seed, optional)
    elif path is not None:
        file = _split_file(Path(path), split, optional)
        found = None if file is None else _read_file(file)
    elif name is not None:
        found = _read_hub(name, config, split, optional)
    else:
        raise DataError(
            f"no dataset named: give --dataset_path (a folder or a {', '.join(SUFFIXES)} file), or --dataset_name "
            "(a dataset on the Hub)."
        )
    if found is not None:
        _check_filled(found)
    return found


def _read_embedded(split: str, seed: int, optional: bool) -> Split | None:
    known = next((known for known in _EMBEDDED_SPLITS if known == split), None)
    if known is not None:
        return Split(list(islice(word_problems(known, seed=seed), _EMBEDDED_ROWS)), [], EMBEDDED)
    if optional:
        return None
    raise DataError(f"{EMBEDDED} has no split {split!r}; it has train and test.{did_you_mean(split, _EMBEDDED_SPLITS)}")


def _split_file(path: Path, split: str, optional: bool) -> Path | None:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(f"{path}: a dataset file ends in one of {', '.join(SUFFIXES)}; not {path.suffix!r}.")
        if split == "train" or optional:
            return path if split == "train" else None
        raise DataError(
            f"{path}: one file is the split 'train', and the split {split!r} was asked for. Point --dataset_path at a "
            f"folder with {split}{path.suffix}, or leave --dataset_train_split out."
        )
    if not path.is_dir():
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(
            f"{path}: no such dataset file or folder.{did_you_mean(path.name, siblings)} Expected a folder with "
            f"train.jsonl (or {', '.join(SUFFIXES[1:])}), or one such file."
        )
    for suffix in SUFFIXES:
        if (path / f"{split}{suffix}").is_file():
            return path / f"{split}{suffix}"
    if optional:
        return None
    held = sorted(p.name for p in path.iterdir())
    raise DataError(
        f"{path}: no file for the split {split!r}. Expected {split}.jsonl (or {', '.join(SUFFIXES[1:])}); the folder "
        f"holds {', '.join(held) or 'nothing'}. Point --dataset_path at a file, or name the split with "
        "--dataset_train_split."
    )


def _read_file(file: Path) -> Split:
    readers = {".jsonl": _json_lines, ".json": _json_array, ".csv": _csv_lines, ".parquet": _parquet_rows}
    rows: list[Row] = []
    bad: list[BadRow] = []
    try:
        for place, row in readers[file.suffix](file):
            if isinstance(row, str):
                bad.append(BadRow(f"{file.name}{place}", row))
            else:
                rows.append({**row, _PLACE: f"{file.name}{place}"})
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from None
    return Split(rows, bad, str(file))


_PLACE = "__place__"  # travels with a raw row until its prompt is built, to name it by file and line


# Readers yield where in the file a row stands, and the row, or the reason why it cannot be used. utf-8-sig reads UTF-8
# with and without the byte order mark that spreadsheets and Windows editors put in front.
_Rows = Iterator[tuple[str, Row | str]]


def _json_lines(file: Path) -> _Rows:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                yield f":{number}", f"not JSON ({error.msg})"
                continue
            yield f":{number}", _object(row)


def _json_array(file: Path) -> _Rows:
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not JSON ({error.msg}). An object per line? Name it .jsonl.") from None
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a JSON list of objects, got {type(rows).__name__}.")
    for index, row in enumerate(rows):
        yield f"[{index}]", _object(row)


def _object(row: Any) -> Row | str:
    return row if isinstance(row, dict) else f"expected an object, got {type(row).__name__}"


def _csv_lines(file: Path) -> _Rows:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                torn = None in row or None in row.values()
                filled = {key: value or None for key, value in row.items()}  # CSV has no other null
                yield f":{reader.line_num}", f"expected {len(reader.fieldnames or ())} fields" if torn else filled
        except csv.Error as error:
            yield f":{reader.line_num + 1}", f"not CSV ({error}); the rest of the file is unread"


def _parquet_rows(file: Path) -> _Rows:
    try:
        rows = parquet.read_table(file).to_pylist()
    except ArrowException as error:
        raise DataError(f"{file}: not a Parquet file ({error}).") from error
    for index, row in enumerate(rows):
        yield f"[{index}]", row


def _read_hub(name: str, config: str | None, split: str, optional: bool) -> Split | None:
    try:
        loaded = load_dataset(name, config)
    except (DatasetsError, ValueError, RuntimeError) as error:
        raise DataError(f"dataset {name!r} cannot be loaded: {error}") from error
    except OSError as error:
        raise HubUnreachable(
            f"dataset {name!r} could not be fetched from the Hub ({type(error).__name__}: {error}). Without a network, "
            f"point --dataset_path at a local folder or file, or use --dataset_path {EMBEDDED}."
        ) from error
    splits = loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
    if split not in splits:
        if optional:
            return None
        raise DataError(
            f"dataset {name!r} has no split {split!r}; it has {', '.join(splits)}.{did_you_mean(split, splits)} "
            "Name one with --dataset_train_split."
        )
    rows = [{**row, _PLACE: f"{split} row {i}"} for i, row in enumerate(splits[split])]
    return Split(rows, [], f"{name} ({split})")


def _check_filled(split: Split) -> None:
    if not split.rows:
        detail = split.describe_bad() if split.bad else "it holds no rows"
        raise DataError(f"{split.source}: no usable row: {detail}.")


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
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key != _PLACE]


def require_columns(split: Split, needed: dict[str, Sequence[str]]) -> None:
    """Check that the data has the columns that rewards read (`needed`: reward name -> columns).

    Raises:
        DataError: names the reward, the column and the columns there are.
    """
    columns = [*column_names(split.rows), "prompt"]
    for reward, wanted in needed.items():
        for column in wanted:
            if column not in columns:
                raise DataError(
                    f"reward {reward!r} needs the column {column!r}, which {split.source} does not have."
                    f"{did_you_mean(column, columns)} Its columns are {', '.join(columns[:-1])}. "
                    f"Rename one with --columns {column}=<its name there>."
                )


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


def _from_messages(raw: list[Any], chat: bool, system_prompt: str | None, instruction: str | None) -> list[Row]:
    if not chat:
        raise ModelError(
            "the prompts are lists of messages, and the tokenizer has no chat template to render them. Use an instruct "
            "model, or a column of plain text (--prompt_column)."
        )
    messages = [dict(message) for message in raw if isinstance(message, dict)]
    parts = [message.get(key) for message in messages for key in ("role", "content")]
    if len(messages) != len(raw) or not all(isinstance(part, str) and part for part in parts):
        raise ValueError("a message lacks its role or text content")
    while messages and messages[-1]["role"] == "assistant":  # the answer of a supervised dataset is not the prompt
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
        place = raw.get(_PLACE, f"row {index}")
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
        rows.append({key: value for key, value in raw.items() if key not in (_PLACE, "messages")} | {"prompt": prompt})
    checked = Split(rows, bad, split.source)
    _check_filled(checked)
    try:
        return Dataset.from_list(rows), checked
    except (TypeError, ValueError, OverflowError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DataError(f"{split.source}: a column mixes types, so it cannot be loaded ({error}).") from error


def _shown(value: Any) -> str:
    return "empty" if value is None or value == "" else repr(value)[:60]


def hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Take `count` rows out of a split at random, the same for the same seed: (held out, rest)."""
    order = list(range(len(split.rows)))
    random.Random(seed).shuffle(order)
    picked = set(order[:count])
    held = [row for index, row in enumerate(split.rows) if index in picked]
    rest = [row for index, row in enumerate(split.rows) if index not in picked]
    return Split(held, [], f"{split.source}, held out"), Split(rest, split.bad, split.source)
