"""Texts of a run as the page shows them: rollouts with their credit, answers before and after."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ..reporting.credit_display import PICTURES, Piece, pieces, share, step_rewards, summary
from ..reporting.token_credit import Completion, Group
from .record import Rollout, Row, RunRecord

# How many rollouts over the training are shown, and how many completions of the run at each end.
_MOMENTS = 5
_EXTREMES = 3
# Prompts that came back, and how often each is shown.
_PROMPTS = 2
_TIMES = 4
# Evaluations from which the answer to a held-out prompt is shown.
_EVALUATIONS = 8
# Answers of each kind that are shown.
_ANSWERS = 5
# Longer texts are cut: what matters shows, and the page stays small.
_MOST_CHARACTERS = 3000

Moment = TypeVar("Moment")


@dataclass(frozen=True)
class Segment:
    """Neighbouring tokens of one advantage.

    Args:
        share: of the largest advantage of the group, from -1 to 1.
        ends_step: whether the next token has another advantage.
        step: the reward of the step that ends here, in words; nothing where none does.
        special: whether it is a token such as the end of the turn.
    """

    text: str
    advantage: float
    share: float
    ends_step: bool
    special: bool
    step: str = ""


@dataclass(frozen=True)
class Sample:
    """A completion.

    Args:
        anchor: the id of its element, for links.
        title: where it comes from.
        note: its reward and advantages in words.
        segments: its text with its credit; where that is not known, one segment without.
        cut: how many characters are not shown.
    """

    anchor: str
    title: str
    note: str
    segments: list[Segment]
    cut: int = 0


@dataclass(frozen=True)
class Shown:
    """A prompt with completions to it.

    Args:
        title: where it comes from.
        rewards: of the completion, by name, where they are known.
    """

    title: str
    prompt: str
    samples: list[Sample]
    rewards: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """What became of the answers to held-out prompts.

    Args:
        name: of the kind, for links.
        count: of all of them; `shown` has the first few.
    """

    name: str
    title: str
    count: int
    shown: list[Shown]


def moments(run: RunRecord, prefix: str) -> list[Shown]:
    """Return the best and the worst completion of rollouts from the first to the last step."""
    shown = []
    for rollout in _spread(run.rollouts, _MOMENTS):
        shown.append(_ends_of(rollout, f"Step {rollout.step}", prefix))
    return shown


def _spread(moments: Sequence[Moment], most: int) -> list[Moment]:
    """Return the first, the last and evenly chosen ones between them.

    >>> _spread([1, 2, 3, 4, 5], 3), _spread([1, 2], 3), _spread([], 3)
    ([1, 3, 5], [1, 2], [])
    """
    last = len(moments) - 1
    chosen = {round(number * last / (most - 1)) for number in range(most)}
    return [moments[index] for index in sorted(chosen)] if moments else []


def same_prompts(run: RunRecord, prefix: str) -> list[list[Shown]]:
    """Return prompts that came back, each at several steps."""
    by_prompt: dict[str, list[Rollout]] = {}
    for rollout in run.rollouts:
        by_prompt.setdefault(rollout.prompt, []).append(rollout)
    again = [group for group in by_prompt.values() if len(group) > 1]
    again.sort(key=len, reverse=True)
    shown = []
    for group in again[:_PROMPTS]:
        times = []
        for rollout in _spread(group, _TIMES):
            times.append(_ends_of(rollout, f"Step {rollout.step}", f"{prefix}again-"))
        shown.append(times)
    return shown


def extremes(run: RunRecord, prefix: str) -> tuple[list[Shown], list[Shown]]:
    """Return the completions with the highest and with the lowest rewards of the run."""
    ranked = []
    for rollout in run.rollouts:
        for index, reward in enumerate(rollout.rewards):
            if reward is not None:
                ranked.append((reward, rollout.step, index, rollout))
    # Of equal ones the latest: it says more of what the run has become.
    best = sorted(ranked, key=lambda one: (-one[0], -one[1], one[2]))
    worst = sorted(ranked, key=lambda one: (one[0], -one[1], one[2]))
    found = []
    for name, order in (("best", best), ("worst", worst)):
        shown: list[Shown] = []
        seen: set[str] = set()
        for _, step, index, rollout in order:
            if len(shown) == _EXTREMES:
                break
            # Another prompt each: eight equal answers to one say no more than one.
            if rollout.prompt not in seen:
                seen.add(rollout.prompt)
                sample = _sample(rollout, index, f"{prefix}{name}-")
                shown.append(Shown(f"Step {step}", _shown_prompt(rollout.prompt), [sample]))
        found.append(shown)
    return found[0], found[1]


def _ends_of(rollout: Rollout, title: str, prefix: str) -> Shown:
    """Return the best and the worst completion of a group, or its first where none is better."""
    judged = []
    for index, reward in enumerate(rollout.rewards):
        if reward is not None:
            judged.append((reward, index))
    chosen = [0]
    if judged:
        best = max(judged, key=lambda one: (one[0], -one[1]))
        worst = min(judged)
        chosen = [best[1], worst[1]]
        if best[0] == worst[0]:
            chosen = [best[1]]
            title += f": all {len(judged)} earned the same"
    ends = [_sample(rollout, index, prefix) for index in chosen]
    return Shown(title, _shown_prompt(rollout.prompt), ends)


def _sample(rollout: Rollout, index: int, prefix: str) -> Sample:
    completions = [_completion(row) for row in rollout.completions()]
    scale = Group(rollout.step, rollout.prompt, completions).scale
    completion = completions[index]
    segments, cut = _cut(_segments(completion, scale))
    return Sample(
        anchor=f"{prefix}{rollout.step}-{index + 1}",
        title=f"completion {index + 1}",
        note=summary(completion),
        segments=segments,
        cut=cut,
    )


def _completion(row: Row) -> Completion:
    # Later versions may write more of a completion.
    steps = row.get("steps")
    return Completion(
        row["tokens"],
        row["advantages"],
        row["special"],
        row["reward"],
        steps=steps if isinstance(steps, dict) else {},
    )


def _segments(completion: Completion, scale: float) -> list[Segment]:
    """Join neighbouring tokens that have the same advantage."""
    joined: list[Segment] = []
    runs: list[list[Piece]] = []
    for piece in pieces(completion):
        last = runs[-1][-1] if runs else None
        # What ends a step ends its segment, and the step's reward stands there.
        if last and not last.rewards and _credit_of(last) == _credit_of(piece):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    for same in runs:
        first, last = same[0], same[-1]
        if joined and first.starts_step:
            joined[-1] = replace(joined[-1], ends_step=True)
        text = "".join(piece.text for piece in same)
        step = step_rewards(last.rewards) if last.rewards else ""
        portion = share(first.advantage, scale)
        joined.append(Segment(text, first.advantage, portion, False, first.special, step))
    return joined


def _credit_of(piece: Piece) -> tuple[float, bool]:
    return piece.advantage, piece.special


def plain(text: str) -> tuple[list[Segment], int]:
    """Return a text without credit, and how many characters of it are not shown."""
    as_completion = Completion([text], [0.0], [], None)
    return _cut(_segments(as_completion, 0.0))


def _cut(segments: list[Segment]) -> tuple[list[Segment], int]:
    """Return the first characters of a text, and how many are left out."""
    kept: list[Segment] = []
    room = _MOST_CHARACTERS
    length = sum(len(segment.text) for segment in segments)
    for segment in segments:
        if room <= 0:
            break
        text = segment.text[:room]
        room -= len(text)
        kept.append(replace(segment, text=text))
    return kept, max(0, length - _MOST_CHARACTERS)


def _shown_prompt(prompt: Any) -> str:
    """Return a prompt as it is shown: of a long one the beginning, and the end, which asks."""
    text = prompt_text(prompt).translate(PICTURES)
    left_out = len(text) - _MOST_CHARACTERS
    if left_out <= 0:
        return text
    start, end = text[: _MOST_CHARACTERS // 2], text[-_MOST_CHARACTERS // 2 :]
    return f"{start}\n… {left_out:,} more characters …\n{end}"


def prompt_text(prompt: Any) -> str:
    """Return a prompt or completion as one text; of a conversation, each message with its role."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list):
        return str(prompt)
    parts = []
    for message in prompt:
        if isinstance(message, dict):
            parts.append(f"{message.get('role', '?')}: {message.get('content', '')}")
        else:
            parts.append(str(message))
    # What a single user asks needs no role, as it is what all ask.
    if len(parts) == 1:
        return parts[0].removeprefix("user: ")
    return "\n\n".join(parts)


