"""What a trial of a reward has found, and what of it the reward's author should look at."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .gold import GOLD_COLUMNS
from .outcomes import Failure, Outcome
from .reward import Reward, definition_of

# What a completion is called that is the right answer.
GOLD = "gold answer"
# The right answer of another row, and the row's own beside it.
OTHER, BOTH = "another's answer", "own and another's"
AT_ONCE = "all gold answers in one call"
# The share of the gold answer's reward from which on such answers are paid for. Another row's may
# happen to be right, and both together earn a part of it where a reward pays for shared words.
_LEAST_SHARES = {OTHER: 0.5, BOTH: 0.9}
_CURE = (
    f" ({BOTH}: a completion that names the right answer and another row's. Judge the end of a "
    "completion alone, such as its last words or what follows ####; docs/gaming.md has more.)"
)
# What rounding may leave of a reward of 0, or put between two equal ones.
ROUNDING = 1e-9
# Characters of an error's message, which may quote a completion of any length.
_LONGEST = 120
_FRAME = re.compile(r'^ *File "(.+)", line (\d+)', re.MULTILINE)


@dataclass(frozen=True)
class Unpaid:
    """Right answers that a reward pays nothing for, and the first of them.

    Args:
        place: the row of the first one.
        column, value: where its answer stands, and what stands there.
        text: the completion that earned nothing.
        count: how many there are, of so many `rows`.
    """

    place: str
    column: str
    value: Any
    text: str
    count: int
    rows: int

    @property
    def is_all(self) -> bool:
        """Whether no right answer is paid for."""
        return self.count == self.rows

    def note(self, name: str) -> str:
        """Return what the author of the reward of that name should look at."""
        many = "right answers" if self.is_all else f"{self.count} of {self.rows} right answers"
        kind = "text" if isinstance(self.value, str) else type(self.value).__name__
        advice = "Does the reward expect another form of it?"
        if isinstance(self.value, int | float):
            advice = "Does the reward compare it with a text, or with its spelling?"
        return (
            f"{name} pays nothing for {many}: {self.column} of {self.place} is "
            f"{_short(repr(self.value))} (a {kind}), and the completion {_short(repr(self.text))} "
            f"earns 0. {advice}"
        )


@dataclass(frozen=True)
class Finding:
    """The results of `examine` for one reward.

    Args:
        reward: the reward.
        pays: the mean reward by kind of answer, `None` where it could not be judged. The kinds are
            the gold answer, an empty text, one word 10,000 times, a copy of the prompt, the gold
            answer of another row, and both gold answers, whichever comes first.
        gold_column: the column that holds the gold answer; empty where none does.
        lowest, highest: the lowest and the highest of all rewards.
        milliseconds: the median time for a completion.
        deterministic: whether the same answers had the same rewards twice.
        stays: why a run would call it in the trainer's process; empty if it would not, or if its
            author says where.
        alone: whether a completion has the same reward alone as among others.
        exploited: the kinds that are rewarded and should not be: by more than 0, or by more than
            the gold answer. The answers of another row count only from a share of that on.
        failures: how the reward failed, each with the kinds on which it did.
        unpaid: the right answers that earn nothing, if there are any.
    """

    reward: Reward
    pays: dict[str, float | None]
    gold_column: str
    lowest: float | None
    highest: float | None
    milliseconds: float
    deterministic: bool
    stays: str
    alone: bool
    exploited: tuple[str, ...]
    failures: tuple[str, ...]
    unpaid: Unpaid | None = None

    def notes(self) -> list[str]:
        """Return what the user of the reward should look at."""
        name = self.reward.name
        notes = []
        if not self.gold_column:
            notes.append(
                f"{name} reads no column that may hold right answers, and none of the data is "
                "called so: what right answers earn was not tried."
            )
        elif self.gold_column not in GOLD_COLUMNS:
            notes.append(f"{name} reads {self.gold_column}, which is taken for the gold answer.")
        for failure in self.failures:
            notes.append(f"{name} fails on {failure}")
        if self.unpaid is not None:
            notes.append(self.unpaid.note(name))
        right = self.pays[GOLD]
        if right is not None and right > 1 + ROUNDING:
            notes.append(
                f"{name} pays {right:.2f} for right answers. Evaluations call right what earns 1.0 "
                "or more, so an answer that earns 1.0 for less than that is called right, too. Pay "
                "1.0 for a right answer and less for any other; reward_weights make it worth more."
            )
        if self.exploited:
            notes.append(
                f"{name} pays for: {', '.join(self.exploited)}. Unless that is what it is for, a "
                f"model will find out.{_CURE if BOTH in self.exploited else ''}"
            )
        if not self.deterministic:
            notes.append(
                f"{name} gave the same answers different rewards the second time: it counts or is "
                "random."
            )
        if not self.alone:
            notes.append(
                f"{name} gives a completion another reward alone than among others: it compares "
                "them, so it must not be called with batched=False."
            )
        if self.stays:
            notes.append(
                f"{name} would be called in the trainer's process: {self.stays}. "
                "@reward_settings(in_process=False) says that nothing outside of it changes what "
                "it returns, and has it isolated."
            )
        if self.lowest is None and not self.failures:
            notes.append(f"{name} could not judge any of these rows.")
        return notes


def exploited(pays: Mapping[str, float | None]) -> tuple[str, ...]:
    """Return the kinds of answers that are paid for and should not be."""
    right = pays[GOLD]
    kinds = []
    for kind, mean in pays.items():
        if kind == GOLD or mean is None:
            continue
        is_paid = mean > ROUNDING or (right is not None and mean > right + ROUNDING)
        # Some answers happen to be right, so another row's may be paid for now and then.
        if kind in _LEAST_SHARES and right is not None:
            is_paid = is_paid and mean >= _LEAST_SHARES[kind] * right - ROUNDING
        if is_paid:
            kinds.append(kind)
    return tuple(kinds)


def failures_among(outcomes: Sequence[Outcome]) -> list[Failure]:
    """Return the failures among outcomes."""
    failures = []
    for outcome in outcomes:
        if outcome.failure is not None:
            failures.append(outcome.failure)
    return failures


def failed_kinds(reward: Reward, outcomes: Mapping[str, Sequence[Outcome]]) -> tuple[str, ...]:
    """Return how a reward failed, one line each, with the kinds of answers on which it did."""
    kinds: dict[str, list[str]] = {}
    lines: dict[str, str] = {}
    for kind, of_kind in outcomes.items():
        # One of each kind is enough to look into.
        for failure in failures_among(of_kind)[:1]:
            line = in_a_line(reward, failure)
            # The same place with another text in its message is the same mistake.
            mistake = line.partition(": ")[0] + failure.reason
            lines.setdefault(mistake, line)
            kinds.setdefault(mistake, []).append(kind)
    failures = []
    for mistake, line in lines.items():
        among = [kind for kind in kinds[mistake] if kind != AT_ONCE or GOLD not in kinds[mistake]]
        is_all = len(kinds[mistake]) == len(outcomes)
        failures.append(f"{'every kind of answer' if is_all else ', '.join(among)}: {line}")
    return tuple(failures)


def in_a_line(reward: Reward, failure: Failure) -> str:
    """Return a failure in a line: where in the reward's file, and what it was."""
    text = _short(failure.summary)
    if failure.reason != "exception":
        return f"{failure.reason}: {text}"
    code = getattr(definition_of(reward.function), "__code__", None)
    frames = _FRAME.findall(failure.detail)
    own = [frame for frame in frames if code is not None and frame[0] == code.co_filename]
    # What fails deep in a library was called from somewhere in the file.
    for file, line in (own or frames)[-1:]:
        return f"{Path(file).name}:{line}: {text}"
    return text


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
