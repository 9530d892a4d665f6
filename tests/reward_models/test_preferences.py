"""Preferences are compared with brute force, the loss with its equation in float64.

Calibration is compared with bins worked out by hand.
"""

import math

import pytest
import torch

from grpo_hf.errors import DataError
from grpo_hf.reward_models.preferences import (
    Pair,
    ScoredGroup,
    checked,
    pair_loss,
    pair_report,
    pairs_of,
)

GROUPS = [
    ScoredGroup("p", ["a", "b", "c", "d"], [1.0, 3.0, None, 1.0]),
    ScoredGroup("q", ["e", "f"], [0.0, 0.5]),
]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_every_pair_of_a_group_better_first() -> None:
    expected = {("p", "b", "a", 1.0), ("p", "b", "d", 1.0), ("q", "f", "e", 0.25)}
    pairs = pairs_of(GROUPS, margin=0.5)
    assert {(p.prompt, p.chosen, p.rejected, p.margin) for p in pairs} == expected
    assert all(pair.margin == 0 for pair in pairs_of(GROUPS))


def test_a_limit_draws_pairs_of_each_group_by_the_seed() -> None:
    group = ScoredGroup("p", list(range(8)), [float(n) for n in range(8)])
    everything = {(pair.chosen, pair.rejected) for pair in pairs_of([group])}
    assert everything == {(a, b) for a in range(8) for b in range(a)}
    drawn = [pairs_of([group, group], limit=5, seed=seed) for seed in (0, 0, 1)]
    assert len(drawn[0]) == 10 and drawn[0] == drawn[1] != drawn[2]
    assert {(pair.chosen, pair.rejected) for pair in drawn[0]} <= everything
    assert len(set(drawn[0][:5])) == 5


def test_the_loss_is_bradley_terrys() -> None:
    chosen, rejected, margins = [0.3, -2.0, 5.0], [1.1, -2.5, -60.0], [0.0, 1.0, 0.5]
    each = [
        -math.log(sigmoid(c - r - m)) for c, r, m in zip(chosen, rejected, margins, strict=True)
    ]
    scores = [torch.tensor(values, dtype=torch.float64) for values in (chosen, rejected, margins)]
    assert pair_loss(*scores).item() == pytest.approx(sum(each) / 3, rel=1e-12)
    far = torch.tensor([-500.0], dtype=torch.float64)
    assert pair_loss(far, -far).item() == pytest.approx(1000)  # not inf


def test_the_gradient_is_the_probability_of_being_wrong() -> None:
    chosen = torch.tensor([0.4], requires_grad=True)
    pair_loss(chosen, torch.tensor([1.0])).backward()
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(-sigmoid(0.6), rel=1e-6)


def test_accuracy_calibration_and_brier_by_hand() -> None:
    odds = [1.0, 1.0, -1.0, 3.0]
    report = pair_report(torch.tensor(odds), torch.zeros(4))
    assert (report.accuracy.right, report.accuracy.total) == (3, 4)
    sure, surer = sigmoid(1), sigmoid(3)  # two bins: three bets of which two are right, and one
    assert report.calibration_error == pytest.approx(
        3 / 4 * abs(2 / 3 - sure) + 1 / 4 * (1 - surer), abs=1e-7
    )
    assert report.brier == pytest.approx(
        sum((1 - sigmoid(value)) ** 2 for value in odds) / 4, abs=1e-7
    )


@pytest.mark.long
def test_probabilities_that_are_true_are_calibrated_and_exaggerated_ones_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    odds = torch.randn(20_000, generator=generator) * 2
    first_is_better = torch.rand(20_000, generator=generator) < odds.sigmoid()
    truth = torch.where(first_is_better, odds, -odds)  # as pairs: the better one first
    assert pair_report(truth, torch.zeros(20_000)).calibration_error < 0.015
    assert pair_report(3 * truth, torch.zeros(20_000)).calibration_error > 0.1


def test_a_tie_is_no_right_answer_and_costs_a_quarter() -> None:
    report = pair_report(torch.ones(2), torch.ones(2))
    assert report.accuracy.right == 0 and report.brier == 0.25 and report.calibration_error == 0.5


@pytest.mark.parametrize(
    ("pairs", "came"),
    [
        ([], "no pairs"),
        ([{"prompt": "", "chosen": "", "rejected": ""}], "a dict"),
        ([("", "")], "tuple"),
    ],
)
def test_what_is_no_pair_is_named(pairs: list, came: str) -> None:
    with pytest.raises(DataError, match=f"{came}.*expected one or more Pair"):
        checked(pairs)
    assert checked([Pair("", "a", "b")])
