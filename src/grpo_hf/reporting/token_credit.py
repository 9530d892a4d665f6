"""Token credit: the tokens of a step's completions with the advantages they were trained on.

`credit_file.record_credit` appends one group per logging step to `credit.jsonl`; `credit_display`
shows it. This file and the display import nothing heavy, so that the command line can read the file
of a run at once.

Shapes: B rows of a generation batch on this process, G of them a group, C the width of their
completions, F rewards, W processes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..run_files import in_order

CREDIT_FILE = "credit.jsonl"
_STEP = re.compile(rb'\{"step":\s*(\d+)')
# The largest number of completions of a group that is kept: all 64 of a large group would make the
# file large and the page long.
_COMPLETIONS = 8
# `token_texts` decodes at most about this many tokens at a time ...
_WINDOW = 8
# ... and begins the next window with this many of the last one, so that it starts inside a text.
_OVERLAP = 2


class Score(NamedTuple):
    """What a completion earned: the weighted sum, and each reward by name; None if not judged.

    `steps` has, for each step reward, the token that ends each step, and the step's reward.
    """

    total: float | None
    by_name: dict[str, float | None]
    steps: dict[str, list[list[float]]]


@dataclass(frozen=True)
class Completion:
    """One completion with its credit.

    Args:
        tokens: the text of each token.
        advantages: the advantage of each token.
        special: the positions of special tokens, such as the end of the turn.
        reward: the weighted sum of the rewards, or None where no reward could judge it.
        rewards: each reward by name, None where it could not judge the completion; empty in files
            of versions that did not keep them.
        steps: for each step reward, the position of the token that ends each step, and the step's
            reward as it was given, before the group is compared.
    """

    tokens: list[str]
    advantages: list[float]
    special: list[int]
    reward: float | None
    rewards: dict[str, float | None] = field(default_factory=dict)
    steps: dict[str, list[list[float]]] = field(default_factory=dict)

    @property
    def steps_at(self) -> dict[int, list[float]]:
        """The rewards of the steps that end at each token, of all step rewards in their order."""
        found: dict[int, list[float]] = {}
        for steps in self.steps.values():
            for position, reward in steps:
                found.setdefault(int(position), []).append(reward)
        return found

    @property
    def text(self) -> str:
        """The completion without special tokens."""
        kept = []
        for position, token in enumerate(self.tokens):
            if position not in self.special:
                kept.append(token)
        return "".join(kept)


@dataclass(frozen=True)
class Group:
    """Completions of one prompt, as a step trained on them.

    Args:
        completions: those that are kept, at most 8.
        size: how many the group has.
        groups: how many groups the rollout has. Both are None in files of earlier versions.
    """

    step: int
    prompt: str
    completions: list[Completion]
    size: int | None = None
    groups: int | None = None

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Group":
        """Return the group of a line of `credit.jsonl`."""
        completions = []
        for completion in row["completions"]:
            completions.append(Completion(**completion))
        return cls(row["step"], row["prompt"], completions, row.get("size"), row.get("groups"))

    @property
    def extent(self) -> str:
        """How much of its group, and of the rollout, this is."""
        shown = len(self.completions)
        if self.size is None or self.groups is None:
            return f"completions of one group, of which at most {_COMPLETIONS} are kept"
        share = f"all {shown}" if shown == self.size else f"{shown} of the {self.size}"
        among = f", one of {self.groups} groups of the rollout" if self.groups > 1 else ""
        return f"{share} completions of a group{among}"

    @property
    def scale(self) -> float:
        """The largest |advantage|, which is shown in full colour."""
        magnitudes: list[float] = []
        for completion in self.completions:
            magnitudes.extend(map(abs, completion.advantages))
        return max(magnitudes, default=0.0)


class GroupStart(NamedTuple):
    """Where the line of a group begins in `credit.jsonl`, in bytes."""

    step: int
    offset: int


def group_starts(file: Path) -> list[GroupStart]:
    """Return where the groups of a run lie, in the order of its steps, without reading them.

    Raises:
        OSError: the file cannot be read.
    """
    starts = []
    offset = 0
    with file.open("rb") as lines:
        for line in lines:
            # The writer begins each line with its step; a torn one has not all completions.
            begins = _STEP.match(line)
            if begins and b'"completions"' in line and line.rstrip().endswith(b"}"):
                starts.append(GroupStart(int(begins[1]), offset))
            offset += len(line)
    return in_order(starts, step_of=lambda start: start.step)


def credited_group(
    batch: dict[str, Any], scores: Sequence[Score], *, step: int, size: int, tokenizer: Any
) -> Group:
    """Return the first group of a batch that has a signal, or the first group where none has one.

    At most 8 of its completions are kept, in the batch's order. A token that the loss leaves out,
    such as the answer of a tool, has advantage 0. Advantages are rounded to four digits.
    """
    mask = batch["completion_mask"]
    per_token = _token_advantages(batch)
    # A group may span processes, and this process may hold only a part of it.
    held = min(size, len(per_token))
    first = _first_row_with_signal(per_token, held)
    special = _special_ids(tokenizer)
    completions = []
    for row in range(first, first + min(held, _COMPLETIONS)):
        kept = mask[row].bool()
        ids = batch["completion_ids"][row][kept].tolist()
        advantages = []
        for value in per_token[row][kept].tolist():
            advantages.append(float(f"{value:.4g}"))
        completions.append(
            Completion(
                tokens=token_texts(tokenizer.decode, ids),
                advantages=advantages,
                special=[position for position, token in enumerate(ids) if token in special],
                reward=scores[row].total,
                rewards=scores[row].by_name,
                steps=_among(scores[row].steps, kept.tolist()),
            )
        )
    prompt = batch["prompt_ids"][first][batch["prompt_mask"][first].bool()].tolist()
    # The marks of a chat template say nothing that the card does not show once.
    text = tokenizer.decode(prompt, skip_special_tokens=True)
    return Group(step, text, completions, size, len(scores) // size)


def _among(steps: dict[str, list[list[float]]], kept: list[bool]) -> dict[str, list[list[float]]]:
    """Return steps whose ends are counted among the tokens that are kept."""
    counted = {}
    for name, ends in steps.items():
        counted[name] = [[sum(kept[: int(end)]), reward] for end, reward in ends if kept[int(end)]]
    return counted


def _token_advantages(batch: dict[str, Any]) -> Any:
    """Return the advantage of each token, (B, C); 0 where the loss leaves a token out."""
    advantages = batch["advantages"]
    # Under outcome supervision a completion has one advantage for all of its tokens.
    if advantages.ndim != 2:
        advantages = advantages[:, None]
    return advantages * batch["completion_mask"] * batch.get("tool_mask", 1)


def _first_row_with_signal(per_token: Any, size: int) -> int:
    """Return the first row of the first group with an advantage other than 0, else row 0."""
    groups = len(per_token) // size
    has_signal = per_token[: groups * size].reshape(groups, -1).any(1)  # (groups,)
    # The first maximum is the first True, or the first group where all are False.
    return size * int(has_signal.int().argmax())


def _special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of special tokens.

    `all_special_ids` alone lacks added tokens that are special but have no role, such as <|user|>.
    """
    special = set(tokenizer.all_special_ids)
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            special.add(token_id)
    return special


