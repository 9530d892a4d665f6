"""Take away reward gradually as a completion nears its length limit.

Source: DAPO (arXiv 2503.14476), equation 13.
"""

from typing import Any

from grpo_hf.data.completions import Completion
from grpo_hf.errors import RewardSpecError
from grpo_hf.scoring.reward import reward_settings


@reward_settings(in_process=True)
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
        RewardSpecError: cache is not above 0, or it is above max_length.

    >>> completion_ids = [[0] * 10, [0] * 15, [0] * 99]
    >>> overlong(["short", "long", "endless"], completion_ids, max_length=20, cache=10)
    [0.0, -0.5, -1.0]
    """
    if not 0 < cache <= max_length:
        raise RewardSpecError(
            f"overlong: max_length={max_length}, cache={cache}; expected 0 < cache <= max_length. "
            "Set max_length to the limit of a completion in tokens, and cache to the part of it "
            "that is punished."
        )
    rewards: list[float | None] = []
    for ids in completion_ids:
        # Equation 13 has three cases: min() makes the first, max() the last.
        punishment = max(-1.0, (max_length - cache - len(ids)) / cache)
        rewards.append(min(0.0, punishment))
    return rewards
