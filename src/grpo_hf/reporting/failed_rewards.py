"""Rewards of a run that failed on completions, told at its end: the log has scrolled past."""

from collections.abc import Sequence
from typing import Any

LEFT_OUT = "Such completions are left out of the update."
_PREFIX, _FAILED = "rewards/", "/failed"


def why_completions_were_left_out(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a sentence for each reward that failed on completions, which the update leaves out.

    Args:
        rows: of `metrics.jsonl`, one for each logged step.

    >>> rows = [{"rewards/tests/failed": 0.25, "rewards/tests/failed/time_limit": 0.25}]
    >>> why_completions_were_left_out([*rows, {"rewards/tests/failed": 0.0}])
    ['The reward tests failed on 12.5% of the completions (time limit), in 1 of 2 logged steps.']
    """
    shares: dict[str, list[float]] = {}
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        for key, share in row.items():
            # None and NaN are of steps without a rollout.
            if not key.startswith(_PREFIX) or not isinstance(share, int | float) or share != share:
                continue
            name, failed, reason = key.removeprefix(_PREFIX).partition(_FAILED)
            if failed and not reason:
                shares.setdefault(name, []).append(float(share))
            elif failed and share:
                said = reason.removeprefix("/").replace("_", " ")
                reasons.setdefault(name, {})[said] = None
    sentences = []
    for name, of_steps in shares.items():
        if any(of_steps):
            whole = sum(of_steps) / len(of_steps)
            steps = sum(share > 0 for share in of_steps)
            why = f" ({', '.join(reasons[name])})" if name in reasons else ""
            sentences.append(
                f"The reward {name} failed on {whole:.1%} of the completions{why}, in {steps} of "
                f"{len(of_steps)} logged steps."
            )
    return sentences
