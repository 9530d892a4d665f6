"""Accuracies with confidence intervals, paired differences, pass@k and maj@k."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .cut_answers import CutAnswers
from .intervals import Values, difference_estimates, share_estimates
from .part_marks import PartMarks

# Of fewer pairs not even a change of all is unlikely by chance: 2 / 2**5 is more than 5%.
LEAST_PAIRS = 6


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95% interval."""

    right: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.right / self.total

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison:
    """The accuracies of base and adapter on the same prompts.

    `difference` is adapter − base; `low` and `high` are its paired 95% interval. `cut` says how
    many answers were cut off, where that is known, and `part` what they earned, where some earned a
    part of the mark.
    """

    base: Accuracy
    adapter: Accuracy
    difference: float
    low: float
    high: float
    cut: CutAnswers | None = None
    part: PartMarks | None = None

    @property
    def doubt(self) -> str:
        """Why the difference may be one of length alone; nothing where it is not in doubt."""
        return self.cut.doubt(self.low, self.high) if self.cut is not None else ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def accuracy(right: Sequence[bool]) -> Accuracy:
    """Return the share of right answers with its interval, that of `intervals.share_estimates`.

    >>> str(accuracy([True] * 8 + [False] * 2))
    '0.800 [0.499, 0.955]'
    """
    (share,) = share_estimates(np.array(right, dtype=np.float64)[:, None])
    return Accuracy(sum(right), len(right), share.low, share.high)


def compare(base: Sequence[bool], adapter: Sequence[bool]) -> Comparison:
    """Compare right answers to the same prompts, in the same order.

    The interval of the difference is paired: a prompt that both answer right, or both wrong, adds
    no spread. See `difference_estimates`.

    Raises:
        ValueError: there is no answer, or one list is longer than the other.
    """
    if len(base) != len(adapter) or not len(base):
        raise ValueError(
            f"{len(base)} base and {len(adapter)} adapter answers; expected the same number of "
            "both, and at least one"
        )
    # -1 where the adapter lost a right answer, 0 where nothing changed, 1 where it won one.
    change = np.asarray(adapter, dtype=float) - np.asarray(base, dtype=float)
    (found,) = difference_estimates(change[:, None])
    return Comparison(accuracy(base), accuracy(adapter), found.value, found.low, found.high)


def pass_at_k(correct: Sequence[Sequence[bool]], k: int) -> float:
    """Return how often at least one of k samples is right.

    The result is the mean over problems of an unbiased estimate:

        pass@k = 1 − C(n − c, k) / C(n, k)      n samples of a problem, c of them right

    Args:
        correct (problems, samples): whether each sample is right.

    Raises:
        ValueError: k is not from 1 to n.

    Source: arXiv 2107.03374, equation 1.

    >>> pass_at_k([[True, False], [False, False]], k=1)
    0.25
    """
    _check_k(correct, k)
    return float(np.mean([_passes(len(row), sum(row))[k - 1] for row in correct]))


def maj_at_k(
    answers: Sequence[Sequence[Hashable | None]], correct: Sequence[Sequence[bool]], k: int
) -> float:
    """Return how often the most frequent answer among k samples is right.

    The result is the mean over problems, and for each problem over all choices of k samples. Where
    several answers have the most votes, the choice counts as the share of them that is right, and
    an answer whose samples are not equally right as the share of these that is. None has no vote.

    Args:
        answers (problems, samples): the final answer of each sample; equal answers vote together.
        correct (problems, samples): whether each sample is right.

    Raises:
        ValueError: k is not from 1 to n.

    Source: arXiv 2203.11171 (self-consistency), as maj@k in DeepSeekMath (arXiv 2402.03300),
    figure 7.

    >>> maj_at_k([["7", "7", "8"]], [[False, False, True]], k=3)
    0.0
    """
    _check_k(correct, k)
    shares = []
    for of_problem, right in zip(answers, correct, strict=True):
        shares.append(_majorities(of_problem, right)[k - 1])
    return float(np.mean(shares))


