"""Whether a reward tells answers apart at all: where it calls all right, or none, it does not."""


def cannot_tell(base: float, adapter: float, reward: str = "the reward") -> str | None:
    """Return what is said where a reward gives one mark to all answers of both sides, else None.

    Args:
        base, adapter: the share of answers that got its full mark.
        reward: its name.

    >>> cannot_tell(1.0, 1.0, "polite")
    'polite gives its full mark, 1.0, to all answers, so this says nothing about which are right.'
    >>> cannot_tell(0.9, 1.0)
    """
    if base != adapter or base not in (0.0, 1.0):
        return None
    which = "all answers" if base else "no answer"
    says = "so this says nothing about which are right."
    return f"{reward} gives its full mark, 1.0, to {which}, {says}"
