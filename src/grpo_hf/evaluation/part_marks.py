"""What greedy answers earn beside full marks, which a share of right answers does not tell."""

from collections.abc import Iterable
from dataclasses import dataclass

from .counts import Counts

# Rewards of right and wrong pay 1 for a right answer; anything below is partial credit.
_FULL_MARK = 1.0
# A gain is in doubt from this share of its answers on that had earned a part before.
_MOSTLY = 0.5


def is_full_mark(value: float | None) -> bool:
    """Return whether a reward is that of a right answer; None is one that it could not judge."""
    return value is not None and value >= _FULL_MARK


@dataclass(frozen=True)
class PartMarks(Counts):
    """What both sides' answers to the same prompts earned.

    Args:
        base, adapter: mean reward of each side's answers.
        gained: prompts whose answer became right.
        gained_part: those of them whose base answer had earned a part of the mark.
    """

    base: float
    adapter: float
    gained: int
    gained_part: int

    @classmethod
    def count(cls, values: Iterable[tuple[float | None, float | None]]) -> "PartMarks | None":
        """Count what base and adapter earned on each prompt.

        Args:
            values: of base and adapter, without prompts on which the reward failed. None is an
                answer that it could not judge: one that is not right, and in no mean.

        Returns:
            The counts, or None where every answer earned all or nothing.

        >>> PartMarks.count([(0.25, 1.0), (0.0, 1.0)]).line
        'mean reward: base 0.125, adapter 1.000'
        >>> PartMarks.count([(0.0, 1.0)]) is None
        True
        """
        pairs = list(values)
        known = [(base, new) for base, new in pairs if base is not None and new is not None]
        if not any(0 < value < _FULL_MARK for pair in known for value in pair):
            return None
        gained = []
        for base, new in pairs:
            if is_full_mark(new) and not is_full_mark(base):
                gained.append(base or 0.0)
        return cls(
            base=sum(base for base, _ in known) / len(known),
            adapter=sum(new for _, new in known) / len(known),
            gained=len(gained),
            gained_part=sum(base > 0 for base in gained),
        )

    @property
    def line(self) -> str:
        """What both sides earn, in words."""
        return f"mean reward: base {self.base:.3f}, adapter {self.adapter:.3f}"

    def doubt(self, low: float) -> str:
        """Return what a gain may be; nothing where most of its answers had earned nothing before.

        Args:
            low: of the interval of the difference, adapter − base; a gain is above 0.
        """
        if low <= 0 or not self.gained or self.gained_part < _MOSTLY * self.gained:
            return ""
        return (
            f"of the {self.gained} answers that became right, {self.gained_part} of the base's had "
            "earned a part of the mark, so read both: it may be their form that changed"
        )

    def said(self, low: float) -> str:
        """Return the line, with what a gain may be.

        Args:
            low: see `doubt`.
        """
        doubt = self.doubt(low)
        return f"{self.line}; {doubt}" if doubt else self.line
