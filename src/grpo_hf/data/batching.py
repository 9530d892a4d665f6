"""Rows into batches: by number, by tokens, in random order."""

import random
from collections.abc import Sequence

_POOL = 16  # batches; so many are sorted by length at a time, which leaves little padding and keeps the order random


def shuffled_batches(lengths: Sequence[int], size: int, order: random.Random) -> list[list[int]]:
    """Every example once, those of similar length together, batches in random order."""
    rows = order.sample(range(len(lengths)), len(lengths))
    pools = [sorted(pool, key=lengths.__getitem__) for pool in parts(rows, size * _POOL)]
    batches = [batch for pool in pools for batch in parts(pool, size)]
    order.shuffle(batches)
    return batches


def affordable(batch: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """A batch in parts of at most so many tokens with their padding; an example that is longer goes alone.

    >>> affordable([0, 1, 2, 3], lengths=[3, 4, 2, 9], tokens=8)
    [[0, 1], [2], [3]]
    """
    found: list[list[int]] = [[]]
    for row in batch:
        widest = max(lengths[i] for i in [*found[-1], row])
        if found[-1] and widest * (len(found[-1]) + 1) > tokens:
            found.append([])
        found[-1].append(row)
    return found


def parts(rows: Sequence[int], size: int) -> list[list[int]]:
    """As many rows at a time, in their order."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
