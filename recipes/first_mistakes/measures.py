"""Which mistakes are found, by the model's scores and by rules that read nothing."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .traces import Trace, with_mistake


def judge(
    train: Sequence[Trace], held_out: Sequence[Trace], scores: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Return for each task how often the model and the baselines find the first mistake.

    The entry "all" is over all tasks. A task without mistakes has no entry.
    """
    all_pairs = list(zip(held_out, scores, strict=True))
    pairs_by_task: dict[str, list[tuple[Trace, Sequence[float]]]] = {}
    for trace, values in all_pairs:
        pairs_by_task.setdefault(trace.task, []).append((trace, values))
    results: dict[str, Any] = {}
    # "all" comes last in the table.
    for task, pairs in [*sorted(pairs_by_task.items()), ("all", all_pairs)]:
        wrong = []
        for trace, values in pairs:
            if trace.mistake is not None:
                wrong.append((trace, values))
        if wrong:
            results[task] = found_mistakes(wrong, train) | {"same_place": same_place(pairs)}
    return results


def found_mistakes(
    wrong: Sequence[tuple[Trace, Sequence[float]]], train: Sequence[Trace]
) -> dict[str, Any]:
    """Return how often the model and the baselines find the mistake in traces that have one."""
    from dataclasses import asdict

    from grpo_hf.evaluation.statistics import accuracy

    by_model = []
    chances = []
    at_last_step = 0
    at_frequent_place = 0
    for trace, values in wrong:
        by_model.append(first_mistake(values) == trace.mistake)
        chances.append(1 / len(trace.steps))
        at_last_step += trace.mistake == len(trace.steps) - 1
        at_frequent_place += trace.mistake == most_frequent_place(train, trace.task)
    found = accuracy(by_model)
    return asdict(found) | {
        "share": found.value,
        "chance": sum(chances) / len(wrong),
        "last_step": at_last_step / len(wrong),
        "frequent_place": at_frequent_place / len(wrong),
    }


def first_mistake(scores: Sequence[float]) -> int:
    """Return the k with the largest (1 − p_k) Π_{j<k} p_j, p = σ(score); −1 without steps.

    >>> first_mistake([3.0, -0.5, -4.0]), first_mistake([3.0, 2.0, 1.0])
    (1, 2)
    """
    import torch
    from torch.nn.functional import logsigmoid

    if not scores:
        return -1
    # Logarithms in double precision: the product of many small probabilities would underflow.
    values = torch.tensor(scores, dtype=torch.float64)
    right = logsigmoid(values)
    # The cumulative sum includes step k; the product goes over the steps before it.
    return int((logsigmoid(-values) + right.cumsum(0) - right).argmax())


def most_frequent_place(train: Sequence[Trace], task: str) -> int | None:
    """Return the most frequent place of a first mistake in a task; None if there is no mistake."""
    places: Counter[int | None] = Counter()
    for trace in with_mistake(train):
        if trace.task == task:
            places[trace.mistake] += 1
    # Of equally frequent places the first one counts.
    return max(places, key=lambda place: (places[place], -place), default=None)


def same_place(pairs: Sequence[tuple[Trace, Sequence[float]]]) -> float | None:
    """Return the share of pairs in which the right step scores higher than the first mistake.

    A pair is a right step and a first mistake, at the same place in traces of the same task. A tie
    counts half. The result is None if there is no such pair.
    """
    right: dict[tuple[str, int], list[float]] = {}
    wrong: dict[tuple[str, int], list[float]] = {}
    for trace, values in pairs:
        # Not strict: steps after the mistake have a score and no label, and in a long trace the
        # last labelled steps may have no score.
        for place, (label, value) in enumerate(zip(trace.labels, values, strict=False)):
            scores_by_place = right if label else wrong
            scores_by_place.setdefault((trace.task, place), []).append(value)
    total = 0
    won = 0.0
    for key in right.keys() & wrong.keys():
        for right_score in right[key]:
            for wrong_score in wrong[key]:
                total += 1
                won += (right_score > wrong_score) + (right_score == wrong_score) / 2
    return won / total if total else None
