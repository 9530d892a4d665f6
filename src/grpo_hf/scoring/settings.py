"""How a reward is run and what it counts for: settings, their checks, and weights that move."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..errors import RewardSpecError

# Seconds that any call of a reward may take, where nobody says how many.
LEAST_SECONDS = 60.0


@dataclass(frozen=True)
class RewardSettings:
    """How a reward is run and what it counts for.

    All but the last two are the function's own, by `reward_settings`. A recipe can give all but
    `imports`, `check`, `answers` and `gold` beside the reward's options, as in
    `judge(model='...', timeout=60, weight='linear(0, 1, steps=200)')`. None leaves a setting to
    scored_reward.py.

    Args:
        batched: False: each completion is judged by itself, so that calls of one completion may be
            spread over workers. True, as where it is not said: one call gets all completions of a
            rollout; `timeout` is then that of the call.
        in_process: True: the reward is called in the trainer's process, for rewards of microseconds
            and for those that hold a model or a state. The run is protected from its exceptions,
            but from nothing else. False: nothing outside of the reward changes what it returns, so
            that it may be called in another process.
        early: scoring may begin when completions exist, in a thread or a process, while the
            reference is computed; not for a reward that uses the device itself, or waits for other
            processes of the run. Where it is not said, a reward that stays in the trainer's process
            because of what it refers to begins when TRL asks for it.
        timeout: seconds for one completion (with `batched=True`, for the call), instead of
            `reward_timeout`. A reward with an option of this name has it moved by that option: see
            `Reward.time_limit`.
        concurrency: how many completions an `async def` reward with `batched=False` may have under
            way at a time.
        imports: modules that are slow to import; they are imported once, before completions are
            timed.
        check: a function that is called with every option of the reward, by keyword, before a run
            begins; it raises RewardSpecError for an impossible one.
        answers: a function from the texts of completions to their final answers, in which equal
            answers are spelled alike, and None is no answer. Evaluations count votes by it (maj@k).
            It is called with the samples of one problem, and gets columns of that by name.
        gold: the column of right answers, a parameter without a default. An empty or blank text is
            none there: a program that trains or evaluates leaves such rows out and names them, as
            it does where a column that a reward reads is null.
        weight: what the reward is multiplied by in the sum of rewards: a number, or a schedule.
        clip: the lowest and the highest value; a value beyond becomes the nearer of them.
    """

    batched: bool | None = None
    in_process: bool | None = None
    early: bool | None = None
    timeout: float | None = None
    concurrency: int = 16
    imports: tuple[str, ...] = ()
    check: Callable[..., None] | None = None
    answers: Callable[..., list[str | None]] | None = None
    gold: str | None = None
    weight: "float | Schedule | None" = None
    clip: tuple[float, float] | None = None


@dataclass(frozen=True)
class Schedule:
    """A weight that moves from `start` to `end` over `steps` optimizer steps, and then stays.

    >>> Schedule.parse("linear(0, 1, steps=200)").at(50)
    0.25
    """

    start: float
    end: float
    steps: int

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Read `linear(start, end, steps=n)`.

        Raises:
            ValueError: it is something else.
        """
        match = re.fullmatch(
            r"\s*linear\(\s*([^,\s]+)\s*,\s*([^,\s]+)\s*,\s*(?:steps\s*=\s*)?(\d+)\s*\)\s*", text
        )
        if match is None or int(match[3]) < 1:
            raise ValueError(text)
        return cls(_finite(match[1]), _finite(match[2]), int(match[3]))

    def at(self, step: int) -> float:
        """Return the weight after `step` optimizer steps."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


def checked_settings(where: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return settings with their types converted.

    Raises:
        RewardSpecError: a value is impossible; the message begins with `where`.
    """
    checked = {}
    for name, value in given.items():
        convert, expected = SETTINGS[name]
        # These are what the converters below raise for a value of a wrong kind.
        try:
            checked[name] = convert(value)
        except (ValueError, TypeError, KeyError):
            raise RewardSpecError(f"{where}: {name} is {value!r}; expected {expected}.") from None
    return checked


def is_seconds(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number of seconds above 0."""
    # True and False are numbers to Python, and typos for one here.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


# True and False are numbers to Python, and typos for one here.
def _positive(value: Any) -> float:
    if isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError(value)
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(value)
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError(value)
    return float(value)


def _weight(value: Any) -> float | Schedule:
    return Schedule.parse(value) if isinstance(value, str) and "(" in value else _finite(value)


def _limits(value: Any) -> tuple[float, float]:
    low, high = map(_finite, value)
    if not low < high:
        raise ValueError(value)
    return low, high


_YES_OR_NO = ({True: True, False: False}.__getitem__, "true or false")
SETTINGS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "batched": _YES_OR_NO,
    "in_process": _YES_OR_NO,
    "early": _YES_OR_NO,
    "timeout": (_positive, "seconds above 0"),
    "concurrency": (_whole, "a whole number above 0"),
    "weight": (_weight, "a number, or linear(start, end, steps=n)"),
    "clip": (_limits, "two numbers, the lower one first"),
}
