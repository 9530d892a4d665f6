"""Small statistics of a run: did a number move, beyond its noise?

Steps of a run are few and noisy, so a number counts as moved where an interval says so. Nothing
heavy is imported.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

# Of a confidence interval. 99% and not 95%: a run is looked at for a dozen things, several times.
LEVEL = 0.99
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
# Values of a third: with fewer, its spread is unknown.
_FEWEST = 3
FEWEST_VALUES = 3 * _FEWEST


@dataclass(frozen=True)
class Change:
    """How a number changed from the first third of a run to the last.

    Args:
        first, last: its means there.
        low, high: the 99% interval of their difference.
        trend: the lower end of the 99% interval of the rank correlation with the order of steps.
    """

    first: float
    last: float
    low: float
    high: float
    trend: float

    @property
    def difference(self) -> float:
        return self.last - self.first

    @property
    def rose(self) -> bool:
        """Whether it rose beyond its noise.

        A number that rises fast in a short run has a wide spread in the first third, and an order
        that no noise has.
        """
        return self.low > 0 or (self.difference > 0 and self.trend > 0)


def change(values: Sequence[float | None]) -> Change | None:
    """Return how a number changed over a run, or None for fewer than 9 values.

    The interval is Welch's, of two samples with their own spread (Welch 1947).

    Args:
        values: in the order of the steps; None, NaN or infinite where there is none.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    size = len(known) // 3
    if size < _FEWEST:
        return None
    first, last = known[:size], known[-size:]
    spreads = [variance(first) / size, variance(last) / size]
    half = 0.0
    if sum(spreads):
        degrees = sum(spreads) ** 2 / sum(each**2 / (size - 1) for each in spreads)
        half = _student(degrees) * math.sqrt(sum(spreads))
    start, end = fmean(first), fmean(last)
    return Change(start, end, end - start - half, end - start + half, _trend(known))


def _trend(values: Sequence[float]) -> float:
    """Return the lower end of the interval of a rank correlation with the order.

    Fisher's transformation, with the variance of ranks of Bonett and Wright (2000).
    """
    order = [float(place) for place in range(len(values))]
    correlation = rank_correlation(order, values)
    if correlation is None:
        return 0.0
    # Of a perfect order the transformation is endless.
    bounded = max(-0.999, min(0.999, correlation))
    error = math.sqrt((1 + bounded**2 / 2) / (len(values) - 3))
    return math.tanh(math.atanh(bounded) - _Z * error)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return a mean with its 99% interval: mean, low, high; the interval of one value is endless.

    >>> mean_interval([1.0])
    (1.0, -inf, inf)
    """
    size = len(values)
    mean = fmean(values)
    if size < 2:
        return mean, -math.inf, math.inf
    half = _student(size - 1) * math.sqrt(variance(values) / size)
    return mean, mean - half, mean + half


def share_low(count: int, total: int) -> float:
    """Return the lower end of the 99% interval of a share (Wilson 1927).

    >>> round(share_low(8, 10), 3)
    0.401
    """
    share = count / total
    centre = share + _Z**2 / (2 * total)
    spread = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    return max(0.0, (centre - spread) / (1 + _Z**2 / total))


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, or None where one side does not vary.

    >>> round(rank_correlation([1, 2, 3], [10, 20, 40]), 6)
    1.0
    """
    ranks = [_ranks(left), _ranks(right)]
    centred = []
    for each in ranks:
        mean = fmean(each)
        centred.append([value - mean for value in each])
    norms = [math.sqrt(sum(value**2 for value in each)) for each in centred]
    if not all(norms):
        return None
    product = sum(one * other for one, other in zip(*centred, strict=True))
    return max(-1.0, min(1.0, product / (norms[0] * norms[1])))


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        # NaN does not even equal itself.
        end = start + 1
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + end - 1) / 2
        start = end
    return ranks


def _student(degrees: float) -> float:
    """Return the quantile of Student's t for the interval's level.

    The expansion of Cornish and Fisher is within 3% from three degrees of freedom on.
    """
    degrees = max(degrees, 2.0)
    terms = [
        _Z,
        (_Z**3 + _Z) / (4 * degrees),
        (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * degrees**2),
        (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / (384 * degrees**3),
    ]
    return sum(terms)
