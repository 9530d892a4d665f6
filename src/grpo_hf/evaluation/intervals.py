"""Estimates with 95% intervals: the Bayesian bootstrap over problems.

A problem is what was drawn, so problems are resampled, and never the samples of one problem.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

# With this many draws a 2.5% tail has a standard error of 0.16%.
_DRAWS = 10_000
# Draws of weights that are held at a time; a set may have thousands of problems.
_DRAWS_AT_A_TIME = 500
_TAILS_95 = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95% interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share_estimates(values: Values) -> list[Estimate]:
    """Return the mean of each column with its interval, for values from 0 to 1.

    The interval is that of the Bayesian bootstrap (Rubin 1981): problems get random weights that
    are uniform on the simplex. Two more problems, one with the value 0 and one with 1, have half a
    weight each, and stand for what was not drawn. So where all values are 0 or 1 this is Jeffreys'
    interval of a share, which is sound at shares of 0 and 1, too.

    Args:
        values (problems, columns): such as whether an answer is right, or pass@k of a problem.

    >>> print(share_estimates(np.array([[1.0]] * 8 + [[0.0]] * 2))[0])
    0.800 [0.499, 0.955]
    """
    nothing = np.zeros(values.shape[1])
    return _estimates(values, [(nothing, 0.5), (nothing + 1.0, 0.5)])


def difference_estimates(values: Values) -> list[Estimate]:
    """Return the mean of each column with its interval, for differences from -1 to 1.

    As in `share_estimates`, with other additions: one problem that gained and one that lost, each
    with half a weight, and one that did not change. Where all differences are -1, 0 or 1 this is
    the posterior under Jeffreys' prior over the four pairs of right and wrong. Where they are
    smaller, so is what is added: the geometric mean of their typical size and 1.

    Args:
        values (problems, columns): what each problem gained.
    """
    sizes = np.abs(values)
    totals = sizes.sum(axis=0)
    # Where nothing changed, nothing says that a change would be small.
    changed = totals > 0
    typical = (sizes**2).sum(axis=0) / np.where(changed, totals, 1.0)
    size = np.sqrt(np.where(changed, typical, 1.0))
    return _estimates(values, [(-size, 0.5), (size, 0.5), (0.0 * size, 1.0)])


def _estimates(values: Values, more: list[tuple[Values, float]]) -> list[Estimate]:
    """Return means with their intervals.

    Args:
        values (problems, columns): what was observed.
        more: further problems, each with its values (columns) and its weight.
    """
    shape = np.concatenate([np.ones(len(values)), [weight for _, weight in more]])
    points = np.vstack([values, *(point for point, _ in more)])
    # The fixed seed gives the same answers the same interval every time.
    rng = np.random.default_rng(0)
    means = []
    for _ in range(_DRAWS // _DRAWS_AT_A_TIME):
        # Gamma numbers, divided by their sum, are Dirichlet weights.
        weights = rng.standard_gamma(shape, size=(_DRAWS_AT_A_TIME, len(shape)))
        means.append(weights @ points / weights.sum(axis=1, keepdims=True))
    low, high = np.percentile(np.concatenate(means), _TAILS_95, axis=0)
    estimates = []
    for value, lower, upper in zip(values.mean(axis=0), low, high, strict=True):
        # Additions may move a bound past a mean that lies at the end of what is possible.
        bounds = min(lower, value), max(upper, value)
        estimates.append(Estimate(float(value), *map(float, bounds)))
    return estimates
