"""Take away reward gradually as a completion nears its length limit.

Source: DAPO (arXiv 2503.14476), equation 13.
"""

from typing import Any

from grpo_hf.data.completions import Completion
from grpo_hf.rewards._options import check_whole, refuse
from grpo_hf.scoring.reward import reward_settings


def _check_options(max_length: int, cache: int) -> None:
    check_whole("overlong", "max_length", max_length)
    check_whole("overlong", "cache", cache)
    if cache > max_length:
        refuse("overlong", "cache", cache, f"at most max_length, which is {max_length}")


@reward_settings(in_process=True, check=_check_options)
def overlong(
    completions: list[Completion],
    completion_ids: list[list[int]],
    *,
    max_length: int = 512,
    cache: int = 128,
    **columns: Any,
) -> list[float | None]:
    """Return DAPO's soft overlong punishment: min(0, max(-1, (max_length - cache - |o|) / cache)).

    It is 0 up to max_length - cache tokens, falls linearly to -1 at max_length tokens, and is -1
    beyond.

    Args:
        completions: not read; part of every reward's signature.
        completion_ids: the tokens of each completion, without padding; |o| is their number.
        max_length: tokens at which the punishment is complete; the trainer's
            `max_completion_length` or less.
        cache: tokens over which the punishment grows.

    Raises:
        RewardSpecError: an option is no whole number above 0, or `cache` is above `max_length`.

    >>> completion_ids = [[0] * 10, [0] * 15, [0] * 99]
    >>> overlong(["short", "long", "endless"], completion_ids, max_length=20, cache=10)
    [0.0, -0.5, -1.0]
    """
    _check_options(max_length, cache)
    rewards: list[float | None] = []
    for ids in completion_ids:
        # Equation 13 has three cases: min() makes the first, max() the last.
        punishment = max(-1.0, (max_length - cache - len(ids)) / cache)
        rewards.append(min(0.0, punishment))
    return rewards
