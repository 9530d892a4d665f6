"""The right answer that a set asks for most often, which needs no reading of its problems."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

# Below this share of a set, saying one answer to everything gains next to nothing.
_COMMON = 0.2
_SHOWN_CHARACTERS = 40


def said_of_common_gold(golds: Sequence[Any], low: float) -> str:
    """Return what saying the most frequent right answer to everything would get.

    Args:
        golds: what is right for each problem; None where nobody knows.
        low: of the interval of the adapter's accuracy.

    Returns:
        A sentence, or nothing where no answer is frequent or the golds are no plain values.

    >>> golds = ["yes", "no", "yes", "no", "yes"]
    >>> said_of_common_gold(golds, 0.7)
    'Always saying "yes" would be right for 60.0%.'
    >>> said_of_common_gold(golds, 0.5)
    'Always saying "yes" would be right for 60.0%, and nothing shows that the adapter beats that.'
    >>> said_of_common_gold(["1", "2", "3", "4", "5", "6"], 0.5)
    ''
    """
    plain = [str(gold).strip() for gold in golds if isinstance(gold, str | int | float)]
    if not golds or len(plain) < len(golds):
        return ""
    answer, count = Counter(plain).most_common(1)[0]
    share = count / len(golds)
    if share < _COMMON or len(answer) > _SHOWN_CHARACTERS or "\n" in answer:
        return ""
    no_better = ", and nothing shows that the adapter beats that" if low <= share else ""
    return f'Always saying "{answer}" would be right for {share:.1%}{no_better}.'
