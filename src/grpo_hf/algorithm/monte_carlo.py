"""Monte-Carlo step values (Math-Shepherd, arXiv 2312.08935): what continuations of a step earn.

    r_ij = 1/n Σ reward(continuation of the steps 1..j of output i)

The n continuations are sampled from the policy. With a reward of 0 or 1 this is the share of
continuations that end correctly (soft estimation, equation 3 of the paper). The value of the last
step of an output is what the output itself earned. No second model is needed; the cost is the
continuations. All continuations of one beginning share its states, because a rollout reads equal
prompts once. Outputs of a group that begin alike share values if they are on one process.

This file has the equation alone. A trainer (scoring/process_reward.py) or a model without one
(reward_models/step_labels.py) hands over how to sample and how to judge.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Tokens = Sequence[int]
# The tokens of a prompt, and those of the first steps after it.
Beginning = tuple[tuple[int, ...], tuple[int, ...]]
# From completions, and the rows whose prompts they answer, to rewards; NaN for "cannot judge".
Judge = Callable[[list[list[int]], Sequence[int]], list[float]]


@dataclass(frozen=True)
class Sampler:
    """A function that continues lists of tokens, and its limits.

    Args:
        sample: continues lists of tokens, with at most so many tokens each.
        limit: how many tokens a completion may have, those of its beginning included.
        at_once: how many continuations one call samples; all of one beginning go into one call.
    """

    sample: Callable[[list[list[int]], int], list[list[int]]]
    limit: int
    at_once: int

    def completions(self, beginnings: Sequence[Beginning], n: int) -> list[list[int]]:
        """Return the tokens of n completions of each beginning, side by side."""

        def length(index: int) -> int:
            prompt, text = beginnings[index]
            return len(prompt) + len(text)

        # Neighbours of one length need little padding; the longest come first, so that memory runs
        # out at once or never.
        order = sorted(range(len(beginnings)), key=length, reverse=True)
        completions_by_index: dict[int, list[list[int]]] = {}
        # At least one beginning a call, even where its n copies are more than `at_once`.
        together = max(1, self.at_once // n)
        for start in range(0, len(order), together):
            indices = order[start : start + together]
            continued = self._continued(beginnings, indices, n)
            completions_by_index.update(zip(indices, continued, strict=True))
        completions = []
        for index in range(len(beginnings)):
            completions += completions_by_index[index]
        return completions

    def _continued(
        self, beginnings: Sequence[Beginning], indices: list[int], n: int
    ) -> list[list[list[int]]]:
        """Return n completions of some beginnings, sampled in one call."""
        beginning_ids = []
        rooms = []
        for index in indices:
            prompt, text = beginnings[index]
            # Equal lists side by side: the sampler reads their shared states once.
            for _ in range(n):
                beginning_ids.append([*prompt, *text])
            rooms.append(self.limit - len(text))
        # One call has one limit, so shorter beginnings may get too much, which is cut below.
        continuations = self.sample(beginning_ids, max(rooms))
        completions = []
        for position, index in enumerate(indices):
            beginning = list(beginnings[index][1])
            copies = []
            for ids in continuations[position * n : (position + 1) * n]:
                copies.append((beginning + ids)[: self.limit])
            completions.append(copies)
        return completions


@dataclass(frozen=True)
class StepValues:
    """The values of the steps of each completion, and the cost of computing them.

    Args:
        of_steps: a list per completion, a value per step.
        beginnings: how many beginnings were continued.
        tokens: how many tokens the continuations have.
    """

    of_steps: list[list[float]]
    beginnings: int
    tokens: int


def step_values(
    prompt_ids: Sequence[Tokens],
    completion_ids: Sequence[Tokens],
    step_ends: Sequence[Sequence[int]],
    earned: Sequence[float],
    *,
    groups: Sequence[int],
    n: int,
    sampler: Sampler,
    judge: Judge,
) -> StepValues:
    """Return the values of the steps of each completion, in the order of `step_ends`.

    Args:
        prompt_ids, completion_ids: token ids, a list per row.
        step_ends: the tokens at which the steps of each completion end, counted from 0.
        earned: what each completion itself earned; NaN for what cannot be judged.
        groups: the number of each row's group, whose rows are judged alike. Equal prompts may be
            of several groups.
        n: continuations of each beginning.

    Source: arXiv 2312.08935, equation 3.
    """
    beginnings: list[list[tuple[int, Beginning]]] = []
    # A beginning that several rows share is continued once, and judged as the last of them. The
    # group is part of the key, because groups with equal prompts may be judged differently.
    row_of: dict[tuple[int, Beginning], int] = {}
    for row, ends in enumerate(step_ends):
        of_row = []
        # The last step has the value of the whole completion, which is known.
        for end in ends[:-1]:
            # A step that ends with the completion leaves nothing to continue.
            if end + 1 < len(completion_ids[row]):
                text = tuple(completion_ids[row][: end + 1])
                of_row.append((groups[row], (tuple(prompt_ids[row]), text)))
        beginnings.append(of_row)
        for key in of_row:
            row_of[key] = row
    unique_beginnings = [beginning for _, beginning in row_of]
    completions = sampler.completions(unique_beginnings, n)
    values = _judged_values(completions, row_of, n, judge)
    of_steps = []
    for of_row, value, ends in zip(beginnings, earned, step_ends, strict=True):
        row_values = []
        for key in of_row:
            row_values.append(values[key])
        of_steps.append(row_values + [value] * (len(ends) - len(of_row)))
    tokens = sum(map(len, completions))
    # Completions repeat their beginnings, which were not sampled.
    for _, written in unique_beginnings:
        tokens -= n * len(written)
    return StepValues(of_steps, len(unique_beginnings), tokens)


def _judged_values(
    completions: list[list[int]], row_of: dict[tuple[int, Beginning], int], n: int, judge: Judge
) -> dict[tuple[int, Beginning], float]:
    """Return the mean reward of the n completions of each beginning."""
    # Rewards are not made to be called without completions.
    if not row_of:
        return {}
    rows = []
    for row in row_of.values():
        rows += [row] * n
    judged = judge(completions, rows)
    values = {}
    for index, beginning in enumerate(row_of):
        values[beginning] = mean_of_judged(judged[index * n : (index + 1) * n])
    return values


def gains(values: Sequence[float]) -> list[float]:
    """Return what each value adds to the one before it, one entry fewer than there are values."""
    return [after - before for before, after in pairwise(values)]


def mean_of_judged(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN, and NaN where there is none."""
    judged = [value for value in values if not math.isnan(value)]
    return sum(judged) / len(judged) if judged else math.nan
