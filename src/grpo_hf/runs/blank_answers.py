"""Blank texts in a column that a reward reads: only its author knows whether they are answers."""

from collections.abc import Sequence

from ..data.readers import PLACE, Split
from ..data.rows import is_blank, is_usable, prompt_column
from ..scoring.reward import Reward
from ..scoring.signature import gold_columns, needed_columns


def blank_notes(
    split: Split, rewards: Sequence[Reward], wanted: str | None, kind: str = "rows"
) -> list[str]:
    """Return a note on every column with blank texts that stay, since they may be right answers.

    A reward that is paid for finding nothing has them. One that says with its setting `gold` that
    they are no answers has their rows left out, which is said there.

    Args:
        split: rows as they were read, whose columns have the names that rewards know.
        wanted: the column of the prompt, if it is named.
        kind: what the rows are called.
    """
    notes = []
    prompt = prompt_column(split, wanted)
    needed, gold = needed_columns(rewards), gold_columns(rewards)
    for name in needed:
        if name == "prompt" or name in gold:
            continue
        blank = []
        for index, row in enumerate(split.rows):
            # Few are blank, and a row may be left out for what else it lacks.
            if is_blank(row.get(name)) and is_usable(row, prompt, needed, gold):
                blank.append(row.get(PLACE, f"row {index}"))
        if not blank:
            continue
        reward = next(each for each in rewards if name in each.columns)
        counted = f"{len(blank):,} of {split.count:,} {kind} of {split.source}"
        why = (
            f"as an empty text may be what the reward {reward.name} pays for. Where it is no "
            f"answer, @reward_settings(gold={name!r}) leaves"
        )
        if len(blank) == 1:
            note = f"{counted} has an empty {name}: {blank[0]}. It stays, {why} it out."
        else:
            note = (
                f"{counted} have an empty {name}: the first of them {blank[0]}. They stay, {why} "
                "them out."
            )
        notes.append(note)
    return notes
