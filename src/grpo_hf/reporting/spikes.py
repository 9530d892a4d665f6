"""Spikes of the KL, named by their tokens: what `kl_tokens.jsonl` holds, and what is a spike.

Nothing heavy is imported. `kl_tokens` writes the file while a run trains.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from .. import run_files

KL_FILE = "kl_tokens.jsonl"

# Lines before a line can be far above them.
_FEWEST = 3
# Lines that a line is compared with: those just before it, since a KL that climbs is no spike.
_RECENT = 10
# A mean this many times the median of the recent lines is a spike, and so is a single token this
# many times that of their largest ones, although the mean of many tokens hides it ...
_TIMES = 8.0
# ... which is this many times the highest of them, too: the last steps of a steep climb are near
# it. Spikes among them do not count, or one would hide the next ...
_TIMES_HIGHEST = 2.0
# ... and which is as large as this. In the first steps the KL grows from 0, and any mean is many
# times it.
_LEAST_MEAN = 0.5
# Such a token the reference finds more than a hundred times as likely as the policy.
_LEAST_MAX = 100.0
# From this share of all KL on, one token is said to be where it comes from.
_ALONE = 0.5


@dataclass(frozen=True)
class Token:
    """A token with a large KL.

    Args:
        text: of the token.
        before, after: the tokens around it, of its completion.
        kl: its KL term, in nats.
        policy, reference: its log-probabilities.
        step: the optimizer step that trained on it.
        place: its place among the tokens of the completion.
        prompt, completion: their texts, cut if they are long; kept of a spike alone.
    """

    text: str
    before: str
    after: str
    kl: float
    policy: float
    reference: float
    step: int
    place: int
    prompt: str = ""
    completion: str = ""


@dataclass(frozen=True)
class Line:
    """The KL of the steps since the line before: one line of `kl_tokens.jsonl`.

    Args:
        step: the logged step.
        mean, median, max: of the KL of a token; the first two are means of steps, as they are
            logged.
        tokens: how many tokens there were.
        total: the sum of their KL.
        largest: the tokens with the largest KL, at most three.
    """

    step: int
    mean: float
    median: float
    max: float
    tokens: int
    total: float
    largest: list[Token]


@dataclass(frozen=True)
class Spike:
    """A logged step whose KL is far above that of the steps before it.

    Args:
        step: the logged step.
        text: a sentence that names the token.
        mean, median, max: of the KL of a token, as in `Line`.
        tokens: the tokens with the largest KL, the largest first.
    """

    step: int
    text: str
    mean: float
    median: float
    max: float
    tokens: list[Token]


class UsualKL:
    """The KL of the last lines, by which a spike is known."""

    def __init__(self) -> None:
        # Each with whether it is a spike.
        self._recent: deque[tuple[Line, bool]] = deque(maxlen=_RECENT)

    def add(self, line: Line) -> None:
        """Count a line."""
        self._recent.append((line, self.far_exceeded_by(line)))

    @property
    def lines(self) -> int:
        """How many there are."""
        return len(self._recent)

    @property
    def mean(self) -> float:
        """The median of their means."""
        return median(line.mean for line, _ in self._recent)

    def far_exceeded_by(self, line: Line) -> bool:
        """Return whether the mean of a line, or its largest token, stands out of the last lines."""
        if self.lines < _FEWEST or not line.largest:
            return False
        by_mean = line.mean >= max(_LEAST_MEAN, self._least(lambda each: each.mean))
        by_max = line.max >= max(_LEAST_MAX, self._least(lambda each: each.max))
        return by_mean or by_max

    def _least(self, number: Callable[[Line], float]) -> float:
        """Return from where on such a number of a line stands out of those of the last lines."""
        numbers = [number(line) for line, _ in self._recent]
        calm = [number(line) for line, is_spike in self._recent if not is_spike]
        return max(_TIMES * median(numbers), _TIMES_HIGHEST * max(calm, default=0.0))


def spikes(run: Path) -> list[Spike]:
    """Return the spikes of a run's KL, in the order of its steps; none where it kept no tokens."""
    found = []
    usual = UsualKL()
    for line in read_lines(run):
        text = spike_text(line, usual)
        if text is not None:
            found.append(Spike(line.step, text, line.mean, line.median, line.max, line.largest))
        usual.add(line)
    return found


def read_lines(run: Path) -> list[Line]:
    """Return the lines of a run, oldest first, without those of steps that were made anew."""
    file = run / KL_FILE
    if not file.is_file():
        return []
    lines = []
    for row in run_files.read_lines(file):
        line = _line_of(row)
        if line is not None:
            lines.append(line)
    return run_files.in_order(lines, step_of=lambda line: line.step)


def _line_of(row: dict[str, Any]) -> Line | None:
    """Return the line of a row of the file; None for a row of another kind."""
    try:
        largest = [Token(**token) for token in row["largest"]]
        own = {field.name: row[field.name] for field in fields(Line)}
    except (KeyError, TypeError):
        return None
    return Line(**own | {"largest": largest})


def spike_text(line: Line, usual: UsualKL) -> str | None:
    """Return what is said of a line whose KL is far above the lines before it, or None.

    Args:
        line: the line.
        usual: the KL of the lines before it.
    """
    return _sentence(line, usual) if usual.far_exceeded_by(line) else None


def _sentence(line: Line, usual: UsualKL) -> str:
    top = line.largest[0]
    share = top.kl / line.total if line.total else 1.0
    where = "comes from one token: " if share >= _ALONE else f"has {share:.0%} of it in one token: "
    return (
        f"KL {line.mean:.3g} at step {line.step} {where}{_quoted(top.text)} after "
        f"{_quoted(top.before)} (reference {math.exp(top.reference):.2g}, policy "
        f"{math.exp(top.policy):.2g}; its KL is {top.kl:.3g}, in step {top.step}). In the "
        f"{usual.lines} logged steps before, KL was {usual.mean:.2g}; the median of the "
        f"{line.tokens:,} tokens is {line.median:.2g}."
    )


def _quoted(text: str) -> str:
    """Return a text between quotes, on one line."""
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'
