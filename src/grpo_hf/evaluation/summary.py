"""The numbers of an evaluation, from its lines: accuracies, pass@k, maj@k, differences, flips."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .cut_answers import CutAnswers, Marked
from .intervals import Estimate, Values, difference_estimates, share_estimates
from .part_marks import PartMarks
from .problem_set import SIDES
from .statistics import maj_at_every_k, pass_at_every_k

Line = dict[str, Any]


def summary_of(lines: Sequence[Line], *, votes: bool, limit: int, reward: str) -> dict[str, Any]:
    """Return the summary of the lines of an evaluation.

    A problem on which the reward failed is left out for both sides, since they are paired.

    Args:
        lines: with "row", "category" and what each side answered; see `evaluate`.
        votes: whether final answers are known, without which there is no maj@k.
        limit: tokens that an answer may have.
        reward: the name of the one that says what is right.
    """
    judged = [line for line in lines if not _failed(line)]
    summary: dict[str, Any] = {"problems": len(judged)}
    if not judged:
        return summary
    if "in_training" in judged[0]:
        summary["in_training"] = sum(line["in_training"] for line in judged)
    columns = {side: _columns(judged, side, votes) for side in SIDES}
    for side in SIDES:
        summary[side] = _named(columns[side], share_estimates)
    differences = {}
    for name, values in columns["base"].items():
        differences[name] = columns["adapter"][name] - values
    summary["difference"] = _named(differences, difference_estimates)
    summary["by_category"] = _by_category(judged, columns, differences)
    summary["flips"] = _flips(judged)
    summary["cut"] = _cut(judged, limit).as_dict()
    earned = [[line[side]["rewards"].get(reward) for side in SIDES] for line in judged]
    part = PartMarks.count((base, adapter) for base, adapter in earned)
    if part is not None:
        summary["part_marks"] = part.as_dict()
    return summary


def _failed(line: Line) -> bool:
    marks = []
    for side in SIDES:
        marks += [line[side]["greedy_right"], *line[side]["right"]]
    return None in marks


def _columns(lines: Sequence[Line], side: str, votes: bool) -> dict[str, Values]:
    """Return the values of each problem, by the name of what they estimate."""
    greedy = [[float(line[side]["greedy_right"])] for line in lines]
    columns = {"accuracy": np.array(greedy)}
    right = [line[side]["right"] for line in lines]
    if right[0]:
        columns["pass_at"] = pass_at_every_k(right)
        columns["sampled_accuracy"] = columns["pass_at"][:, :1]
        if votes:
            columns["maj_at"] = maj_at_every_k([line[side]["answers"] for line in lines], right)
    return columns


def _named(columns: dict[str, Values], estimates_of: Any) -> dict[str, Any]:
    """Return estimates by name, those of pass@k and maj@k by k."""
    found: dict[str, Any] = {"pass_at": {}, "maj_at": {}}
    for name, values in columns.items():
        estimates: list[Estimate] = estimates_of(values)
        if name.endswith("_at"):
            for k, estimate in enumerate(estimates, 1):
                found[name][str(k)] = estimate.as_dict()
        else:
            found[name] = estimates[0].as_dict()
    return found


def _by_category(
    lines: Sequence[Line], columns: dict[str, dict[str, Values]], differences: dict[str, Values]
) -> dict[str, Any]:
    """Return the greedy accuracies of each category, and their difference."""
    rows: dict[str, list[int]] = {}
    for place, line in enumerate(lines):
        if line["category"] is not None:
            rows.setdefault(line["category"], []).append(place)
    found = {}
    for category, places in sorted(rows.items()):
        estimates: dict[str, Any] = {"problems": len(places)}
        for side in SIDES:
            (share,) = share_estimates(columns[side]["accuracy"][places])
            estimates[side] = share.as_dict()
        (change,) = difference_estimates(differences["accuracy"][places])
        estimates["difference"] = change.as_dict()
        found[category] = estimates
    return found


def _cut(lines: Sequence[Line], limit: int) -> CutAnswers:
    """Count the greedy answers that were cut off."""
    known = []
    for line in lines:
        right = (line[side]["greedy_right"] for side in SIDES)
        cut = (line[side]["greedy_cut"] for side in SIDES)
        known.append(Marked(*right, *cut))
    return CutAnswers.count(known, limit)


def _flips(lines: Sequence[Line]) -> dict[str, list[int]]:
    """Return the rows whose greedy answer became right, and those whose became wrong."""
    flips: dict[str, list[int]] = {"gained": [], "lost": []}
    for line in lines:
        before, after = (line[side]["greedy_right"] for side in SIDES)
        if before != after:
            flips["gained" if after else "lost"].append(line["row"])
    return flips
