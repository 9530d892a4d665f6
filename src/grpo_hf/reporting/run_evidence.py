"""What a run has on disk that tells how it earned its reward: numbers, samples, answers.

Every file may be missing, of another version, or torn: what is not there is not looked at.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import run_files
from ..data.completions import completion_text, last_said
from ..run_files import EVALUATION_FILE
from ..run_folders import settings_of
from .metrics_file import read_metrics
from .token_credit import CREDIT_FILE, Group, group_starts

# Names of rewards that say what is right, and of those that look at the form of a completion alone.
_RIGHT = re.compile("correct|accura")
_FORM = re.compile("format|xml|length|overlong|repetition|language|style|penalty")
# Groups that are read of a long run: its credit.jsonl has gigabytes, and a share of a few hundred
# groups is known well enough.
_MOST_GROUPS = 300
# Where a final answer begins, in the formats that models are asked for. Markdown has headings of
# four hashes as well; an answer is a number, perhaps with its unit, or stands in the last line.
_MARKERS = re.compile(
    r"""\\boxed\s*\{ | <answer> | \#{4} (?=
        \s* [-+$€£]? \d (?:[\d.,/]*\d)? %? (?:[ \t]+\S+)? [ \t.]* (?:\n|<|\Z) | [^\n]*\s*\Z
    )""",
    re.VERBOSE,
)
_ENDS = re.compile(r"</answer>|<\|?\w+\|?>")


@dataclass(frozen=True)
class Sample:
    """A completion that shows something.

    Args:
        step: the optimizer step that it was trained on, None for a held-out answer.
        rewards: what it earned, by name.
        length: its tokens; characters where these are not known.
    """

    step: int | None
    prompt: str
    completion: str
    rewards: dict[str, float | None]
    total: float | None
    length: int


@dataclass(frozen=True)
class HeldOut:
    """The answers of base and adapter to a held-out prompt, and whether they are right.

    Args:
        gold: what is right, where that is one value.
        base_cut, adapter_cut: whether an answer was cut off.
    """

    prompt: str
    base: str
    adapter: str
    base_right: bool | None
    adapter_right: bool | None
    gold: str | None = None
    base_cut: bool = False
    adapter_cut: bool = False


@dataclass(frozen=True)
class Evidence:
    """What is known of a run.

    Args:
        rows: of `metrics.jsonl`, one for each logged step with a rollout.
        groups: the samples of `credit.jsonl`, a list for each group.
        answers: of `evaluation.jsonl`.
        right: the reward that says what is right.
        weights: of the rewards, by name.
        room: tokens that a completion may have, if the recipe says so.
    """

    rows: list[dict[str, Any]]
    groups: list[list[Sample]]
    answers: list[HeldOut]
    right: str | None
    weights: dict[str, float]
    room: int | None = None

    @property
    def others(self) -> list[str]:
        """The rewards that do not say what is right."""
        return [name for name in self.weights if name != self.right]

    def series(self, key: str) -> list[float | None]:
        """Return a logged number by step, None where a step has none."""
        return [row.get(key) for row in self.rows]

    @property
    def span(self) -> tuple[int, int]:
        """The first and the last step of the last third of the run."""
        steps = [row["step"] for row in self.rows] or [group[0].step or 0 for group in self.groups]
        if not steps:
            return 0, 0
        return steps[-max(1, len(steps) // 3)], steps[-1]


def read_evidence(run: Path) -> Evidence:
    """Return what a run's folder tells."""
    rows = read_metrics(run)
    recipe = settings_of(run)
    weights = _weights(rows, recipe)
    right = recipe.get("eval_reward") or _says_right(list(weights))
    last = rows[-1]["step"] if rows else 0
    return Evidence(
        rows=rows,
        groups=_groups(run),
        answers=_held_out(run) if last else [],
        right=right if right in weights else _says_right(list(weights)),
        weights=weights,
        room=room if isinstance(room := recipe.get("max_completion_length"), int) else None,
    )


