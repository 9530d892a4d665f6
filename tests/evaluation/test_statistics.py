"""Tests of intervals, pass@k and maj@k, against exact ones."""

import itertools
import json
import math

import numpy as np
import pytest

from grpo_hf.evaluation.statistics import (
    accuracy,
    compare,
    maj_at_every_k,
    maj_at_k,
    pass_at_every_k,
    pass_at_k,
)

COUNTS = [
    (right, total) for total in (1, 2, 5, 20, 200) for right in {0, 1, total // 3, total - 1, total}
]


def outcomes(right: int, total: int) -> list[bool]:
    return [True] * right + [False] * (total - right)


@pytest.mark.parametrize(("right", "total"), COUNTS)
def test_a_share_has_the_interval_that_every_evaluation_gives_it(right: int, total: int):
    """Compare with Jeffreys' interval, drawn independently; at an end it reaches to that end."""
    share = accuracy(outcomes(right, total))
    posterior = np.random.default_rng(7).beta(right + 0.5, total - right + 0.5, 200_000)
    low, high = np.percentile(posterior, (2.5, 97.5))
    low, high = min(low, right / total), max(high, right / total)
    assert (share.low, share.high) == pytest.approx((low, high), abs=0.01)
    assert (share.right, share.total, share.value) == (right, total, right / total)


@pytest.mark.long
@pytest.mark.parametrize("total", [10, 50, 200])
def test_the_interval_of_a_share_covers_the_truth_95_times_in_100(total: int):
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


@pytest.mark.parametrize(
    ("better", "worse", "same"), [(9, 4, 27), (30, 3, 7), (1, 1, 38), (1, 0, 4), (0, 0, 50)]
)
def test_the_paired_interval_is_the_posterior_of_the_changes(better: int, worse: int, same: int):
    """Draw the shares of each change as a posterior: a Dirichlet distribution of their counts.

    Jeffreys' prior has half a pair in each of the four cells, two of which are no change.
    """
    base, adapter = pairs(better, worse, same)
    rng = np.random.default_rng(5)
    gained, lost, _ = rng.dirichlet([better + 0.5, worse + 0.5, same + 1], 200_000).T
    low, high = np.percentile(gained - lost, (2.5, 97.5))
    result = compare(base, adapter)
    assert result.difference == pytest.approx((better - worse) / len(base))
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.01)


def test_prompts_that_do_not_change_make_the_interval_narrow():
    few, many = compare(*pairs(2, 1, 20)), compare(*pairs(2, 1, 200))
    assert many.high - many.low < (few.high - few.low) / 3
    same = compare(*pairs(0, 0, 50))
    assert same.difference == 0.0 and -0.08 < same.low < 0 < same.high < 0.08
    assert (same.base.right, same.adapter.right) == (25, 25)
    all_better = compare(*pairs(50, 0, 0))
    assert (all_better.difference, all_better.high) == (1.0, 1.0) and 0.85 < all_better.low < 1.0


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
    """Return how right the most frequent answers are: each as the share of its samples that is."""
    said = [answer for answer, _ in chosen if answer is not None]
    best = {answer for answer in said if said.count(answer) == max(map(said.count, said))}
    shares = []
    for answer in best:
        shares.append(np.mean([is_right for other, is_right in chosen if other == answer]))
    return float(np.mean(shares)) if shares else 0.0


def random_case(rng: np.random.Generator) -> tuple[list[list[str | None]], list[list[bool]]]:
    """Return the answers of one to three problems with up to eight samples, and which are right."""
    samples = int(rng.integers(1, 9))
    answers = []
    correct = []
    for _ in range(rng.integers(1, 4)):
        known = [None, "1", "2", "3", "4"][: rng.integers(1, 6)]
        # More than one answer may be right, where a reward says so.
        right = set(rng.choice(["1", "2", "3", "4"], size=rng.integers(0, 3), replace=False))
        row = [known[index] for index in rng.integers(0, len(known), samples)]
        answers.append(row)
        correct.append([answer in right for answer in row])
        # A reward may look at more than the final answer: at the length, for one.
        if rng.random() < 0.5:
            correct[-1] = [known and bool(rng.random() < 0.7) for known in correct[-1]]
    return answers, correct


def test_pass_at_k_and_maj_at_k_are_those_of_all_choices_in_200_random_cases():
    rng = np.random.default_rng(7)
    for _ in range(200):
        answers, correct = random_case(rng)
        n = len(answers[0])
        passes, majorities = pass_at_every_k(correct), maj_at_every_k(answers, correct)
        assert passes.shape == majorities.shape == (len(answers), n)
        for k in range(1, n + 1):
            for place, row in enumerate(answers):
                choices = list(
                    itertools.combinations(list(zip(row, correct[place], strict=True)), k)
                )
                any_right = [any(right for _, right in chosen) for chosen in choices]
                assert passes[place, k - 1] == pytest.approx(np.mean(any_right), abs=1e-12)
                voted = np.mean(list(map(by_majority, choices)))
                assert majorities[place, k - 1] == pytest.approx(voted, abs=1e-12)
            assert pass_at_k(correct, k) == pytest.approx(passes[:, k - 1].mean(), abs=1e-12)
            assert maj_at_k(answers, correct, k) == pytest.approx(majorities[:, k - 1].mean())


def test_a_vote_of_one_is_a_sample_where_equal_answers_are_not_equally_right():
    answers = [["7", "7", "8", "7"], ["1", "2", "2", "2"]]
    correct = [[True, False, False, False], [False, False, True, True]]
    assert maj_at_k(answers, correct, 1) == pass_at_k(correct, 1)


def test_many_samples_are_counted_without_overflow():
    """Compare with the limit of many samples, in which k samples are drawn independently."""
    answers = [["1"] * 120 + ["2"] * 80 + ["3"] * 80]
    correct = [[answer == "1" for answer in answers[0]]]
    p = 120 / 280
    wins = 0.0
    for ones, twos in itertools.product(range(4), repeat=2):
        threes = 3 - ones - twos
        if threes < 0:
            continue
        ways = math.factorial(3) / math.prod(map(math.factorial, (ones, twos, threes)))
        probability = ways * p**ones * ((1 - p) / 2) ** (3 - ones)
        most = max(ones, twos, threes)
        wins += probability * (ones == most) / [ones, twos, threes].count(most)
    assert maj_at_k(answers, correct, 3) == pytest.approx(wins, abs=5e-3)
    assert maj_at_k(answers, correct, 280) == pass_at_k(correct, 280) == pytest.approx(1.0)


def test_what_cannot_be_chosen():
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is {k} with 2 problems; expected k from 1"):
            pass_at_k([[True] * 5, [False] * 3], k)
