"""Generated word problems in GSM8K's form: a question, its working, and a last line `#### n`.

They are the data of the embedded demo, which needs no download. Every problem asks for the sum of
two numbers up to 99 in one of a few stories; the working adds the tens, then the ones, then both.
The three splits share no pair of numbers, so a model cannot have memorised a held-out answer. A
digest of the pair decides its split, on every machine and in every run alike.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import Literal

Split = Literal["cold_start", "train", "test"]

# One entry per eighth of the pairs: 1/8 for the test, 3/8 for the cold start, 4/8 for training.
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
    "{name} has {a} {things} and gets {b} more from {friend}. "
    "How many {things} does {name} have now?",
    "{name} has {a} {things} and {friend} has {b} {things}. "
    "How many {things} do they have together?",
    "{name} found {a} {things} on Monday and {b} {things} on Tuesday. "
    "How many {things} did {name} find?",
)


def split_of(*numbers: int) -> Split:
    """Return the split that a problem with these numbers, in this order, belongs to."""
    # Not hash(): for text its values differ from process to process.
    digest = hashlib.sha256("+".join(map(str, numbers)).encode()).digest()
    return _SPLITS[digest[0] % len(_SPLITS)]


def word_problems(split: Split, *, seed: int = 0, largest: int = 99) -> Iterator[dict[str, str]]:
    """Yield endless problems of one split, as rows with `question` and `answer` like GSM8K's.

    Args:
        split: the problems' split.
        seed: of the problems; each split has its own sequence.
        largest: the largest number in a question.

    >>> row = next(word_problems("train"))
    >>> sorted(row)
    ['answer', 'question']
    >>> row["answer"].splitlines()[-1].startswith("#### ")
    True
    """
    # The demo's figures depend on every draw below and on the order of the draws.
    rng = random.Random(f"{split}/{seed}")
    while True:
        a = rng.randint(1, largest)
        b = rng.randint(1, largest)
        if split_of(a, b) != split:
            continue
        name, friend = rng.sample(_NAMES, 2)
        story = rng.choice(_STORIES)
        things = rng.choice(_THINGS)
        question = story.format(name=name, friend=friend, a=a, b=b, things=things)
        yield {"question": question, "answer": f"{_working(a, b)}\n#### {a + b}"}


def _working(a: int, b: int) -> str:
    """Return the three lines of the working, as `40 + 20 = 60`, `2 + 5 = 7` and `60 + 7 = 67`."""
    a_tens = a // 10 * 10
    b_tens = b // 10 * 10
    tens = a_tens + b_tens
    ones = a % 10 + b % 10
    return f"{a_tens} + {b_tens} = {tens}\n{a % 10} + {b % 10} = {ones}\n{tens} + {ones} = {a + b}"