def final_changes(run: RunRecord, prefix: str) -> list[Change]:
    """Return what became of the held-out prompts of the comparison at the end of a run."""
    rows = []
    for row in run.answers:
        base, adapter = row["base"], row["adapter"]
        rows.append(
            {
                "prompt": row.get("prompt"),
                "gold": row.get("gold"),
                "base": (base.get("answer"), base.get("right"), base.get("cut")),
                "adapter": (adapter.get("answer"), adapter.get("right"), adapter.get("cut")),
            }
        )
    return _changes(rows, f"{prefix}final")


def changes_of_set(summary: Row, prefix: str) -> list[Change]:
    """Return what became of the problems of an evaluation."""
    rows = []
    for row in summary["rows"]:
        shown: Row = {"prompt": row.get("prompt"), "gold": row.get("gold")}
        for side in ("base", "adapter"):
            found = row.get(side) or {}
            shown[side] = (found.get("greedy"), found.get("greedy_right"), found.get("greedy_cut"))
        rows.append(shown)
    return _changes(rows, prefix)


_KINDS = (
    ("gained", "Right only with the adapter", (False, True)),
    ("lost", "Right only without it", (True, False)),
    ("wrong", "Wrong with both", (False, False)),
    ("kept", "Right with both", (True, True)),
)


