"""What greedy answers earn beside full marks, which a share of right answers does not tell."""

from collections.abc import Iterable
from dataclasses import dataclass

from .counts import Counts

# Rewards of right and wrong pay 1 for a right answer; anything below is partial credit.
FULL_MARK = 1.0
# A gain is in doubt from this share of its answers on that had earned a part before.
_MOSTLY = 0.5


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
            values: of base and adapter; a prompt without one of them says nothing.

        Returns:
            The counts, or None where every answer earned all or nothing.

        >>> PartMarks.count([(0.25, 1.0), (0.0, 1.0)]).line
        'mean reward: base 0.125, adapter 1.000'
        >>> PartMarks.count([(0.0, 1.0)]) is None
        True
        """
        known = [(base, new) for base, new in values if base is not None and new is not None]
        if not any(0 < value < FULL_MARK for pair in known for value in pair):
            return None
        gained = [base for base, new in known if base < FULL_MARK <= new]
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

    @property
    def doubt(self) -> str:
        """What a gain may be; nothing where most of its answers had earned nothing before."""
        if not self.gained or self.gained_part < _MOSTLY * self.gained:
            return ""
        return (
            f"of the {self.gained} answers that became right, {self.gained_part} of the base's had "
            "earned a part of the mark, so read both: it may be their form that changed"
        )

    @property
    def said(self) -> str:
        """The line, with what a gain may be."""
        return f"{self.line}; {self.doubt}" if self.doubt else self.line
