"""Tests of intervals: how often they hold the truth, and what they are where that is known."""

import math

import numpy as np
import pytest

from grpo_hf.evaluation.intervals import Estimate, difference_estimates, share_estimates

SAMPLES = 8
KS = (1, 4, 8)
# Of 4,000 evaluations a share has a standard error of 0.34%.
_MANY = 4000


def beta_quantile(a: float, b: float, probability: float) -> float:
    """Return a quantile of a beta distribution, from its density on a fine grid."""
    grid = (np.arange(400_000) + 0.5) / 400_000
    density = np.exp((a - 1) * np.log(grid) + (b - 1) * np.log1p(-grid))
    share = np.cumsum(density) / density.sum()
    return float(grid[np.searchsorted(share, probability)])


@pytest.mark.parametrize(("right", "total"), [(8, 10), (0, 30), (1, 50), (150, 200), (50, 50)])
def test_the_interval_of_a_share_is_jeffreys(right: int, total: int):
    values = np.repeat([1.0, 0.0], [right, total - right])[:, None]
    (found,) = share_estimates(values)
    low, high = (beta_quantile(right + 0.5, total - right + 0.5, p) for p in (0.025, 0.975))
    assert found.value == right / total
    assert found.low == pytest.approx(low if right else 0.0, abs=0.006)
    assert found.high == pytest.approx(high if right < total else 1.0, abs=0.006)


def test_a_difference_of_nothing_has_an_interval():
    (found,) = difference_estimates(np.zeros((50, 1)))
    assert found.value == 0.0
    assert found.low == pytest.approx(-found.high, abs=0.004) and 0.02 < found.high < 0.08


def test_problems_are_resampled_together():
    """Check that a column's interval does not depend on the columns beside it."""
    rng = np.random.default_rng(0)
    columns = rng.random((40, 3))
    together = share_estimates(columns)
    for column, found in enumerate(together):
        (alone,) = share_estimates(columns[:, [column]])
        assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"


def simulated(problems: int, a: float, b: float, rng: np.random.Generator) -> tuple:
    """Return the values of one evaluation: of the adapter, and of adapter − base.

    Problems are as hard as a beta distribution says, and the adapter solves a tenth of what the
    base does not. Greedy answers of both agree more often than by chance.
    """
    base = rng.beta(a, b, problems)
    adapter = base + 0.1 * (1 - base)
    luck = rng.random(problems)
    other = np.where(rng.random(problems) < 0.7, luck, rng.random(problems))
    greedy = np.stack([luck < adapter, other < base])
    counts = np.stack([rng.binomial(SAMPLES, adapter), rng.binomial(SAMPLES, base)])
    passes = passes_of()[counts]
    values = np.concatenate([greedy[..., None], passes], axis=-1).astype(float)
    return values[0], values[0] - values[1]


def passes_of() -> np.ndarray:
    """Return pass@k for each number of right samples (arXiv 2107.03374, equation 1)."""
    table = []
    for right in range(SAMPLES + 1):
        wrong = SAMPLES - right
        table.append([1 - math.comb(wrong, k) / math.comb(SAMPLES, k) for k in KS])
    return np.array(table)


def truth_of(a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the expected values of `simulated`, from the distribution of difficulties."""
    base = (np.arange(1_000_000) + 0.5) / 1_000_000
    weights = np.exp((a - 1) * np.log(base) + (b - 1) * np.log1p(-base))
    weights /= weights.sum()
    adapter = base + 0.1 * (1 - base)
    expected = []
    for p in (adapter, base):
        expected.append([(weights * p).sum()] + [(weights * (1 - (1 - p) ** k)).sum() for k in KS])
    return np.array(expected[0]), np.array(expected[0]) - np.array(expected[1])


def coverage(problems: int, a: float, b: float, evaluations: int) -> np.ndarray:
    """Return how often the intervals hold the truth: (shares and differences, 1 + pass@k)."""
    rng = np.random.default_rng(problems)
    truth = truth_of(a, b)
    covered = np.zeros((2, 1 + len(KS)))
    for _ in range(evaluations):
        values = simulated(problems, a, b, rng)
        for row, estimates_of in enumerate((share_estimates, difference_estimates)):
            for column, found in enumerate(estimates_of(values[row])):
                covered[row, column] += found.low <= truth[row][column] <= found.high
    return covered / evaluations


@pytest.mark.parametrize(("a", "b"), [(1, 4), (2, 2)])
def test_intervals_hold_the_truth(a: float, b: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("grpo_hf.evaluation.intervals._DRAWS", 3000)
    found = coverage(60, a, b, 100)
    # Three standard errors of 100 evaluations.
    assert np.all(np.abs(found - 0.95) < 0.066), found


@pytest.mark.parametrize(
    ("prompts", "most"), [(6, 0.08), (9, 0.085), (10, 0.115), (16, 0.085), (21, 0.085), (60, 0.08)]
)
def test_of_equal_models_few_comparisons_call_one_better(
    prompts: int, most: float, monkeypatch: pytest.MonkeyPatch
):
    """Count out every outcome: so many prompts won, so many lost, each as often as the other."""
    monkeypatch.setattr("grpo_hf.evaluation.intervals._DRAWS", 4000)
    found: dict[tuple[int, int], float] = {}
    for won in range(1, prompts + 1):
        for lost in range(min(won, prompts - won + 1)):
            # From 5 standard errors on it is clear.
            clear = won - lost > 5 * math.sqrt(won + lost)
            if clear or _is_above(won, lost, prompts):
                found[won, lost] = math.comb(prompts, won) * math.comb(prompts - won, lost)
    shares = []
    # From a change of a fiftieth of the prompts to one of all.
    for changed in np.linspace(0.02, 1.0, 50):
        called_better = 0.0
        for (won, lost), ways in found.items():
            same = prompts - won - lost
            called_better += ways * (changed / 2) ** (won + lost) * (1 - changed) ** same
        shares.append(2 * called_better)
    assert 0.04 < max(shares) < most


def _is_above(won: int, lost: int, prompts: int) -> bool:
    values = np.array([1.0] * won + [-1.0] * lost + [0.0] * (prompts - won - lost))
    (estimate,) = difference_estimates(values[:, None])
    return estimate.low > 0


@pytest.mark.slow
@pytest.mark.parametrize("problems", [50, 100, 300])
def test_intervals_hold_the_truth_in_thousands_of_evaluations(
    problems: int, monkeypatch: pytest.MonkeyPatch
):
    """Check hard, mixed and equally hard problems, and problems that are nearly all solved.

    pass@8 of equally hard problems is next to 1, which leaves hardly anything to see, as do
    problems that are nearly all solved. There intervals hold the truth more often than they say,
    and only that they do not hold it less often is checked.
    """
    monkeypatch.setattr("grpo_hf.evaluation.intervals._DRAWS", 4000)
    mixed = np.array([coverage(problems, a, b, _MANY) for a, b in ((1, 4), (2, 2))])
    even = coverage(problems, 20, 20, _MANY)
    solved = coverage(problems, 8, 2, _MANY)
    for found in (mixed, even, solved):
        print(problems, np.round(found, 4).tolist())
    # pass@8 of equally hard problems is apart.
    measured = np.concatenate([mixed.reshape(-1), even[:, :-1].reshape(-1)])
    # Two standard errors more: each number is an estimate itself.
    assert np.all(np.abs(measured - 0.95) <= 0.02 + 0.007), measured
    assert np.abs(measured.mean() - 0.95) <= 0.005
    assert np.all(even[:, -1] >= 0.93), even
    assert np.all(solved >= 0.93), solved
