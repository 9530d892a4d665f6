"""Tests of intervals, pass@k and maj@k, against exact ones."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest

from grpo_hf.evaluation.statistics import accuracy, compare, maj_at_k, pass_at_k

Z = 1.959964
COUNTS = [
    (right, total) for total in (1, 2, 5, 20, 200) for right in {0, 1, total // 3, total - 1, total}
]


def outcomes(right: int, total: int) -> list[bool]:
    return [True] * right + [False] * (total - right)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_s_interval_as_published(right: int, total: int, low: float, high: float):
    """Compare with table I, method 3, of Newcombe 1998.

    The paper is "Two-sided confidence intervals for the single proportion".
    """
    share = accuracy(outcomes(right, total))
    assert (round(share.low, 4), round(share.high, 4)) == (low, high)
    assert (share.right, share.total, share.value) == (right, total, right / total)


@pytest.mark.parametrize(("right", "total"), COUNTS)
def test_wilson_s_interval_is_what_the_score_test_does_not_reject(right: int, total: int):
    def rejected(p: float) -> bool:
        return abs(right / total - p) > Z * math.sqrt(p * (1 - p) / total)

    def boundary(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        return inside

    share = accuracy(outcomes(right, total))
    assert share.low == pytest.approx(boundary(right / total, 0.0), abs=1e-6)
    assert share.high == pytest.approx(boundary(right / total, 1.0), abs=1e-6)


@pytest.mark.parametrize("total", [10, 50, 200])
def test_wilson_s_interval_covers_the_truth_95_times_in_100(total: int):
    """Compute the coverage exactly from the binomial distribution, averaged over accuracies."""
    intervals = [accuracy(outcomes(right, total)) for right in range(total + 1)]

    def coverage(p: float) -> float:
        probability = 0.0
        for right, share in enumerate(intervals):
            if share.low <= p <= share.high:
                probability += math.comb(total, right) * p**right * (1 - p) ** (total - right)
        return probability

    covered = [coverage(p) for p in np.linspace(0.02, 0.98, 97)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.83


def pairs(better: int, worse: int, same: int) -> tuple[list[bool], list[bool]]:
    """Return right answers of base and adapter, with given numbers of each kind of change."""
    base = [False] * better + [True] * worse + [index % 2 == 0 for index in range(same)]
    adapter = [True] * better + [False] * worse + [index % 2 == 0 for index in range(same)]
    return base, adapter


def by_enumeration(changes: list[int]) -> dict[int, float]:
    resamples = itertools.product(changes, repeat=len(changes))
    distribution = {}
    for total, count in Counter(map(sum, resamples)).items():
        distribution[total] = count / len(changes) ** len(changes)
    return distribution


def by_convolution(changes: list[int]) -> dict[int, float]:
    """Return the distribution of a resample's sum: one draw's, convolved with itself n times."""
    n = len(changes)
    one_draw = np.array([changes.count(-1), changes.count(0), changes.count(1)]) / n
    total = np.ones(1)
    for _ in range(n):
        total = np.convolve(total, one_draw)
    return dict(zip(range(-n, n + 1), total, strict=True))


@pytest.mark.parametrize(
    ("better", "worse", "same"),
    [(2, 1, 2), (1, 0, 4), (4, 1, 0), (3, 2, 0), (9, 4, 27), (30, 3, 7), (1, 1, 38)],
)
def test_the_paired_interval_is_that_of_the_exact_bootstrap(better: int, worse: int, same: int):
    base, adapter = pairs(better, worse, same)
    changes = [int(after) - int(before) for before, after in zip(base, adapter, strict=True)]
    exact = (by_enumeration if len(changes) <= 5 else by_convolution)(changes)
    result = compare(base, adapter)
    assert result.difference == pytest.approx((better - worse) / len(base))
    # Four standard errors of a tail that is estimated from 10,000 resamples.
    error = 4 * math.sqrt(0.025 * 0.975 / 10_000)
    slack = 1e-9
    for bound, tail in ((result.low * len(base), 0.025), (result.high * len(base), 0.975)):
        assert sum(p for total, p in exact.items() if total < bound - slack) <= tail + error
        assert sum(p for total, p in exact.items() if total <= bound + slack) >= tail - error


def test_the_two_ways_to_the_exact_bootstrap_agree():
    changes = [1, 1, 0, -1, 0]
    enumerated = by_enumeration(changes)
    convolved = by_convolution(changes)
    assert {total: p for total, p in convolved.items() if p > 0} == pytest.approx(enumerated)


def test_prompts_that_do_not_change_add_no_spread():
    same = compare(*pairs(0, 0, 50))
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    assert (same.base.right, same.adapter.right) == (25, 25)
    all_better = compare(*pairs(50, 0, 0))
    assert (all_better.difference, all_better.low, all_better.high) == (1.0, 1.0, 1.0)


def test_the_paired_interval_covers_the_truth():
    """Simulate 200 runs of 80 prompts, of which 30% get better and 10% worse.

    The true difference is +0.2.
    """
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        better, worse, same = rng.multinomial(80, [0.3, 0.1, 0.6])
        result = compare(*pairs(better, worse, same))
        covered += result.low <= 0.2 <= result.high
    assert 180 <= covered <= 199


def test_a_comparison_is_the_same_every_time_and_fits_json():
    base, adapter = pairs(9, 4, 27)
    assert compare(base, adapter) == compare(base, adapter)
    found = json.loads(json.dumps(compare(base, adapter).as_dict()))
    assert found["base"]["right"] + 5 == found["adapter"]["right"] and found["base"]["total"] == 40


@pytest.mark.parametrize(("base", "adapter"), [([], []), ([True], []), ([True], [True, False])])
def test_answers_that_do_not_pair_up_are_refused(base: list[bool], adapter: list[bool]):
    with pytest.raises(ValueError, match=f"{len(base)} base and {len(adapter)} adapter answers"):
        compare(base, adapter)


@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(k: int):
    correct = [outcomes(right, 6) for right in range(7)]
    shares = []
    for row in correct:
        shares.append(np.mean(list(map(any, itertools.combinations(row, k)))))
    assert pass_at_k(correct, k) == pytest.approx(np.mean(shares))


def by_majority(chosen: tuple[tuple[str | None, bool], ...]) -> float:
    """Return the share of the most frequent answers that is right."""
    said = [answer for answer, _ in chosen if answer is not None]
    best = {answer for answer in said if said.count(answer) == max(map(said.count, said))}
    right = {answer for answer in best if (answer, True) in chosen}
    return len(right) / max(1, len(best))


@pytest.mark.parametrize("k", range(1, 7))
def test_maj_at_k_is_the_share_of_choices_whose_majority_is_right(k: int):
    said = [["7", "7", "8", "9", None, "7"], ["1", "2", "1", "2", "3", "3"], [None] * 6, ["5"] * 6]
    correct = [[answer in ("7", "2", "5") for answer in row] for row in said]
    shares = []
    for row, right in zip(said, correct, strict=True):
        choices = itertools.combinations(list(zip(row, right, strict=True)), k)
        shares.append(np.mean(list(map(by_majority, choices))))
    # 4,000 draws have a standard error below 0.004.
    tolerance = 1e-12 if k in (1, 6) else 0.01
    assert maj_at_k(said, correct, k, draws=4000) == pytest.approx(np.mean(shares), abs=tolerance)


def test_what_cannot_be_chosen():
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is {k} with 2 problems; expected k from 1"):
            pass_at_k([[True] * 5, [False] * 3], k)
