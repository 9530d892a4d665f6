"""A run of which no completion ever earned anything, so that there was nothing to learn from."""

import math
from collections.abc import Sequence
from typing import Any

# The share of completions from which the limit of their length is a likely reason.
_MOSTLY_CUT = 0.5
NOTHING_LEARNED_CURE = (
    "More steps or prompts do not help. Read completions: if right ones earn 0, mend the reward or "
    "the prompt that asks for its format; else give them more room, begin with easier prompts, or "
    "take a model that has learned the format."
)


def why_nothing_was_learned(rows: Sequence[dict[str, Any]]) -> str:
    """Return in a sentence that nothing was learned and why; nothing where something was earned.

    Args:
        rows: of `metrics.jsonl`, one for each logged step.

    >>> why_nothing_was_learned([{"reward": 0.0, "reward_std": 0.0, "step": 8}])
    'Nothing was learned: no completion of any logged step earned anything.'
    """
    logged = [row for row in rows if "reward" in row]
    if not logged or any(map(_earned, logged)):
        return ""
    judged = any(_known(row["reward"]) is not None for row in logged)
    what = "earned anything" if judged else "has a reward"
    said = f"Nothing was learned: no completion of any logged step {what}"
    shares = [_known(row.get("completions/clipped_ratio")) or 0.0 for row in logged]
    share = sum(shares) / len(shares)
    if share > _MOSTLY_CUT:
        said += f", and {share:.0%} of them were cut off at max_completion_length before their end"
    return f"{said}."


def _earned(row: dict[str, Any]) -> bool:
    # Steps of a completion may earn where their mean, which stands for it here, does not.
    if any(name.startswith("rewards/") and name.endswith("/steps") for name in row):
        return True
    return any(_known(row.get(name)) for name in ("reward", "reward_std"))


def _known(value: Any) -> float | None:
    """Return a logged number, or None where it is none."""
    is_number = isinstance(value, int | float) and not math.isnan(value)
    return float(value) if is_number else None