def _weights(rows: Sequence[dict[str, Any]], recipe: dict[str, Any]) -> dict[str, float]:
    """Return the rewards that a run logged, in its order, with their weights or 1."""
    names = []
    for key in rows[0] if rows else ():
        if key.startswith("rewards/") and key.endswith("/mean"):
            names.append(key.removeprefix("rewards/").removesuffix("/mean"))
    given = recipe.get("reward_weights")
    # A process reward counts as the last one, and a schedule of weights is no number.
    plain = isinstance(given, list) and len(given) == len(names)
    weights = {}
    for place, name in enumerate(names):
        weight = given[place] if plain and given is not None else 1.0
        weights[name] = float(weight) if isinstance(weight, int | float) else 1.0
    return weights


def _says_right(names: Sequence[str]) -> str | None:
    """Return the first reward that is named so, else the first that is not named for form."""
    for name in names:
        if _RIGHT.search(name.lower()):
            return name
    for name in names:
        if not _FORM.search(name.lower()):
            return name
    return names[0] if names else None


def _groups(run: Path) -> list[list[Sample]]:
    """Return the samples of `credit.jsonl` by group, in the order of the steps.

    Of a long run they are a few hundred groups, evenly spread.
    """
    file = run / CREDIT_FILE
    if not file.is_file():
        return []
    starts = group_starts(file)
    count = min(len(starts), _MOST_GROUPS)
    found = []
    with file.open("rb") as lines:
        for place in range(count):
            lines.seek(starts[place * len(starts) // count].offset)
            try:
                samples = _samples_of(Group.of(json.loads(lines.readline())))
            except (ValueError, KeyError, TypeError):
                # A torn line, or one of another version.
                continue
            if samples:
                found.append(samples)
    return found


def _samples_of(group: Group) -> list[Sample]:
    samples = []
    for completion in group.completions:
        length = len(completion.tokens) - len(completion.special)
        earned = (completion.rewards, completion.reward)
        samples.append(Sample(group.step, group.prompt, completion.text, *earned, length))
    return samples


def _held_out(run: Path) -> list[HeldOut]:
    file = run / EVALUATION_FILE
    if not file.is_file():
        return []
    found = []
    for row in run_files.read_lines(file):
        try:
            found.append(_pair(row))
        except (KeyError, TypeError, AttributeError):
            continue
    return found


def _pair(row: dict[str, Any]) -> HeldOut:
    base, adapter = row["base"], row["adapter"]
    return HeldOut(
        prompt=last_said(row.get("prompt")),
        base=completion_text(base["answer"]),
        adapter=completion_text(adapter["answer"]),
        base_right=base["right"],
        adapter_right=adapter["right"],
        gold=str(gold) if isinstance(gold := row.get("gold"), str | int | float) else None,
        base_cut=bool(base.get("cut")),
        adapter_cut=bool(adapter.get("cut")),
    )


def final_answer(text: str) -> str:
    """Return the final answer of a completion: what follows the last marker, or the last line.

    Markers are `####`, `\\boxed{` and `<answer>`.

    >>> final_answer("6 + 4 = 10\\n#### 10"), final_answer("So it is \\\\boxed{10}.")
    ('10', '10')
    """
    markers = list(_MARKERS.finditer(text))
    if markers:
        return _answer_after(markers[-1], text)
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _answer_after(marker: re.Match[str], text: str) -> str:
    rest = _ENDS.split(text[marker.end() :])[0]
    return rest.strip().partition("\n")[0].strip(" }.$")


def working(text: str) -> str:
    """Return what a completion writes before its final answer.

    That is what comes before its first marker with this answer; without a marker, what comes before
    the number or the word at its end.

    >>> working("6 + 4 = 10\\n#### 10"), working("#### 10"), working("6 + 4 = 10"), working("10")
    ('6 + 4 = 10', '', '6 + 4 =', '')
    """
    answer = final_answer(text)
    for marker in _MARKERS.finditer(text):
        if answer in _answer_after(marker, text):
            return text[: marker.start()].strip()
    # Not every language has spaces between its words.
    before = _before_last_number(text.strip())
    return text.strip().rpartition(" ")[0] if before is None else before


def _before_last_number(text: str) -> str | None:
    """Return what comes before the number at the end of a text; None if it ends otherwise.

    No pattern: on a completion that repeats digits or points it would try each of them as a start.
    """
    start = len(text)
    while start and not (text[start - 1].isalnum() or text[start - 1] == "_"):
        start -= 1
    while start and (text[start - 1].isdecimal() or text[start - 1] in ".,/%"):
        start -= 1
    left_out = re.search(r"\d", text[start:])
    return text[: start + left_out.start()].strip() if left_out else None