def _changes(rows: Iterable[Row], prefix: str) -> list[Change]:
    found: dict[str, list[tuple[int, Row]]] = {name: [] for name, _, _ in _KINDS}
    for number, row in enumerate(rows, 1):
        for name, _, (base, adapter) in _KINDS:
            if row["base"][1] is base and row["adapter"][1] is adapter:
                found[name].append((number, row))
    if not any(found.values()):
        return []
    changes = []
    for name, title, _ in _KINDS:
        shown = [_answered(number, row, prefix) for number, row in found[name][:_ANSWERS]]
        changes.append(Change(f"{prefix}-{name}", title, len(found[name]), shown))
    return changes


def _answered(number: int, row: Row, prefix: str) -> Shown:
    samples = []
    for model in ("base", "adapter"):
        samples.append(_judged(f"{prefix}-{number}-{model}", model, *row[model]))
    return Shown(_title(number, row["gold"]), _shown_prompt(row["prompt"]), samples)


def _title(number: int, gold: Any) -> str:
    return f"Prompt {number}" if gold is None else f"Prompt {number}, right is {gold}"


def _judged(anchor: str, title: str, text: Any, right: bool | None, is_cut: bool | None) -> Sample:
    segments, cut = plain(prompt_text(text) if text is not None else "")
    if is_cut:
        title = f"{title}, cut off before its end"
    note = "not judged" if right is None else "right" if right else "wrong"
    return Sample(anchor, title, note, segments, cut)


def over_time(run: RunRecord, prefix: str) -> list[Shown]:
    """Return held-out prompts with the answer of the base, and of the adapter at evaluations."""
    by_prompt: dict[str, list[tuple[int, Row]]] = {}
    for evaluation in run.over_time:
        for row in evaluation["rows"]:
            # A start with other held-out rows has other prompts in their places.
            key = repr((row.get("row"), row.get("prompt")))
            by_prompt.setdefault(key, []).append((evaluation["step"], row))
    shown = []
    for number, moments in enumerate(by_prompt.values(), 1):
        first = moments[0][1]
        asked = [("base", "base", first)]
        for step, row in _spread(moments, _EVALUATIONS):
            asked.append(("adapter", f"step {step}", row))
        samples = []
        for side, title, row in asked:
            found = row.get(side)
            # A run that trains the whole model has no base.
            if isinstance(found, dict):
                marks = (found.get("answer"), found.get("right"), found.get("cut"))
                anchor = f"{prefix}-{number}-{title.replace(' ', '-')}"
                samples.append(_judged(anchor, title, *marks))
        if samples:
            place = first.get("row")
            title = _title(place + 1 if isinstance(place, int) else number, first.get("gold"))
            shown.append(Shown(title, _shown_prompt(first.get("prompt")), samples))
    return shown


def found_samples(rows: Sequence[Row], prefix: str) -> list[Shown]:
    """Return the samples of a finding of the watch."""
    shown = []
    for number, row in enumerate(rows, 1):
        segments, cut = plain(prompt_text(row.get("completion", "")))
        rewards = row.get("rewards")
        step = row.get("step")
        title = f"Step {step}" if step is not None else "Held-out answer"
        sample = Sample(f"{prefix}-{number}", "completion", "", segments, cut)
        known = rewards if isinstance(rewards, dict) else {}
        shown.append(Shown(title, _shown_prompt(row.get("prompt", "")), [sample], known))
    return shown
