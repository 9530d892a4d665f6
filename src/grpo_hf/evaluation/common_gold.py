"""The right answer that a set asks for most often, which needs no reading of its problems."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.completions import completion_text

# Below this share of a set, saying one answer to everything gains next to nothing.
_COMMON = 0.2
# So often at least: of ten problems some gold is "common" by chance.
_FEWEST = 5
_SHOWN_CHARACTERS = 40


def said_of_common_gold(rows: Sequence[Mapping[str, Any]], answer: str, low: float) -> str:
    """Return what saying the most frequent right answer to everything would get.

    What a reward reads may be no answer: a limit, or words that are not to be said. So the answers
    that were right have to say it.

    Args:
        rows: of an evaluation, with `gold` and what base and adapter answered.
        answer: what the rows call a side's greedy answer: `answer`, or `greedy` in those of a set.
        low: of the interval of the adapter's accuracy.

    Returns:
        A sentence, or nothing where no answer is frequent, or is known to be one.

    >>> rows = [{"gold": "yes", "adapter": {"answer": "Yes.", "right": True}}] * 30
    >>> rows += [{"gold": "no", "adapter": {"answer": "Yes.", "right": False}}] * 20
    >>> said_of_common_gold(rows, "answer", 0.7)
    'Always saying "yes" would be right for 60.0%.'
    >>> said_of_common_gold(rows, "answer", 0.5)
    'Always saying "yes" would be right for 60.0%, and nothing shows that the adapter beats that.'
    """
    golds = [_plain(row.get("gold")) for row in rows]
    counts = Counter(golds)
    common, count = counts.most_common(1)[0] if counts else ("", 0)
    share = count / max(1, len(golds))
    if not common or share < _COMMON or count < _FEWEST or len(counts) == 1:
        return ""
    right = []
    for gold, row in zip(golds, rows, strict=True):
        right += _right_texts(row, answer) if gold == common else []
    if not right or not all(common in text.casefold() for text in right):
        return ""
    no_better = ", and nothing shows that the adapter beats that" if low <= share else ""
    return f'Always saying "{common}" would be right for {share:.1%}{no_better}.'


def _right_texts(row: Mapping[str, Any], answer: str) -> list[str]:
    """Return the right answers to a problem, of both sides."""
    mark = "right" if answer == "answer" else f"{answer}_right"
    sides = [row.get(side) or {} for side in ("base", "adapter")]
    return [completion_text(side[answer]) for side in sides if side.get(mark) and answer in side]


def _plain(gold: Any) -> str:
    """Return a gold answer in small letters; nothing where it is none that is said in a line."""
    text = str(gold).strip().casefold() if isinstance(gold, str | int | float) else ""
    return text if len(text) <= _SHOWN_CHARACTERS and "\n" not in text else ""
