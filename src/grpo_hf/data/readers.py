"""Raw rows of local files, the Hub, or the embedded problems; what cannot be read is named by file and line."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

from ..demo.word_problems import word_problems
from ..errors import DataError, HubUnreachable, did_you_mean

EMBEDDED = "embedded:word_problems"
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_EMBEDDED_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
_EMBEDDED_ROWS = 4096  # more than the demo draws, so that every prompt of a run is fresh
_NAMED_BAD_ROWS = 5
PLACE = "__place__"  # travels with a raw row until its prompt is built, to name it by file and line

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
        more = (
            f"; and {len(self.bad) - _NAMED_BAD_ROWS} more"
            if len(self.bad) > _NAMED_BAD_ROWS
            else ""
        )
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
        check_filled(found)
    return found


def _read_embedded(split: str, seed: int, optional: bool) -> Split | None:
    known = next((known for known in _EMBEDDED_SPLITS if known == split), None)
    if known is not None:
        return Split(list(islice(word_problems(known, seed=seed), _EMBEDDED_ROWS)), [], EMBEDDED)
    if optional:
        return None
    raise DataError(
        f"{EMBEDDED} has no split {split!r}; it has train and test.{did_you_mean(split, _EMBEDDED_SPLITS)}"
    )


def _split_file(path: Path, split: str, optional: bool) -> Path | None:
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{path}: a dataset file ends in one of {', '.join(SUFFIXES)}; not {path.suffix!r}."
            )
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
    readers = {
        ".jsonl": _json_lines,
        ".json": _json_array,
        ".csv": _csv_lines,
        ".parquet": _parquet_rows,
    }
    rows: list[Row] = []
    bad: list[BadRow] = []
    try:
        for place, row in readers[file.suffix](file):
            if isinstance(row, str):
                bad.append(BadRow(f"{file.name}{place}", row))
            else:
                rows.append({**row, PLACE: f"{file.name}{place}"})
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from None
    return Split(rows, bad, str(file))


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
        raise DataError(
            f"{file}:{error.lineno}: not JSON ({error.msg}). An object per line? Name it .jsonl."
        ) from None
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
                yield (
                    f":{reader.line_num}",
                    f"expected {len(reader.fieldnames or ())} fields" if torn else filled,
                )
        except csv.Error as error:
            raise DataError(
                f"{file}:{reader.line_num + 1}: not CSV ({error}). Mend the line; nothing was read."
            ) from None


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
    rows = [{**row, PLACE: f"{split} row {i}"} for i, row in enumerate(splits[split])]
    return Split(rows, [], f"{name} ({split})")


def check_filled(split: Split) -> None:
    """Raise a `DataError` for a split without a usable row."""
    if not split.rows:
        detail = split.describe_bad() if split.bad else "it holds no rows"
        raise DataError(f"{split.source}: no usable row: {detail}.")
