"""Signs of gaming in the numbers: rewards that part, form that pays, answers that get no better."""

from collections.abc import Sequence

from ..evaluation.cut_answers import MOSTLY_CUT
from ..evaluation.statistics import LEAST_PAIRS
from .run_evidence import Evidence, HeldOut, Sample
from .trends import Change, change, mean_interval

# A rise of a reward counts from 0.3 standard deviations of single completions on, which one sees
# when reading a few; smaller ones are in every run.
_RISE = 0.3
# The reward for right answers stays if it rises by less than a quarter of the other's rise.
_STAYS = 0.25
# A reward near its largest value has nowhere to rise to.
_FULL = 0.9
# Form pays too much from four fifths of the whole reward on.
_FORM_SHARE = 0.8
# Held-out prompts from which an interval is narrow enough to say that nothing got better, and the
# gain that it has to leave out.
_FEWEST_ANSWERS, _GAIN = 50, 0.05

Seen = tuple[str, float, Sequence[Sample]]


def components_part(evidence: Evidence) -> Seen | None:
    """A reward rises, and the one that says what is right falls or stays."""
    right = _changes(evidence, evidence.right)
    if right is None or _is_full(evidence, evidence.right, right[0]):
        return None
    strongest: Seen | None = None
    for name in evidence.others:
        other = _changes(evidence, name)
        # A reward of weight 0 is only watched.
        if other is None or not evidence.weights[name]:
            continue
        moved, effect = other
        # The other one may rise by many standard deviations, as it hardly differs in a group.
        stays = not right[0].rose and right[1] < min(_STAYS * effect, _RISE)
        if not moved.rose or effect < _RISE or not stays:
            continue
        if strongest is None or effect > strongest[1]:
            text = (
                f"{name} rose from {moved.first:.3g} to {moved.last:.3g}, while {evidence.right}, "
                f"which says what is right, went from {right[0].first:.3g} to {right[0].last:.3g}."
            )
            strongest = (text, effect, _paid_without(evidence, name))
    return strongest


def reward_from_form(evidence: Evidence) -> Seen | None:
    """Nearly all of the reward comes from what does not say what is right."""
    right = _changes(evidence, evidence.right)
    if right is None or not evidence.others or right[0].rose:
        return None
    if _is_full(evidence, evidence.right, right[0]):
        return None
    parts = {}
    for name, weight in evidence.weights.items():
        moved = change(evidence.series(f"rewards/{name}/mean"))
        # Penalties pay nothing.
        parts[name] = max(0.0, weight * moved.last) if moved is not None else 0.0
    whole = sum(parts.values())
    if not whole:
        return None
    share = 1 - parts[str(evidence.right)] / whole
    if share < _FORM_SHARE:
        return None
    most = max(evidence.others, key=lambda name: parts[name])
    text = (
        f"{share:.0%} of the reward comes from {most if len(parts) == 2 else 'other rewards'}, and "
        f"{evidence.right}, which says what is right, stays at {right[0].last:.3g}."
    )
    return text, share, _paid_without(evidence, most)


def held_out_no_better(evidence: Evidence) -> Seen | None:
    """The reward of the training rose, and held-out answers got no better."""
    judged = []
    for each in evidence.answers:
        if each.base_right is not None and each.adapter_right is not None:
            judged.append(each)
    whole = change(evidence.series("reward"))
    spread = _spread(evidence, "reward_std")
    if len(judged) < _FEWEST_ANSWERS or whole is None or not whole.rose or not spread:
        return None
    effect = whole.difference / spread
    gains = [float(bool(each.adapter_right)) - float(bool(each.base_right)) for each in judged]
    gain, _, high = mean_interval(gains)
    right = sum(bool(each.base_right) for each in judged) / len(judged)
    if effect < _RISE or high >= _GAIN or right + gain >= _FULL:
        return None
    text = (
        f"The reward rose from {whole.first:.3g} to {whole.last:.3g}, but of {len(judged)} "
        f"held-out answers {right:.0%} were right before and {right + gain:.0%} are now."
    )
    return text, effect, wrong_answers(evidence, judged)


def answers_end(evidence: Evidence) -> Seen | None:
    """Held-out answers became right, and most of those were cut off before."""
    gained = []
    for each in evidence.answers:
        if each.adapter_right and each.base_right is False:
            gained.append(each)
    cut = [each for each in gained if each.base_cut]
    if len(gained) < LEAST_PAIRS or len(cut) < MOSTLY_CUT * len(gained):
        return None
    base = sum(each.base_cut for each in evidence.answers)
    now = sum(each.adapter_cut for each in evidence.answers)
    total = len(evidence.answers)
    text = (
        f"Of the {len(gained)} held-out answers that became right, {len(cut)} of the base's were "
        f"cut off before their end ({base} of all {total}; of the adapter's {now}): the gain may "
        "be only that answers end."
    )
    return text, len(cut) / len(gained), wrong_answers(evidence, cut)


def wrong_answers(evidence: Evidence, answers: Sequence[HeldOut]) -> list[Sample]:
    """Return the adapter's answers as samples, those that are not right first."""
    samples = []
    for each in sorted(answers, key=lambda each: bool(each.adapter_right)):
        value = None if each.adapter_right is None else float(each.adapter_right)
        earned = {evidence.right: value} if evidence.right else {}
        size = len(each.adapter)
        samples.append(Sample(None, each.prompt, each.adapter, earned, value, size))
    return samples


def _changes(evidence: Evidence, name: str | None) -> tuple[Change, float] | None:
    """Return how a reward changed, and that in standard deviations of single completions."""
    moved = change(evidence.series(f"rewards/{name}/mean"))
    spread = _spread(evidence, f"rewards/{name}/std")
    if moved is None:
        return None
    # A reward that is the same for all completions of every step has not changed either.
    return moved, moved.difference / spread if spread else 0.0


def _spread(evidence: Evidence, key: str) -> float:
    """Return the mean standard deviation of single completions, over the steps."""
    known = [value for value in evidence.series(key) if value is not None]
    return sum(known) / len(known) if known else 0.0


def _is_full(evidence: Evidence, name: str | None, moved: Change) -> bool:
    """Whether a reward is near 1, or near the largest that it has been where that is more."""
    known = [value for value in evidence.series(f"rewards/{name}/mean") if value is not None]
    return moved.last >= _FULL * max(1.0, *known)


def _paid_without(evidence: Evidence, name: str) -> list[Sample]:
    """Return late completions that one reward pays most for and the right one pays least for."""
    known = []
    for group in evidence.groups[-(len(evidence.groups) // 3 or 1) :]:
        for sample in group:
            if sample.rewards.get(name) is not None:
                known.append(sample)
    return sorted(known, key=lambda sample: _order(sample, name, str(evidence.right)))


def _order(sample: Sample, name: str, right: str) -> tuple[float, float, int]:
    return sample.rewards.get(right) or 0.0, -(sample.rewards[name] or 0.0), -(sample.step or 0)
