"""Generated sums of seven numbers, with a running total on each line and a last line `#### n`.

They are for experiments on steps: a wrong total spoils all that follows, and every line before it
is right. The form and the splits are those of the word problems.
"""

import random
from collections.abc import Iterator

from .word_problems import Split, split_of

NUMBERS = 7


def running_sums(split: Split, *, seed: int = 0, largest: int = 9) -> Iterator[dict[str, str]]:
    """Yield endless problems of one split, as rows with `question` and `answer` like GSM8K's.

    Args:
        split: the problems' split; no two of them share a list of numbers.
        seed: of the problems; each split has its own sequence.
        largest: the largest number in a question.

    >>> row = next(running_sums("train"))
    >>> len(row["answer"].splitlines())
    7
    """
    rng = random.Random(f"{split}/{seed}")
    while True:
        numbers = [rng.randint(1, largest) for _ in range(NUMBERS)]
        if split_of(*numbers) == split:
            question = f"What is {'+'.join(map(str, numbers))}?"
            yield {"question": question, "answer": _working(numbers)}


def _working(numbers: list[int]) -> str:
    """Return the lines of the working, such as `4+7=11` and `11+2=13`, and the last line."""
    lines = []
    total = numbers[0]
    for number in numbers[1:]:
        lines.append(f"{total}+{number}={total + number}")
        total += number
    return "\n".join([*lines, f"#### {total}"])
