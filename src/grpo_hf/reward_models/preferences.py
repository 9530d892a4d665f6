"""Preferences: pairs of completions, a loss to learn from them, and a report on held-out pairs.

P pairs have two tensors of scores: one (P,) for the chosen, one (P,) for the rejected completions.
"""

import operator
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid

from ..errors import DataError
from ..evaluation.statistics import Accuracy, accuracy

# Bins of confidence, from 0.5 to 1. With fewer, errors of both signs in one bin would cancel out;
# with more, a few hundred pairs would leave bins of chance.
_BINS = 10


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt: the chosen one is better than the rejected one.

    Args:
        prompt, chosen, rejected: texts, or lists of messages.
        margin: the least difference that their scores should have.
    """

    prompt: Any
    chosen: Any
    rejected: Any
    margin: float = 0.0


class ScoredGroup(NamedTuple):
    """Completions of one prompt with their rewards.

    A completion without a reward (None) is in no pair.
    """

    prompt: Any
    completions: Sequence[Any]
    scores: Sequence[float | None]


@dataclass(frozen=True)
class PairReport:
    """How well scores tell held-out pairs apart, and how well they know when they are right.

    The scores give p = σ(r_chosen − r_rejected) as the probability that the chosen completion is
    the better one.

    Args:
        accuracy: share of pairs whose chosen completion scores higher, with its 95% interval.
        calibration_error: expected calibration error, 0 at best.
        brier: mean squared distance of p from 1; 0.25 if p is always 0.5.
    """

    accuracy: Accuracy
    calibration_error: float
    brier: float


def pairs_of(
    groups: Iterable[ScoredGroup], *, limit: int | None = None, margin: float = 0.0, seed: int = 0
) -> list[Pair]:
    """Return the pairs (better, worse) of each group; equal scores make no pair.

    K completions make up to K(K − 1)/2 pairs, which is how InstructGPT uses its rankings (arXiv
    2203.02155, section 3.5).

    Args:
        groups: completions with their rewards.
        limit: pairs of a group at most; a larger group has pairs drawn at random.
        margin: a pair's margin, per unit of difference between the two rewards.
        seed: of the draw.
    """
    rng = random.Random(seed)
    pairs: list[Pair] = []
    for group in groups:
        pairs_of_group = _pairs_of_group(group, margin)
        if limit is not None and len(pairs_of_group) > limit:
            pairs_of_group = rng.sample(pairs_of_group, limit)
        pairs += pairs_of_group
    return pairs


def _pairs_of_group(group: ScoredGroup, margin: float) -> list[Pair]:
    prompt, completions, scores = group
    judged = []
    for score, text in zip(scores, completions, strict=True):
        if score is not None:
            judged.append((score, text))
    # Best first, so that the first of two is never the worse one. Texts may be lists of messages,
    # which have no order.
    judged.sort(key=operator.itemgetter(0), reverse=True)
    pairs = []
    for (better, chosen), (worse, rejected) in combinations(judged, 2):
        if better > worse:
            pairs.append(Pair(prompt, chosen, rejected, margin * (better - worse)))
    return pairs


def checked(pairs: Sequence[Pair]) -> Sequence[Pair]:
    """Return the pairs; raise if there are none.

    Raises:
        DataError: there are no pairs, or something among them is not a `Pair`.
    """
    wrong = "no pairs" if not pairs else None
    for pair in pairs:
        if not isinstance(pair, Pair):
            wrong = f"a {type(pair).__name__} among the pairs"
            break
    if wrong is not None:
        raise DataError(
            f"{wrong}; expected one or more Pair(prompt, chosen, rejected), or what pairs_of makes."
        )
    return pairs


class PairColumns(NamedTuple):
    """The fields of pairs as lists, in the order of the pairs."""

    prompts: list[Any]
    chosen: list[Any]
    rejected: list[Any]
    margins: list[float]


def columns_of_pairs(pairs: Sequence[Pair]) -> PairColumns:
    """Return the fields of pairs as lists.

    Raises:
        DataError: as `checked`.
    """
    columns = PairColumns([], [], [], [])
    for pair in checked(pairs):
        columns.prompts.append(pair.prompt)
        columns.chosen.append(pair.chosen)
        columns.rejected.append(pair.rejected)
        columns.margins.append(pair.margin)
    return columns


def pair_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Return Bradley-Terry's negative log-likelihood of the preferences, its mean over pairs.

        L = −log σ(r_chosen − r_rejected − m)

    Source: InstructGPT (arXiv 2203.02155, equation 1) with the margin of Llama 2 (arXiv 2307.09288,
    equation 2).

    Args:
        chosen, rejected: scores (P,).
        margin: m, a number or (P,).
    """
    # logsigmoid stays finite where the logarithm of a sigmoid would be −inf.
    return -logsigmoid(chosen - rejected - margin).mean()


def pair_report(chosen: Tensor, rejected: Tensor) -> PairReport:
    """Return the accuracy and calibration of scores on pairs.

    With p = σ(r_chosen − r_rejected), the model bets on one of the two completions with confidence
    max(p, 1 − p). The expected calibration error is

        Σ_b |b|/P · |accuracy(b) − confidence(b)|

    over ten bins b of confidence (Guo et al., arXiv 1706.04599, equation 3). The Brier score (Brier
    1950) is the mean of (1 − p)².

    Args:
        chosen, rejected: scores (P,).
    """
    probability = (chosen.double() - rejected.double()).sigmoid()  # (P,)
    # A tie is not a right answer.
    right = (probability > 0.5).double()
    confidence = probability.maximum(1 - probability)
    # A confidence of exactly 1 belongs to the last bin.
    bins = ((confidence - 0.5) * 2 * _BINS).long().clamp(max=_BINS - 1)
    gaps = []
    for bin_number in range(_BINS):
        # The sum over a bin is |b| · (accuracy(b) − confidence(b)).
        gaps.append((right - confidence)[bins == bin_number].sum().abs().item())
    return PairReport(
        accuracy(right.bool().tolist()),
        sum(gaps) / len(probability),
        ((1 - probability) ** 2).mean().item(),
    )
