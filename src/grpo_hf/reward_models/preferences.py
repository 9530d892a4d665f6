"""Preferences: pairs of completions, the loss that learns from them, and how well scores tell them apart.

P pairs: two scores (P,) each, of the chosen and of the rejected completions.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid

from ..errors import DataError
from ..evaluation.statistics import Accuracy, accuracy

_BINS = 10  # of confidence, from 0.5 to 1


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt, the chosen one better; texts, or lists of messages.

    `margin` is how far apart at least the scores should be, beyond the better one being higher.
    """

    prompt: Any
    chosen: Any
    rejected: Any
    margin: float = 0.0


class ScoredGroup(NamedTuple):
    """Completions of one prompt with their rewards; a completion without one (None) is left out."""

    prompt: Any
    completions: Sequence[Any]
    scores: Sequence[float | None]


@dataclass(frozen=True)
class PairReport:
    """How well scores tell held-out pairs apart, and whether σ(r_chosen − r_rejected) is the probability it claims.

    Args:
        accuracy: share of pairs whose chosen completion scores higher, with its 95% interval.
        calibration_error: expected calibration error, 0 at best.
        brier: mean squared distance of that probability from 1; 0.25 for one that is always 0.5.
    """

    accuracy: Accuracy
    calibration_error: float
    brier: float


def pairs_of(
    groups: Iterable[ScoredGroup], *, limit: int | None = None, margin: float = 0.0, seed: int = 0
) -> list[Pair]:
    """All pairs (better, worse) of each group; equal scores make none.

    K completions make up to K(K − 1)/2 pairs, which is how InstructGPT uses its rankings (arXiv 2203.02155, section
    3.5).

    Args:
        limit: at most as many pairs of a group, drawn at random.
        margin: of a pair, per unit that the scores are apart.
        seed: of the draw.
    """
    rng = random.Random(seed)
    found = []
    for prompt, completions, scores in groups:
        judged = [
            (score, text)
            for score, text in zip(scores, completions, strict=True)
            if score is not None
        ]
        ranked = sorted(judged, key=lambda one: one[0], reverse=True)
        pairs = [
            Pair(prompt, chosen, rejected, margin * (better - worse))
            for (better, chosen), (worse, rejected) in combinations(ranked, 2)
            if better > worse
        ]
        found += pairs if limit is None or len(pairs) <= limit else rng.sample(pairs, limit)
    return found


def checked(pairs: Sequence[Pair]) -> Sequence[Pair]:
    """The pairs, if they are some.

    Raises:
        DataError: there are none, or one is something else.
    """
    wrong = next((pair for pair in pairs if not isinstance(pair, Pair)), None)
    if wrong is not None or not pairs:
        came = "no pairs" if wrong is None else f"a {type(wrong).__name__} among the pairs"
        raise DataError(
            f"{came}; expected one or more Pair(prompt, chosen, rejected), or what pairs_of makes."
        )
    return pairs


def pair_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Bradley-Terry's negative log-likelihood of the preferences, its mean over pairs.

    L = −log σ(r_chosen − r_rejected − m); InstructGPT (arXiv 2203.02155, equation 1) with the margin of Llama 2
    (arXiv 2307.09288, equation 2).

    Args:
        chosen, rejected: scores (P,).
        margin: m, a number or (P,).
    """
    return -logsigmoid(chosen - rejected - margin).mean()


def pair_report(chosen: Tensor, rejected: Tensor) -> PairReport:
    """Accuracy and calibration of scores (P,) on pairs.

    With p = σ(r_chosen − r_rejected), the model bets on one of the two with confidence max(p, 1 − p). The expected
    calibration error (Guo et al., arXiv 1706.04599, equation 3) is Σ_b |b|/P · |accuracy(b) − confidence(b)| over ten
    bins of confidence, and the Brier score (Brier 1950) the mean of (1 − p)².
    """
    probability = (chosen.double() - rejected.double()).sigmoid()  # (P,)
    right = (probability > 0.5).double()
    confidence = probability.maximum(1 - probability)
    bins = ((confidence - 0.5) * 2 * _BINS).long().clamp(max=_BINS - 1)
    gaps = [(right - confidence)[bins == bin].sum().abs().item() for bin in range(_BINS)]
    return PairReport(
        accuracy(right.bool().tolist()),
        sum(gaps) / len(probability),
        ((1 - probability) ** 2).mean().item(),
    )
