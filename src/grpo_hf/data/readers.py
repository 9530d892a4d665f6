"""Read raw rows from local files, the Hub, or the embedded problems.

A row that cannot be read is named by its file and line.
"""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

from ..demo.running_sums import running_sums
from ..demo.word_problems import word_problems
from ..errors import DataError, HubUnreachable, did_you_mean, did_you_mean_path

EMBEDDED = "embedded:word_problems"
# The problems that need no file, by the path that names them.
EMBEDDED_PROBLEMS = {EMBEDDED: word_problems, "embedded:running_sums": running_sums}
# A folder may hold a split in several formats; the first of these suffixes wins.
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_EMBEDDED_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
# The problems are endless, a dataset is not. The demo draws fewer, so no prompt of a run repeats.
_EMBEDDED_ROWS = 4096
# The first bad rows show what is wrong; a message that names thousands would hide it.
_NAMED_BAD_ROWS = 5
# Characters of a broken line.
_SHOWN = 40
# Characters of a header that are looked at; the csv module takes twice as many for one field.
_HEADER = 65_536
# What spreadsheets put between columns where a comma is the decimal point.
_OTHER_SEPARATORS = {";": "semicolon", "\t": "tab"}
# This key travels with a raw row until its prompt is built, to name the row by file and line.
PLACE = "__place__"

