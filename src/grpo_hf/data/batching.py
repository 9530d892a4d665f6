"""Split rows into batches: by count, by tokens, or in random order."""

import random
from collections.abc import Sequence

# How many batches are sorted by length together. Sorting needs more than one batch to bring rows of
# similar length together; sorting all rows would leave nothing of the random order.
_POOL = 16


def shuffled_batches(lengths: Sequence[int], size: int, order: random.Random) -> list[list[int]]:
    """Return batches in random order that hold every example once.

    Examples of similar length share a batch, which leaves little padding.

    Args:
        lengths: tokens of each example.
        size: examples per batch.
        order: the random numbers that decide the order.

    Returns:
        Indices of examples, a list per batch.
    """
    rows = order.sample(range(len(lengths)), len(lengths))
    batches: list[list[int]] = []
    for pool in parts(rows, size * _POOL):
        by_length = sorted(pool, key=lengths.__getitem__)
        batches += parts(by_length, size)
    # The batches of a pool still go from short to long.
    order.shuffle(batches)
    return batches


def affordable(batch: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Split a batch into parts of at most `tokens` tokens each, padding included.

    An example that is longer than `tokens` gets a part of its own.

    Args:
        batch: indices of examples.
        lengths: tokens of each example of the data.
        tokens: limit of a part.

    >>> affordable([0, 1, 2, 3], lengths=[3, 4, 2, 9], tokens=8)
    [[0, 1], [2], [3]]
    """
    part: list[int] = []
    affordable_parts = [part]
    longest = 0
    for row in batch:
        longest = max(longest, lengths[row])
        # Every row of a part is padded to the longest one.
        if part and longest * (len(part) + 1) > tokens:
            part = []
            affordable_parts.append(part)
            longest = lengths[row]
        part.append(row)
    return affordable_parts


def parts(rows: Sequence[int], size: int) -> list[list[int]]:
    """Split rows into lists of `size` rows, in their order; the last list may be shorter."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
