"""Public test sets by name: where they lie, and how their rows become questions and gold answers.

A set is read from the Hub, or from a local copy: `svamp`, `svamp=data/svamp`, `data/svamp`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, HubUnreachable
from .readers import PLACE, BadRow, Row, Split, check_filled, read_split, split_file

_LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
# Names of files that say nothing about what is in them.
_SPLIT_NAMES = ("test", "train", "validation", "dev")


@dataclass(frozen=True)
class KnownSet:
    """A public test set.

    Args:
        name: how it is asked for.
        reward: the reward whose full mark is a right answer.
        make: turns a row into one with a prompt and the columns of the reward; it raises KeyError
            for a row that lacks a column.
        hub: the dataset on the Hub, if it is there.
        config: the configuration there.
        category: the column by which results are shown apart.
        instruction: what stands below every prompt, where the run's own task is another.
    """

    name: str
    reward: str
    make: Callable[[Row], Row | None]
    hub: str | None = None
    config: str | None = None
    category: str | None = None
    instruction: str | None = None


def _as_it_is(row: Row) -> Row:
    return row


def _math_problem(row: Row) -> Row:
    return {**row, "question": row["problem"]}


def _svamp_problem(row: Row) -> Row:
    body = str(row["Body"]).strip()
    # Some bodies lack their full stop.
    end = "" if body.endswith((".", "?", "!", ",")) else "."
    question = f"{body}{end} {row['Question']}"
    return {"question": question, "answer": row["Answer"], "type": row.get("Type")}


def _mgsm_problem(row: Row) -> Row:
    # On the Hub `answer` is a worked solution, and missing in the test split.
    answer = row["answer_number"] if row.get("answer_number") is not None else row["answer"]
    return {"question": row["question"], "answer": answer}


def _mbpp_problem(row: Row) -> Row | None:
    """Show the first test, which names the function; None outside of the test split."""
    # MBPP's file holds all splits, and this is how its authors divide it.
    if not 11 <= int(row["task_id"]) <= 510:
        return None
    question = f"{row['text'].strip()}\nThe function has to pass this test:\n{row['test_list'][0]}"
    setup = row.get("test_setup_code") or ""
    return {"question": question, "test_list": row["test_list"], "test_setup_code": setup}


def _countdown_problem(row: Row) -> Row:
    numbers = row["numbers"] if "numbers" in row else row["nums"]
    written = ", ".join(map(str, numbers))
    question = f"Make {row['target']} from {written}."
    return {"question": question, "numbers": numbers, "target": row["target"]}


def _known_sets() -> dict[str, KnownSet]:
    sets = [
        KnownSet("gsm8k", "gsm8k", _as_it_is, "openai/gsm8k", "main"),
        KnownSet("math500", "math", _math_problem, "HuggingFaceH4/MATH-500", category="subject"),
        KnownSet("svamp", "gsm8k", _svamp_problem, "ChilleD/SVAMP", category="type"),
        KnownSet(
            "mbpp",
            "python_tests",
            _mbpp_problem,
            "google-research-datasets/mbpp",
            "full",
            instruction="Answer with one block of Python code, and nothing after it.",
        ),
        KnownSet(
            "countdown",
            "countdown",
            _countdown_problem,
            instruction="Use each number exactly once, with + - * / and parentheses. Write the "
            "expression in <answer> </answer>, for example <answer>(1 + 2) * 3</answer>.",
        ),
    ]
    for language in _LANGUAGES:
        name = f"mgsm_{language}"
        sets.append(KnownSet(name, "gsm8k", _mgsm_problem, "juletxara/mgsm", language))
    return {known.name: known for known in sets}


KNOWN_SETS = _known_sets()


def name_and_path(asked: str) -> tuple[str, Path | None]:
    """Return the name of a set and where it lies, from `NAME`, `NAME=PATH` or `PATH`.

    A path is named by its last part that says something.

    >>> name_and_path("svamp"), name_and_path("data/gsm8k/test.jsonl")
    (('svamp', None), ('gsm8k', PosixPath('data/gsm8k/test.jsonl')))
    """
    name, separator, place = asked.partition("=")
    if separator:
        return name, Path(place)
    if asked in KNOWN_SETS:
        return asked, None
    path = Path(asked)
    stem = path.stem if path.suffix else path.name
    if stem in _SPLIT_NAMES:
        stem = path.resolve().parent.name
    return stem, path


def read_known_set(known: KnownSet, path: Path | None) -> Split:
    """Read a public set from a local copy, or from the Hub.

    Raises:
        DataError: it is not there, or its rows are others than those of the set.
        HubUnreachable: the Hub does not answer.
    """
    raw = _raw_rows(known, path)
    rows: list[Row] = []
    bad = list(raw.bad)
    for row in raw.rows:
        try:
            made = known.make(row)
        except KeyError as error:
            bad.append(BadRow(row[PLACE], f"it has no column {error}"))
            continue
        if made is not None:
            rows.append({**made, PLACE: row[PLACE]})
    read = Split(rows, bad, raw.source)
    check_filled(read)
    return read


def _raw_rows(known: KnownSet, path: Path | None) -> Split:
    if path is None and known.hub is None:
        raise DataError(
            f"{known.name} is not on the Hub. Say where it lies: {known.name}=FOLDER in --data, or "
            "in eval_data of a recipe."
        )
    if path is None:
        try:
            split = read_split(name=known.hub, config=known.config, split="test")
        except HubUnreachable as error:
            reason = f"{error.__cause__ or error}".partition("\n")[0]
            raise HubUnreachable(
                f"{known.name} ({known.hub}) could not be fetched from the Hub ({reason}). Without "
                f"a network, say where a copy lies: {known.name}=PATH in --data, or in eval_data "
                "of a recipe."
            ) from error
    else:
        file = _file_of(known, path)
        split = _read_tsv(file) if file.suffix == ".tsv" else read_split(path=str(file))
    # Only an optional split may be missing.
    assert split is not None
    return split


def _file_of(known: KnownSet, path: Path) -> Path:
    """Return the file of a set at a path, which may be a folder."""
    if not path.is_dir():
        return path
    tsv = path / f"{known.name}.tsv"
    if tsv.is_file():
        return tsv
    file = split_file(path, known.name, optional=True) or split_file(path, "test", optional=False)
    # Only an optional split may be missing.
    assert file is not None
    return file


def _read_tsv(file: Path) -> Split:
    """Read questions and answers of a file without a header, as MGSM has them."""
    rows: list[dict[str, Any]] = []
    bad = []
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}. Give an existing file.") from None
    for number, line in enumerate(lines, 1):
        question, tab, answer = line.rstrip("\r").partition("\t")
        place = f"{file.name}:{number}"
        if tab:
            rows.append({"question": question, "answer": answer, PLACE: place})
        elif line.strip():
            bad.append(BadRow(place, "expected a question and an answer, with a tab between them"))
    return Split(rows, bad, str(file))
