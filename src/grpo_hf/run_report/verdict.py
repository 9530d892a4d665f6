"""Whether the adapter of a run is better than its base, in a sentence or two."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ..evaluation.telling import cannot_tell
from ..run_files import HELD_OUT, HELD_OUT_SET
from .facts import Interval, Result

# The signs of gaming that make "better" a wrong word, and what the adapter may have learned.
_LEARNED = {
    "answer by place": "a fixed choice",
    "one answer everywhere": "a fixed choice",
    "several answers": "to name several",
}


def verdict(
    results: Sequence[Result],
    findings: Mapping[str, str] = MappingProxyType({}),
    *,
    standing: str = "",
) -> str:
    """Return in a sentence whether the adapter is better than the base, and how sure that is.

    Args:
        findings: what the watch for gaming says, by the name of the sign.
        standing: the last step of a run that has not ended, as a text.
    """
    if not results and standing:
        return (
            "Whether the adapter is better than the base is not known yet: the run has not ended, "
            f"and stands at {standing}. A recipe compares them at the end (eval_rows), and grpo-hf "
            "eval does it with the newest checkpoint."
        )
    if not results:
        return (
            "Whether the adapter is better than the base is not known: nothing was evaluated "
            "(eval_rows, or grpo-hf eval)."
        )
    first = results[0]
    where = f"On {first.problems:,} {first.name}" if first.name == HELD_OUT else f"On {first.name}"
    both = _both(first.base.value, first.adapter.value)
    alike = cannot_tell(first.base.value, first.adapter.value, "The reward")
    if alike is not None:
        # A reward without full marks pays parts alone.
        part = f" {_sentence(first.part.line)}." if first.part is not None else ""
        return f"{where}, {both}. {alike}{part}{_by_samples(results)}"
    difference = first.difference
    if difference is None:
        return f"{where}, {both}."
    if difference.low > 0:
        word = "The adapter is better"
    elif difference.high < 0:
        word = "The adapter is worse"
    else:
        word = "That is no difference that so few prompts can show"
    said = [word]
    if first.cut is not None and first.doubt:
        said = [f"{word}, but {first.doubt}", first.cut.cure()]
    if first.part is not None:
        said.append(_sentence(first.part.said(difference.low)))
    for name, learned in _LEARNED.items():
        if difference.low > 0 and name in findings:
            said.append(f"It may have learned {learned}: {findings[name]}")
    overlap = f" {first.overlap}" if first.overlap else ""
    if first.common:
        said.append(first.common)
    samples = _by_samples(results) if difference.low <= 0 <= difference.high else ""
    sentences = " ".join(f"{each.rstrip('.')}." for each in said)
    return f"{where}, {both}: {_points(difference)}. {sentences}{samples}{overlap}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _both(base: float, adapter: float) -> str:
    return f"{base:.1%} of the base's answers are right and {adapter:.1%} of the adapter's"


def _points(difference: Interval) -> str:
    return (
        f"{100 * difference.value:+.1f} points, 95% interval {100 * difference.low:+.1f} to "
        f"{100 * difference.high:+.1f}"
    )


def _by_samples(results: Sequence[Result]) -> str:
    """Return what samples of the held-out prompts say, where greedy answers cannot tell.

    A training samples, so that it moves them first.
    """
    for result in results:
        if result.summary is not None and result.summary.get("set") == HELD_OUT_SET:
            found = []
            for part in ("base", "adapter", "difference"):
                measures = result.summary.get(part) or {}
                found.append(Interval.of((measures.get("pass_at") or {}).get("1")))
            base, adapter, difference = found
            if base is not None and adapter is not None and difference is not None:
                both = _both(base.value, adapter.value)
                return f" Of answers that are sampled, {both}: {_points(difference)}."
    return (
        " Answers were compared greedily; grpo-hf eval RUN --samples 8 compares those that are "
        "sampled, which a training moves first."
    )
