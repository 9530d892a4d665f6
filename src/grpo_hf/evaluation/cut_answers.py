"""Answers that were cut off at the limit of their tokens, and how much of a result they explain."""

from collections.abc import Iterable
from dataclasses import dataclass

from .counts import Counts

# The sign of gaming that a comparison says by itself, as it counts these answers.
ANSWERS_THAT_END = "answers that end"
# A difference is in doubt where at least this share of the changed answers was cut off.
MOSTLY_CUT = 0.5
# So much more room is proposed: an answer that was cut off says nothing of how long it would be.
_MORE_ROOM = 4


@dataclass(frozen=True)
class Marked:
    """Both sides' answers to a prompt: whether each is right, and whether it was cut off."""

    base_right: bool
    adapter_right: bool
    base_cut: bool
    adapter_cut: bool


@dataclass(frozen=True)
class CutAnswers(Counts):
    """How many of both sides' answers to the same prompts were cut off before their end.

    Args:
        limit: tokens that an answer may have.
        total: prompts.
        base, adapter: answers of each side that were cut off.
        gained: prompts whose answer became right.
        gained_cut: those of them whose base answer was cut off.
        lost: prompts whose answer became wrong.
        lost_cut: those of them whose adapter's answer was cut off.
    """

    limit: int
    total: int
    base: int
    adapter: int
    gained: int
    gained_cut: int
    lost: int
    lost_cut: int

    @classmethod
    def count(cls, answers: Iterable[Marked], limit: int) -> "CutAnswers":
        """Count the answers to each prompt.

        >>> CutAnswers.count([Marked(False, True, True, False)], 34).line
        'cut off at 34 tokens: base 1 of 1, adapter 0 of 1'
        """
        known = list(answers)
        gained = [each for each in known if each.adapter_right and not each.base_right]
        lost = [each for each in known if each.base_right and not each.adapter_right]
        return cls(
            limit=limit,
            total=len(known),
            base=sum(each.base_cut for each in known),
            adapter=sum(each.adapter_cut for each in known),
            gained=len(gained),
            gained_cut=sum(each.base_cut for each in gained),
            lost=len(lost),
            lost_cut=sum(each.adapter_cut for each in lost),
        )

    @property
    def line(self) -> str:
        """How many were cut off, in words; nothing where none was."""
        if not self.base and not self.adapter:
            return ""
        return (
            f"cut off at {self.limit} tokens: base {self.base} of {self.total}, adapter "
            f"{self.adapter} of {self.total}"
        )

    @property
    def explains_gain(self) -> bool:
        """Whether answers became right that before were mostly cut off."""
        return self.gained > 0 and self.gained_cut >= MOSTLY_CUT * self.gained

    @property
    def explains_loss(self) -> bool:
        """Whether answers became wrong that now are mostly cut off."""
        return self.lost > 0 and self.lost_cut >= MOSTLY_CUT * self.lost

    def doubt(self, low: float, high: float) -> str:
        """Return why a difference may be one of length alone; nothing where it is not in doubt.

        Args:
            low, high: the interval of the difference, adapter − base.
        """
        if low > 0 and self.explains_gain:
            return (
                f"this gain may be only that answers end: of the {self.gained} answers that became "
                f"right, {self.gained_cut} of the base's were cut off at {self.limit} tokens"
            )
        if high < 0 and self.explains_loss:
            return (
                f"this loss may be only that answers do not end: of the {self.lost} answers that "
                f"became wrong, {self.lost_cut} were cut off at {self.limit} tokens"
            )
        return ""

    def cure(self, run: str = "RUN") -> str:
        """Return what to do about a difference in doubt."""
        room = _MORE_ROOM * self.limit
        return (
            f"Give both more room: grpo-hf eval {run} --max_completion_length {room}. What is cut "
            "off there, too, does not end by itself: then its text says whether the base knew."
        )
