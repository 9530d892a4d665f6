"""Accuracies with confidence intervals, paired differences, pass@k and maj@k."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# The two-sided 95% quantile of the normal distribution.
Z_95 = 1.959964

# With this many resamples a 2.5% tail has a standard error of 0.16%.
_RESAMPLES = 10_000
_TAILS_95 = (2.5, 97.5)


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95% Wilson interval."""

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

    `difference` is adapter − base; `low` and `high` are its paired 95% interval.
    """

    base: Accuracy
    adapter: Accuracy
    difference: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def accuracy(right: Sequence[bool]) -> Accuracy:
    """Return the share of right answers with its Wilson score interval (Wilson 1927).

    The interval is sound at shares of 0 and 1, too.

    >>> str(accuracy([True] * 8 + [False] * 2))
    '0.800 [0.490, 0.943]'
    """
    n = len(right)
    share = sum(right) / n
    centre = share + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    # At a share of 0 or 1 rounding can put a bound just outside of [0, 1].
    low = max(0.0, (centre - spread) / scale)
    high = min(1.0, (centre + spread) / scale)
    return Accuracy(sum(right), n, low, high)


def compare(base: Sequence[bool], adapter: Sequence[bool]) -> Comparison:
    """Compare right answers to the same prompts, in the same order.

    The interval of the difference is the percentile bootstrap over prompts (Efron 1979). A prompt
    that both answer right, or both wrong, therefore adds no spread.

    Raises:
        ValueError: there is no answer, or one list is longer than the other.
    """
    if len(base) != len(adapter) or not len(base):
        raise ValueError(
            f"{len(base)} base and {len(adapter)} adapter answers; expected the same number of "
            "both, and at least one"
        )
    n = len(base)
    # -1 where the adapter lost a right answer, 0 where nothing changed, 1 where it won one.
    change = np.asarray(adapter, dtype=float) - np.asarray(base, dtype=float)
    shares = [(change == -1).mean(), (change == 0).mean(), (change == 1).mean()]
    # Only the number of each change matters, so a multinomial draw is a whole resample. The fixed
    # seed gives the same answers the same interval every time.
    draws = np.random.default_rng(0).multinomial(n, shares, size=_RESAMPLES)
    worse, _, better = draws.T
    low, high = np.percentile((better - worse) / n, _TAILS_95)
    return Comparison(
        accuracy(base), accuracy(adapter), float(change.mean()), float(low), float(high)
    )


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
    missed = []
    for samples in correct:
        n = len(samples)
        # C(n − c, k) is 0 where fewer than k samples are wrong: every choice has a right one.
        missed.append(math.comb(n - sum(samples), k) / math.comb(n, k))
    return 1 - sum(missed) / len(missed)


def maj_at_k(
    answers: Sequence[Sequence[Hashable | None]],
    correct: Sequence[Sequence[bool]],
    k: int,
    *,
    draws: int = 64,
    seed: int = 0,
) -> float:
    """Return how often the most frequent answer among k samples is right.

    The result is the mean over problems, and for each problem over random choices of k samples.
    Where several answers have the most votes, the choice counts as the share of them that is right.
    None has no vote. With k = 1 and k = n nothing has to be drawn, and the result is exact.

    Args:
        answers (problems, samples): the final answer of each sample; equal answers vote together.
        correct (problems, samples): whether each sample is right; equal answers are equally right.
        draws: the number of choices of k samples per problem.
        seed: the seed of the choices.

    Raises:
        ValueError: k is not from 1 to n.

    Source: arXiv 2203.11171 (self-consistency), as maj@k in DeepSeekMath (arXiv 2402.03300),
    figure 7.

    >>> maj_at_k([["7", "7", "8"]], [[False, False, True]], k=3)
    0.0
    """
    _check_k(correct, k)
    # One generator for all problems, so that their choices are independent.
    rng = np.random.default_rng(seed)
    shares = []
    for of_problem, right in zip(answers, correct, strict=True):
        votes = []
        for chosen in _choices(len(of_problem), k, draws, rng):
            chosen_answers = [of_problem[sample] for sample in chosen]
            chosen_right = [right[sample] for sample in chosen]
            votes.append(_vote(chosen_answers, chosen_right))
        shares.append(np.mean(votes))
    return float(np.mean(shares))


def _choices(n: int, k: int, draws: int, rng: np.random.Generator) -> list[list[int]]:
    """Return choices of k out of n samples: every one for k = 1 and k = n, else random ones."""
    if k == 1:
        return [[sample] for sample in range(n)]
    choices = []
    # The first k of a random order are a random choice without replacement.
    for _ in range(draws if k < n else 1):
        choices.append(rng.permutation(n)[:k].tolist())
    return choices


def _vote(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    """Return the share of the most frequent answers that is right; 0 where there is no answer."""
    votes: Counter[Hashable] = Counter()
    right = set()
    for answer, is_right in zip(answers, correct, strict=True):
        if answer is not None:
            votes[answer] += 1
        if is_right:
            right.add(answer)
    most = max(votes.values(), default=0)
    winners = 0
    right_winners = 0
    for answer, count in votes.items():
        if count == most:
            winners += 1
            right_winners += answer in right
    return right_winners / max(1, winners)


def _check_k(correct: Sequence[Sequence[bool]], k: int) -> None:
    fewest = min(map(len, correct), default=0)
    if not 1 <= k <= fewest:
        raise ValueError(
            f"k is {k} with {len(correct)} problems; expected k from 1 to the samples of each "
            "problem."
        )
