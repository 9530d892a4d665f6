"""Blank texts in a column that a reward reads: only its author knows whether they are answers."""

from collections.abc import Sequence

from ..data.readers import PLACE, Split
from ..data.rows import is_blank
from ..scoring.reward import Reward
from ..scoring.signature import gold_columns, needed_columns


def blank_notes(split: Split, rewards: Sequence[Reward]) -> list[str]:
    """Return a note on every column with blank texts that stay, since they may be right answers.

    A reward that is paid for finding nothing has them. One that says with its setting `gold` that
    they are no answers has their rows left out, which is said there.

    Args:
        split: rows as they were read, whose columns have the names that rewards know.
    """
    notes = []
    left_out = {"prompt", *gold_columns(rewards)}
    for name in needed_columns(rewards):
        if name in left_out:
            continue
        blank = []
        for index, row in enumerate(split.rows):
            # Rows with null are left out, whatever the reward says.
            if row.get(name) is not None and is_blank(row[name]):
                blank.append(row.get(PLACE, f"row {index}"))
        if not blank:
            continue
        reward = next(each for each in rewards if name in each.columns)
        have, first, stay, them = "have", "the first of them ", "They stay", "them"
        if len(blank) == 1:
            have, first, stay, them = "has", "", "It stays", "it"
        notes.append(
            f"{len(blank):,} of {split.count:,} rows of {split.source} {have} an empty {name}: "
            f"{first}{blank[0]}. {stay}, as an empty text may be what the reward {reward.name} "
            f"pays for. Where it is no answer, @reward_settings(gold={name!r}) leaves {them} out."
        )
    return notes