def token_texts(decode: Callable[[list[int]], str], ids: list[int]) -> list[str]:
    """Return the text of each token; together the texts are exactly `decode(ids)`.

    Where a character consists of several tokens, the last of them has the character and the others
    have "". Each token is decoded with a few tokens before it, because some tokenizers drop a space
    at the start of a text.
    """
    whole = decode(ids)
    texts: list[str] = []
    # whole[:done] has been given to tokens; the text of ids[anchor:] starts at whole[offset].
    done = 0
    anchor = 0
    offset = 0
    for end in range(1, len(ids) + 1):
        seen = decode(ids[anchor:end])
        # An incomplete character at the end is decoded as another one, so it does not agree.
        agreed = _common_length(seen, whole[offset : offset + len(seen)])
        reached = max(done, offset + agreed)
        texts.append(whole[done:reached])
        done = reached
        if end - anchor >= _WINDOW:
            tail = decode(ids[end - _OVERLAP : end])
            # In the middle of a character the tail decodes differently. Then try a later one.
            if tail and whole.endswith(tail, 0, done):
                anchor = end - _OVERLAP
                offset = done - len(tail)
    if texts:
        # What no token completed, as when the completion was cut off within a character.
        texts[-1] += whole[done:]
    return texts


def _common_length(first: str, second: str) -> int:
    """Return how many characters at the start of two texts are equal."""
    length = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        length += 1
    return length
