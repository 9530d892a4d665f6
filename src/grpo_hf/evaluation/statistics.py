"""How good, and how sure: accuracies with intervals, paired differences, pass@k and maj@k."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Z_95 = 1.959964  # two-sided 95% quantile of the normal distribution

_RESAMPLES = 10_000


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
    """Base against adapter on the same prompts; `difference` is adapter − base, with its paired 95% interval."""

    base: Accuracy
    adapter: Accuracy
    difference: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def accuracy(right: Sequence[bool]) -> Accuracy:
    """The share of right answers with its Wilson score interval (Wilson 1927), which is sound at 0 and 1 too.

    >>> str(accuracy([True] * 8 + [False] * 2))
    '0.800 [0.490, 0.943]'
    """
    n, share = len(right), sum(right) / len(right)
    centre = share + Z_95**2 / (2 * n)
    spread = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    return Accuracy(
        sum(right), n, max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
    )


def compare(base: Sequence[bool], adapter: Sequence[bool]) -> Comparison:
    """Compare right answers to the same prompts, in the same order.

    The interval of the difference is the percentile bootstrap over prompts (Efron 1979), so that a prompt both get
    right, or both wrong, adds no spread.
    """
    if len(base) != len(adapter) or not len(base):
        raise ValueError(
            f"{len(base)} base and {len(adapter)} adapter answers; expected as many of each, at least one"
        )
    change = np.asarray(adapter, dtype=float) - np.asarray(base, dtype=float)
    shares = [(change == outcome).mean() for outcome in (-1, 0, 1)]  # worse, the same, better
    worse, _, better = np.random.default_rng(0).multinomial(len(change), shares, size=_RESAMPLES).T
    low, high = np.percentile((better - worse) / len(change), [2.5, 97.5])
    return Comparison(
        accuracy(base), accuracy(adapter), float(change.mean()), float(low), float(high)
    )


def pass_at_k(correct: Sequence[Sequence[bool]], k: int) -> float:
    """How often at least one of k samples is right: the mean over problems of an estimate without bias.

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
    missed = [math.comb(len(row) - sum(row), k) / math.comb(len(row), k) for row in correct]
    return 1 - sum(missed) / len(missed)


def maj_at_k(
    answers: Sequence[Sequence[Hashable | None]],
    correct: Sequence[Sequence[bool]],
    k: int,
    *,
    draws: int = 64,
    seed: int = 0,
) -> float:
    """How often the answer that most of k samples agree on is right, over random choices of k; mean over problems.

    Of answers with equally many votes each counts as its share. None has no vote. With k = 1 and k = n, where nothing
    has to be drawn, this is exact.

    Args:
        answers (problems, samples): what each sample comes to; equal answers vote together.
        correct (problems, samples): whether each sample is right; equal answers are equally right.
        draws: choices of k per problem.
        seed: of the choices.

    Raises:
        ValueError: k is not from 1 to n.

    Source: arXiv 2203.11171 (self-consistency), as maj@k in DeepSeekMath (arXiv 2402.03300), figure 7.

    >>> maj_at_k([["7", "7", "8"]], [[False, False, True]], k=3)
    0.0
    """
    _check_k(correct, k)
    chance = np.random.default_rng(seed)
    shares = []
    for said, right in zip(answers, correct, strict=True):
        n = len(said)
        if k == 1:
            chosen = np.arange(n)[:, None]
        else:
            chosen = np.array([chance.permutation(n)[:k] for _ in range(draws if k < n else 1)])
        shares.append(
            np.mean(
                [
                    _vote([said[i] for i in rows], [right[i] for i in rows])
                    for rows in chosen.tolist()
                ]
            )
        )
    return float(np.mean(shares))


def _vote(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    """The share of the most frequent answers that is right; 0 where there is no answer."""
    votes = Counter(answer for answer in answers if answer is not None)
    right = {answer for answer, is_right in zip(answers, correct, strict=True) if is_right}
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    return sum(answer in right for answer in winners) / max(1, len(winners))


def _check_k(correct: Sequence[Sequence[bool]], k: int) -> None:
    if not correct or not 1 <= k <= min(map(len, correct)):
        raise ValueError(
            f"k is {k} with {len(correct)} problems; expected k from 1 to the samples of each problem."
        )