def pass_at_every_k(correct: Sequence[Sequence[bool]]) -> Values:
    """Return the unbiased estimate of pass@k of each problem, for k from 1 to n.

    Args:
        correct (problems, n): whether each sample is right.

    Returns:
        An array (problems, n), whose mean over problems is `pass_at_k`.
    """
    return np.array([_passes(len(row), sum(row)) for row in correct])


def maj_at_every_k(
    answers: Sequence[Sequence[Hashable | None]], correct: Sequence[Sequence[bool]]
) -> Values:
    """Return the expected maj@k of each problem, for k from 1 to n.

    Args:
        answers (problems, n), correct (problems, n): see `maj_at_k`.

    Returns:
        An array (problems, n), whose mean over problems is `maj_at_k`.
    """
    rows = zip(answers, correct, strict=True)
    return np.array([_majorities(of_problem, right) for of_problem, right in rows])


def _passes(n: int, right: int) -> list[float]:
    """Return pass@k of one problem for k from 1 to n."""
    passes = []
    for k in range(1, n + 1):
        # C(n − c, k) is 0 where fewer than k samples are wrong: every choice has a right one.
        passes.append(1 - math.comb(n - right, k) / math.comb(n, k))
    return passes


def _majorities(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> Values:
    """Return the expected maj@k of one problem for k from 1 to n, over all choices of k samples."""
    votes = Counter(answers)
    silent = votes.pop(None, 0)
    n = len(answers)
    right = Counter(answer for answer, is_right in zip(answers, correct, strict=True) if is_right)
    right.pop(None, None)
    ways = np.zeros(n + 1)
    for answer, count in right.items():
        others = [other for each, other in votes.items() if each != answer]
        # A reward may look at more than the answer. Those chosen are as often right as all are.
        share = count / votes[answer]
        ways += share * _winning_ways(votes[answer], others, silent, n)
    total = np.array([_weight(n, k) for k in range(n + 1)])
    return (ways / total)[1:]


def _winning_ways(own: int, others: Sequence[int], silent: int, n: int) -> Values:
    """Count the choices of k samples, k from 0 to n, in which an answer has the most votes.

    A choice in which it shares the first place with t answers counts 1 / (t + 1).

    The choices are counted by a product of polynomials, a factor per answer: the coefficient of
    x^v is the number of ways to choose v samples of it. While the answer has c votes, another may
    have fewer, or c as well, which is noted by one factor more of y. All terms are divided by 2^n,
    which keeps them within the range of floats (up to about 1,000 samples).

    Args:
        own: samples with the answer.
        others: samples with each other answer.
        silent: samples without an answer.

    Returns:
        An array (n + 1).
    """
    ways = np.zeros(n + 1)
    for c in range(1, own + 1):
        # Rows are the number of answers that tie, columns the samples chosen beside the c.
        table = np.zeros((n // c, n - c + 1))
        table[0, 0] = _weight(own, c)
        for other in others:
            table = _with_answer(table, other, c)
        table = _times(table, [_weight(silent, v) for v in range(silent + 1)])
        ways[c:] += (table / np.arange(1, len(table) + 1)[:, None]).sum(axis=0)
    return ways


def _with_answer(table: Values, count: int, c: int) -> Values:
    """Multiply by the factor of an answer with `count` samples, which may have c votes at most."""
    product = _times(table, [_weight(count, v) for v in range(min(count, c - 1) + 1)])
    if count >= c:
        # One answer more that ties, with c samples of it chosen.
        product[1:, c:] += _weight(count, c) * table[:-1, : table.shape[1] - c]
    return product


def _times(table: Values, factor: Sequence[float]) -> Values:
    """Multiply polynomials in x, one per row, by another; powers that are too high are dropped."""
    product = np.zeros_like(table)
    width = table.shape[1]
    for power, coefficient in enumerate(factor[:width]):
        product[:, power:] += coefficient * table[:, : width - power]
    return product


def _weight(n: int, k: int) -> float:
    return math.comb(n, k) / 2**n


def _check_k(correct: Sequence[Sequence[bool]], k: int) -> None:
    fewest = min(map(len, correct), default=0)
    if not 1 <= k <= fewest:
        raise ValueError(
            f"k is {k} with {len(correct)} problems; expected k from 1 to the samples of each "
            "problem."
        )