Row = dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its place in the data and the reason."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True)
class Split:
    """One split of a dataset: its usable rows, its bad rows, and the name of its source.

    Args:
        total: the rows of the source, where some of them are held out; by default those here.
    """

    rows: list[Row]
    bad: list[BadRow]
    source: str
    total: int | None = None

    @property
    def count(self) -> int:
        """How many rows the source has, whatever became of them."""
        return len(self.bad) + len(self.rows) if self.total is None else self.total

    def describe_bad(self) -> str:
        """Return one sentence that counts the bad rows and names the first of them."""
        return f"{self.source}: {self.counted_bad()}"

    def counted_bad(self) -> str:
        """Return that sentence without the name of the source."""
        named = "; ".join(map(str, self.bad[:_NAMED_BAD_ROWS]))
        unnamed = len(self.bad) - _NAMED_BAD_ROWS
        more = f"; and {unnamed} more" if unnamed > 0 else ""
        return f"{len(self.bad)} of {self.count} rows left out ({named}{more})"


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

    A folder holds a file per split (`train.jsonl`, `test.csv`, ...); a single file is the split
    `train`.

    Args:
        path: a local file or folder, `embedded:word_problems` or `embedded:running_sums`.
        name: a dataset on the Hub; not read where there is a path.
        config: the dataset's configuration on the Hub.
        split: the split's name.
        seed: of the embedded problems.
        optional: return None for a split that does not exist, instead of raising.

    Returns:
        The split, or None if it does not exist and `optional` is set.

    Raises:
        DataError: no such file or split, an unknown format, no usable row, or no dataset named.
        HubUnreachable: the dataset is on the Hub, and the Hub does not answer.
    """
    loaded: Split | None = None
    if path in EMBEDDED_PROBLEMS:
        loaded = _read_embedded(path, split, seed, optional)
    elif path is not None:
        file = split_file(Path(path), split, optional)
        if file is not None:
            loaded = _read_file(file)
    elif name is not None:
        loaded = _read_hub(name, config, split, optional)
    else:
        raise DataError(
            f"no dataset named: give --dataset_path (a folder or a {', '.join(SUFFIXES)} file), or "
            "--dataset_name (a dataset on the Hub)."
        )
    if loaded is not None:
        check_filled(loaded)
    return loaded


def _read_embedded(path: str, split: str, seed: int, optional: bool) -> Split | None:
    # The problems have a third split, for the cold start. It is no dataset of a run: a model would
    # be trained twice on the same problems.
    for embedded_split in _EMBEDDED_SPLITS:
        if embedded_split == split:
            problems = EMBEDDED_PROBLEMS[path](embedded_split, seed=seed)
            return Split(list(islice(problems, _EMBEDDED_ROWS)), [], path)
    if optional:
        return None
    raise DataError(
        f"{path} has no split {split!r}; it has train and test."
        f"{did_you_mean(split, _EMBEDDED_SPLITS)}"
    )


def split_file(path: Path, split: str, optional: bool) -> Path | None:
    """Return the file that holds a split; None if there is none and `optional` is set.

    Raises:
        DataError: as `read_split`.
    """
    if path.is_file():
        return _single_file(path, split, optional)
    if path.is_dir():
        return _file_in_folder(path, split, optional)
    hint = did_you_mean_path(path, _names_beside(path))
    # Unlike rewards, data is not looked for beside the recipe.
    place = "" if path.is_absolute() else f", looked for in {Path.cwd()}"
    raise DataError(
        f"{path}: no such dataset file or folder{place}.{hint} Expected a folder with train.jsonl "
        f"(or {', '.join(SUFFIXES[1:])}), or one such file."
    )


def _single_file(path: Path, split: str, optional: bool) -> Path | None:
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"{path}: a dataset file ends in one of {', '.join(SUFFIXES)}; not {path.suffix!r}."
        )
    if split == "train":
        return path
    # A single file holds training rows; under another name they would make an evaluation wrong.
    if optional:
        return None
    raise DataError(
        f"{path}: one file is the split 'train', and the split {split!r} was asked for. Point "
        f"--dataset_path at a folder with {split}{path.suffix}, or leave --dataset_train_split out."
    )


def _file_in_folder(folder: Path, split: str, optional: bool) -> Path | None:
    for suffix in SUFFIXES:
        file = folder / f"{split}{suffix}"
        if file.is_file():
            return file
    if optional:
        return None
    names = ", ".join(sorted(os.listdir(folder)))
    raise DataError(
        f"{folder}: no file for the split {split!r}. Expected {split}.jsonl (or "
        f"{', '.join(SUFFIXES[1:])}); the folder holds {names or 'nothing'}. Point --dataset_path "
        "at a file, or name the split with --dataset_train_split."
    )


def _names_beside(path: Path) -> list[str]:
    """Return the names in the folder of a path; none if there is no such folder."""
    names = []
    if path.parent.is_dir():
        # glob skips a folder that may not be read, where os.listdir raises. The names are only for
        # a hint, so the message about the missing file goes first.
        for entry in path.parent.glob("*"):
            names.append(entry.name)
    return names


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
        for position, row in readers[file.suffix](file):
            place = f"{file.name}{position}"
            if isinstance(row, str):
                bad.append(BadRow(place, row))
            else:
                rows.append({**row, PLACE: place})
    except UnicodeDecodeError as error:
        # Readers are generators, so the error comes while they are read.
        raise DataError(f"{file}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from None
    return Split(rows, bad, str(file))


# A reader yields a row's position in the file, and the row, or the reason why it cannot be used.
# utf-8-sig reads UTF-8 with and without the byte order mark that spreadsheets and Windows editors
# put in front.
_Rows = Iterator[tuple[str, Row | str]]


def _json_lines(file: Path) -> _Rows:
    with file.open(encoding="utf-8-sig") as lines:
        # A file's lines end at newlines only; str.splitlines would also cut at separators like
        # U+2028, which may stand inside a JSON text.
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                yield f":{number}", _fault_of(line, error)
                continue
            yield f":{number}", _object(row)


def _fault_of(line: str, error: json.JSONDecodeError) -> str:
    """Return where a line stops being JSON, with the text there."""
    rest = line[error.pos :].strip()
    if not rest:
        return f"not JSON: it ends too early, after {line.strip()[-_SHOWN:]!r}"
    shown = rest if len(rest) <= _SHOWN else f"{rest[:_SHOWN]}..."
    return f"not JSON from character {error.pos + 1} on: {shown!r}"


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


def check_separator(file: Path) -> None:
    """Check that commas are between the columns of a CSV file, and not semicolons or tabs.

    Raises:
        DataError: its header is one column by commas, and several by one of those.
    """
    # What cannot be decoded is said where the rows are read.
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        header = lines.readline(_HEADER)
    if _count_between(header, ",") > 0:
        return
    separator = max(_OTHER_SEPARATORS, key=lambda each: _count_between(header, each))
    count = _count_between(header, separator)
    if count > 0:
        name = _OTHER_SEPARATORS[separator]
        raise DataError(
            f"{file}:1: the header has no comma between columns and {count} "
            f"{name}{'' if count == 1 else 's'}; expected commas. Save it with commas, or as JSON "
            "lines (.jsonl); the name of a single column may stand in quotes."
        )


def _count_between(header: str, separator: str) -> int:
    """Return how often a separator is between columns, and not within quotes."""
    return len(next(csv.reader([header], delimiter=separator), ())) - 1


def _csv_lines(file: Path) -> _Rows:
    check_separator(file)
    # newline="" leaves newlines inside quotes to the csv module.
    with file.open(encoding="utf-8-sig", newline="") as lines:
        # Without `strict`, a quote that is never closed swallows the rest of the file silently.
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                yield f":{reader.line_num}", _csv_row(row, len(reader.fieldnames or ()))
        except csv.Error as error:
            # After such a line no row can be trusted to start where it seems to start.
            raise DataError(
                f"{file}:{reader.line_num + 1}: not CSV ({error}). Mend the line; nothing was read."
            ) from None


def _csv_row(row: dict[Any, Any], fields: int) -> Row | str:
    # DictReader puts surplus fields under the key None, and fills missing ones with None.
    if None in row or None in row.values():
        return f"expected {fields} fields"
    filled = {}
    for name, value in row.items():
        # CSV has no null; an empty cell is the nearest thing.
        filled[name] = value or None
    return filled


def _parquet_rows(file: Path) -> _Rows:
    try:
        # Through a dataset, which decodes what `datasets` itself keeps as JSON in such a file.
        rows = Dataset(parquet.read_table(file)).to_list()
    except ArrowException as error:
        raise DataError(f"{file}: not a Parquet file ({error}).") from error
    for index, row in enumerate(rows):
        yield f"[{index}]", row


def _read_hub(name: str, config: str | None, split: str, optional: bool) -> Split | None:
    found = hub_split(name, config, split, optional)
    if found is None:
        return None
    rows = []
    for index, row in enumerate(found):
        rows.append({**row, PLACE: f"{split} row {index}"})
    return Split(rows, [], f"{name} ({split})")


def hub_split(
    name: str, config: str | None, split: str, optional: bool, *, streaming: bool = False
) -> Any:
    """Return a split of a dataset on the Hub; None if there is none and `optional` is set.

    Raises:
        DataError, HubUnreachable: as `read_split`.
    """
    splits = _load_from_hub(name, config, streaming)
    if split in splits:
        return splits[split]
    if optional:
        return None
    raise DataError(
        f"dataset {name!r} has no split {split!r}; it has {', '.join(splits)}."
        f"{did_you_mean(split, splits)} Name one with --dataset_train_split."
    )


def _load_from_hub(name: str, config: str | None, streaming: bool) -> dict[str, Any]:
    """Return the rows of each split of a dataset on the Hub."""
    try:
        loaded = load_dataset(name, config, streaming=streaming)
    # Before OSError: datasets' errors about a missing dataset are FileNotFoundErrors as well.
    except (DatasetsError, ValueError, RuntimeError) as error:
        raise DataError(f"dataset {name!r} cannot be loaded: {error}") from error
    except OSError as error:
        raise HubUnreachable(
            f"dataset {name!r} could not be fetched from the Hub ({type(error).__name__}: {error})."
            " Without a network, point --dataset_path at a local folder or file, or use "
            f"--dataset_path {EMBEDDED}."
        ) from error
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def check_filled(split: Split) -> None:
    """Raise a `DataError` for a split without a usable row."""
    if not split.rows:
        detail = split.counted_bad() if split.bad else "it holds no rows"
        raise DataError(f"{split.source}: no usable row: {detail}.")
