"""What the rows of a data file look like: its columns, which is the prompt, which the answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..data.completions import message_text
from ..data.readers import EMBEDDED_PROBLEMS, SUFFIXES, Split, read_split
from ..data.rows import column_names, is_blank, usual_prompt_column
from ..errors import DataError, did_you_mean
from ..scoring.gold import GOLD_COLUMNS

# Other names under which datasets keep answers, beside those that `rewards check` knows.
_ANSWER_COLUMNS = (
    *GOLD_COLUMNS,
    *("expected", "expected_answer", "correct_answer", "right_answer", "final_answer"),
    *("ground_truth", "reference", "answers", "output", "response", "completion", "result"),
    *("class", "answerkey", "answer_key"),
)
# Words in the names of columns that say which row it is.
_WHICH_ROW = {"id", "ids", "uuid", "guid", "idx", "index", "key", "hash"}
# Words in those that say what kind of row, or where from.
_ABOUT_ROWS = {
    *_WHICH_ROW,
    *("split", "source", "origin"),
    *("dataset", "subset", "category", "type", "topic", "subject", "domain", "difficulty"),
    *("level", "url", "uri", "link", "href", "file", "filename", "path", "date", "time"),
    *("timestamp", "created", "updated", "year", "lang", "language", "locale", "license"),
    *("author", "user", "model", "version", "title", "tag", "tags", "hint", "system"),
    *("meta", "metadata"),
}
_WORD = re.compile(r"[A-Z]*[a-z]+|[A-Z]+")
_CODE = re.compile(r"(?=\S*\d)\S+")
_NUMBER = re.compile(r"[-+]?[$€£]?\d[\d,]*(\.\d+)?\s?%?")
_VALUE = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
# A task is a choice where so many of its prompts hold the right answer.
_MOST = 0.9
# Codes that say which row it is differ in so many of them.
_DIFFERENT = 0.9
# Rows of a large file that say so as well as all of them.
_LOOKED_AT = 1000
# So many different answers of a few words each are the labels of a classification.
_MOST_LABELS = 12
_LABEL_WORDS = 3
# An answer of more words is a text, of which there are many right ones.
_SHORT_WORDS = 8
# Characters of an example in the table of columns.
_SHOWN = 48


@dataclass(frozen=True)
class Column:
    """A column of the data.

    Args:
        kind: `number`, `text`, `messages` or another type's name.
        filled: how many rows have a value; a blank text is none.
        distinct: how many different values there are.
        length: the median length in characters.
        longest: the largest length in characters.
        example: the first value, shortened.
    """

    name: str
    kind: str
    filled: int
    distinct: int
    length: int
    longest: int
    example: str


@dataclass(frozen=True)
class DataFacts:
    """The training rows of a file, a folder or a dataset on the Hub, and their columns.

    Args:
        place: the settings that name the data in a recipe.
        has_test_split: whether rows to evaluate on are there beside the training rows.
    """

    place: dict[str, str]
    split: Split
    columns: dict[str, Column]
    has_test_split: bool

    def values(self, name: str) -> list[Any]:
        """Return the values of a column, without those that are missing or blank."""
        return _filled(self.split, name)

    def checked(self, name: str) -> str:
        """Return the name of a column that was asked for.

        Raises:
            DataError: there is no such column, or nothing in it.
        """
        if name not in self.columns and name in column_names(self.split.rows):
            raise DataError(f"{self.split.source}: the column {name!r} is empty in every row.")
        if name not in self.columns:
            raise DataError(
                f"{self.split.source} has no column {name!r}.{did_you_mean(name, self.columns)} "
                f"The columns are {', '.join(self.columns)}."
            )
        return name


def look_at(data: str) -> DataFacts:
    """Read a data file, a folder, or a dataset on the Hub, and describe its columns.

    Raises:
        DataError, HubUnreachable: it cannot be read.
    """
    path = Path(data)
    is_local = data in EMBEDDED_PROBLEMS or path.exists() or path.suffix in SUFFIXES
    place = {"dataset_path" if is_local else "dataset_name": data}
    path_given, name_given = (data, None) if is_local else (None, data)
    split = read_split(path=path_given, name=name_given)
    # Only an optional split may be missing.
    assert split is not None
    test = None
    if data in EMBEDDED_PROBLEMS or path.is_dir() or not is_local:
        test = read_split(path=path_given, name=name_given, split="test", optional=True)
    columns = {}
    for name in column_names(split.rows):
        values = _filled(split, name)
        if values:
            columns[name] = _column(name, values)
    return DataFacts(place, split, columns, test is not None)


def _filled(split: Split, name: str) -> list[Any]:
    return [row[name] for row in split.rows if not is_blank(row.get(name))]


def _column(name: str, values: Sequence[Any]) -> Column:
    texts = [str(value) for value in values]
    lengths = [len(text) for text in texts]
    example = " ".join(texts[0].split())
    if len(example) > _SHOWN:
        example = f"{example[: _SHOWN - 3]}..."
    return Column(
        name,
        _kind(values),
        len(values),
        len(set(texts)),
        int(median(lengths)),
        max(lengths),
        example,
    )


def _kind(values: Sequence[Any]) -> str:
    first = values[0]
    if isinstance(first, list) and first and isinstance(first[0], dict):
        return "messages"
    if all(_is_number(value) for value in values):
        return "number"
    return "text" if isinstance(first, str) else type(first).__name__


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    is_text = isinstance(value, str) and _NUMBER.fullmatch(value.strip()) is not None
    return is_text or isinstance(value, int | float)


def guess_prompt(facts: DataFacts, gold: str | None = None) -> str:
    """Return the column that looks like the prompt.

    Args:
        gold: the column of the right answers, where it is known.

    Raises:
        DataError: no column holds texts or messages.
    """
    columns = {name: column for name, column in facts.columns.items() if name != gold}
    usual = usual_prompt_column(columns)
    if usual is not None:
        return usual
    readable = []
    for column in columns.values():
        if column.kind in ("text", "messages") and column.name.lower() not in _ANSWER_COLUMNS:
            readable.append(column)
    if not readable:
        raise DataError(
            f"{facts.split.source}: no column looks like a prompt. The columns are "
            f"{', '.join(facts.columns)}. Name one with --prompt."
        )
    # Prompts differ from row to row, and say more than a category or an id does.
    return max(readable, key=lambda column: (column.distinct, column.length)).name


def guess_gold(facts: DataFacts, prompt: str) -> str | None:
    """Return the column that looks like the right answer, or None where none does."""
    others = [name for name in facts.columns if name != prompt]
    for wanted in _ANSWER_COLUMNS:
        for name in others:
            if name.lower() == wanted:
                return name
    # With two columns there is not much to choose from; "category" may be what is asked for.
    if len(others) == 1:
        return None if _numbers_rows(facts, others[0]) else others[0]
    # A guess is easily taken for knowledge, so any other column that may matter forbids it.
    left = [name for name in others if not _is_about_rows(facts, name)]
    return left[0] if len(left) == 1 and left == possible_gold(facts, prompt) else None


def possible_gold(facts: DataFacts, prompt: str) -> list[str]:
    """Return the columns that may hold right answers: short texts that are about no row."""
    possible = []
    for name, column in facts.columns.items():
        if name == prompt or column.kind != "text" or _is_about_rows(facts, name):
            continue
        if kind_of_answers(facts.values(name)) in ("label", "short"):
            possible.append(name)
    return possible


def _is_about_rows(facts: DataFacts, name: str) -> bool:
    """Return whether a column numbers or sorts rows, or says the same of each."""
    column, values = facts.columns[name], facts.values(name)
    if column.distinct == 1 or _ABOUT_ROWS & _words_of(name):
        return True
    if column.kind == "number" or column.distinct < _DIFFERENT * len(values):
        return _numbers_rows(facts, name)
    # Such as A-17. Those that were drawn by chance may meet.
    return all(_CODE.fullmatch(str(value).strip()) for value in values)


def _numbers_rows(facts: DataFacts, name: str) -> bool:
    """Return whether a column says which row it is: by its name, or because it counts."""
    values = [str(value).strip() for value in facts.values(name)]
    # Numbers that differ may be answers, but not those that count.
    counting = [str(place + int(values[0] == "1")) for place in range(len(values))]
    return bool(_WHICH_ROW & _words_of(name)) or (len(values) > 1 and values == counting)


def _words_of(name: str) -> set[str]:
    return set(map(str.lower, _WORD.findall(name)))


def holds_its_answers(facts: DataFacts, prompt: str, gold: str) -> bool:
    """Return whether most prompts hold their right number beside others, from which to choose."""
    held = []
    for row in facts.split.rows[:_LOOKED_AT]:
        if is_blank(row.get(prompt)) or is_blank(row.get(gold)):
            continue
        right = _values_in(str(row[gold]))
        # Of messages, their contents.
        given = _values_in(_text_of(row[prompt]))
        held.append(len(given) > 1 and right <= given)
    return bool(held) and sum(held) >= _MOST * len(held)


def _text_of(prompt: Any) -> str:
    if isinstance(prompt, list):
        return "\n".join(message_text(message) for message in prompt)
    return str(prompt)


def _values_in(text: str) -> set[float]:
    return {float(number.replace(",", "")) for number in _VALUE.findall(text)}


def kind_of_answers(values: Sequence[Any]) -> str:
    """Return what the right answers are.

    Returns:
        `gsm8k` (texts that end with #### and a number), `math` (with a \\boxed answer), `number`,
        `label` (one of a few), `short` (a few words) or `long`.
    """
    texts = [str(value).strip() for value in values]
    if all("####" in text for text in texts):
        return "gsm8k"
    if all("\\boxed" in text for text in texts):
        return "math"
    if all(_is_number(value) for value in values):
        return "number"
    words = max(len(text.split()) for text in texts)
    different = len({text.casefold() for text in texts})
    if 1 < different <= _MOST_LABELS and words <= _LABEL_WORDS:
        return "label"
    return "short" if words <= _SHORT_WORDS else "long"
