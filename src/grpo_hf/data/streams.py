"""Training data that is read while a run trains, for data that is too large to hold."""

import logging
from collections.abc import Callable, Container, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import IterableDataset, load_dataset

from ..errors import DataError, ModelError
from .readers import (
    EMBEDDED_PROBLEMS,
    PLACE,
    Row,
    Split,
    check_filled,
    check_separator,
    hub_split,
    split_file,
)
from .rows import with_prompt

logger = logging.getLogger(__name__)

# The formats of local files by the names that `load_dataset` has for them.
_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# The first of them show what is wrong with the data.
_NAMED_BAD_ROWS = 5


def open_stream(
    *, path: str | None, name: str | None, config: str | None, split: str, optional: bool = False
) -> IterableDataset | None:
    """Open a split of a local file or folder (`path`), or of a dataset on the Hub (`name`).

    Args:
        path, name, config, split, optional: as in `readers.read_split`.

    Returns:
        The stream, or None if there is no such split and `optional` is set.

    Raises:
        DataError: no such split, or nothing that can be streamed or read.
        HubUnreachable: the Hub does not answer.
    """
    if path is None and name is not None:
        return hub_split(name, config, split, optional, streaming=True)
    if path is None or path in EMBEDDED_PROBLEMS:
        raise DataError(
            f"dataset_streaming reads files or the Hub, and the dataset is {path}. Give "
            "--dataset_path or --dataset_name, or leave dataset_streaming out."
        )
    file = split_file(Path(path), split, optional)
    if file is None:
        return None
    files = {split: str(file)}
    try:
        if file.suffix == ".csv":
            check_separator(file)
        return load_dataset(_FORMATS[file.suffix], data_files=files, streaming=True)[split]
    except DataError:
        raise
    # datasets 5.2 lets StopIteration out where a file has no row.
    except (ValueError, OSError, StopIteration) as error:
        raise DataError(f"{file} cannot be read ({str(error) or 'it has no rows'}).") from error


def first_rows_of(stream: IterableDataset, count: int, source: str) -> Split:
    """Read the first rows of a stream.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    rows = []
    try:
        for index, row in enumerate(islice(stream, count)):
            rows.append({**row, PLACE: f"row {index}"})
    # Which error a broken line raises depends on the format.
    except (ValueError, OSError) as error:
        raise DataError(f"{source} cannot be read ({error}).") from error
    split = Split(rows, [], source)
    check_filled(split)
    return split


def stream_with_prompts(
    stream: IterableDataset,
    renames: Mapping[str, str],
    column: str,
    build: Callable[[Any], list[Row] | str],
    needed: Iterable[str] = (),
    gold: Container[str] = (),
) -> IterableDataset:
    """Return a stream whose rows have prompts; rows without a usable one are left out.

    Args:
        renames: from the new name of a column to the name in the data, which stays as well.
        column: the column with the raw prompt, by its new name.
        build, needed, gold: as in `rows.build_dataset`.
    """
    needed = list(needed)
    left_out = 0

    def add_prompt(row: Row) -> Row:
        nonlocal left_out
        renamed = dict(row)
        for new, old in renames.items():
            renamed[new] = row.get(old)
        try:
            return with_prompt(renamed, column, build, needed, gold)
        except ModelError:
            raise
        except ValueError as error:
            left_out += 1
            if left_out <= _NAMED_BAD_ROWS:
                logger.warning(f"A row of the stream is left out: {error}.")
            return {**renamed, "prompt": None}

    return stream.map(add_prompt).filter(_has_prompt)


def _has_prompt(row: Row) -> bool:
    return row["prompt"] is not None
