"""The sentence on prompts that were trained on; nothing heavy is imported for it."""


def overlap_text(count: int | None, total: int, what: str = "held-out prompts") -> str | None:
    """Return a sentence on prompts that were trained on as well; None where none was.

    Args:
        count: how many were; None where that is not known.

    >>> overlap_text(2, 3)
    '2 of 3 held-out prompts are also in the training data.'
    """
    if not count:
        return None
    return (
        f"{count:,} of {total:,} {what} {'is' if count == 1 else 'are'} also in the training data."
    )
