"""Intervals that hold what they say, and changes that are beyond noise."""

import math
import random
from statistics import fmean

import pytest

from grpo_hf.reporting.trends import change, mean_interval, rank_correlation, share_low


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(0)
    runs, covered = 2000, 0
    for _ in range(runs):
        moved = change([rng.gauss(0.0 if step < 6 else 0.3, 1.0) for step in range(18)])
        covered += moved.low <= 0.3 <= moved.high
    assert 0.98 <= covered / runs <= 1.0


def test_noise_rises_seldom() -> None:
    rng = random.Random(1)
    runs = 2000
    for length in (9, 12, 30):
        rose = 0
        for _ in range(runs):
            rose += change([rng.gauss(0.0, 1.0) for _ in range(length)]).rose
        # Half a percent on this side from each of two intervals.
        assert rose / runs <= 0.015


@pytest.mark.parametrize(
    "values",
    [
        [14.0, 18, 19, 20, 22, 23, 24, 24, 23, 24, 24, 24],
        [0.0] * 5 + [1.0] * 5,
        [float(step) for step in range(9)],
    ],
)
def test_a_rise_is_one(values: list[float]) -> None:
    moved = change(values)
    size = len(values) // 3
    assert moved.rose and moved.difference == fmean(values[-size:]) - fmean(values[:size])
    assert not change([-value for value in values]).rose


def test_what_is_too_short_or_never_changes() -> None:
    assert change([1.0, None] * 8) is None
    flat = change([1.0] * 9)
    assert (flat.low, flat.high, flat.rose) == (0.0, 0.0, False)


def test_ranks() -> None:
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 1, 2, 2], [1, 2, 3, 3]) == pytest.approx(4 / 18**0.5)
    assert rank_correlation([1, 1], [1, 2]) is None


def test_a_mean_and_a_share() -> None:
    mean, low, high = mean_interval([0.0, 1.0] * 50)
    assert mean == 0.5 and (low, high) == pytest.approx((0.368, 0.632), abs=2e-3)
    assert share_low(0, 10) == 0.0 and share_low(116, 200) == pytest.approx(0.489, abs=1e-3)
    assert math.isinf(mean_interval([1.0])[1])


def test_numbers_that_are_none_end() -> None:
    """NaN equals nothing, itself included, so whoever looks for equal ranks has to pass it by."""
    values = [float(step) for step in range(12)]
    assert change([*values, math.nan, math.inf]) == change(values)
    assert rank_correlation([1.0, math.nan, 2.0], [1.0, 2.0, 3.0]) is not None
