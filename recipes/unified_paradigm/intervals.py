"""Means over seeds and their 95% intervals."""

from collections.abc import Sequence
from statistics import mean, stdev

# Two-sided 95% quantiles of Student's t distribution for 1 to 9 degrees of freedom (2 to 10 seeds),
# and the quantile of the normal distribution for more.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

Z_95 = 1.96


def interval(values: Sequence[float]) -> str:
    """Return the mean as text, with its 95% interval over seeds if there are several values."""
    text = f"{mean(values):.3f}"
    if len(values) > 1:
        text += f" ± {half_width(values):.3f}"
    return text


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95% interval of a mean by Student's t; 0 for a single value."""
    n = len(values)
    if n < 2:
        return 0.0
    quantile = T_95[n - 2] if n - 2 < len(T_95) else Z_95
    return quantile * stdev(values) / n**0.5
