"""A reward to register, and how TRL calls one."""

COMPLETIONS = ["one", "three"]


def lengths(completions, *, scale=1.0, **columns):
    """Pays for characters.

    The second paragraph is not part of the first line.
    """
    return [scale * len(text) for text in completions]


def as_trl_calls(reward, completions=COMPLETIONS, **columns):
    """The keywords of TRL 1.16's `_calculate_rewards`."""
    return reward(
        prompts=["?"] * len(completions),
        completions=completions,
        completion_ids=[[0]] * len(completions),
        trainer_state=None,
        log_extra=print,
        log_metric=print,
        **columns,
    )
