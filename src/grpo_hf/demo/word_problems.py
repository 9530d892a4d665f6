"""Generated word problems in GSM8K's form: a question, its working, and a last line `#### n`.

They are the data of the embedded demo, which needs no download. Every problem asks for the sum of two numbers up to 99
in one of a few stories; the working adds tens, ones, and then both. The three splits share no pair of numbers, so a
held-out answer cannot have been memorised: a pair belongs to the split that a digest of it picks, on every machine and
in every run alike.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import Literal

Split = Literal["cold_start", "train", "test"]

_SPLITS: tuple[Split, ...] = (
    "test",
    "cold_start",
    "cold_start",
    "cold_start",
    "train",
    "train",
    "train",
    "train",
)
_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jonas")
_THINGS = ("apples", "books", "coins", "shells", "stamps", "marbles", "pencils", "cards")
_STORIES = (
    "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
    "{name} has {a} {things} and gets {b} more from {friend}. How many {things} does {name} have now?",
    "{name} has {a} {things} and {friend} has {b} {things}. How many {things} do they have together?",
    "{name} found {a} {things} on Monday and {b} {things} on Tuesday. How many {things} did {name} find?",
)


def split_of(a: int, b: int) -> Split:
    """The split that the pair of numbers (a, b) belongs to."""
    return _SPLITS[hashlib.sha256(f"{a}+{b}".encode()).digest()[0] % len(_SPLITS)]


def word_problems(split: Split, *, seed: int = 0, largest: int = 99) -> Iterator[dict[str, str]]:
    """Endless problems of one split, as `{"question": ..., "answer": ...}` rows like GSM8K's.

    >>> row = next(word_problems("train"))
    >>> sorted(row)
    ['answer', 'question']
    >>> row["answer"].splitlines()[-1].startswith("#### ")
    True
    """
    rng = random.Random(f"{split}/{seed}")
    while True:
        a, b = rng.randint(1, largest), rng.randint(1, largest)
        if split_of(a, b) != split:
            continue
        name, friend = rng.sample(_NAMES, 2)
        question = rng.choice(_STORIES).format(
            name=name, friend=friend, a=a, b=b, things=rng.choice(_THINGS)
        )
        yield {"question": question, "answer": f"{_working(a, b)}\n#### {a + b}"}


def _working(a: int, b: int) -> str:
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return f"{a // 10 * 10} + {b // 10 * 10} = {tens}\n{a % 10} + {b % 10} = {ones}\n{tens} + {ones} = {a + b}"
