"""Steps of a completion: where they end in its text, what each earned, and at which of its tokens it ends.

A step reward is a reward function that returns `StepRewards` instead of numbers. Characters are counted in the
completion's text; tokens in the ids that the policy sampled, which need not be those that the tokenizer would write.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ..data.completions import completion_text, message_texts
from ..errors import DataError

# In most vocabularies the space before a word is in the word's token, and newlines are not: they can end a step.
SEPARATORS = {
    "lines": r"\n(\s*\n)?",
    "blank_lines": r"\n\s*\n",
    "sentences": r"((?<=[.!?…])[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）】]*)(\s*\n)?|\n(\s*\n)?",
}


@dataclass(frozen=True)
class StepRewards:
    """What the steps of one completion earned: step j is the text up to `ends[j]`, and earned `rewards[j]`.

    Args:
        ends: characters before the end of each step, from the start of the text of the assistant's messages (joined by
            newlines, where there are several); ascending, the first above 0.
        rewards: as many finite numbers; NaN for a step that cannot be judged.

    Raises:
        ValueError: they are something else.

    >>> StepRewards(ends=[10, 25], rewards=[1.0, 0.0])
    StepRewards(ends=(10, 25), rewards=(1.0, 0.0))
    """

    ends: Sequence[int]
    rewards: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(map(int, self.ends)))
        object.__setattr__(self, "rewards", tuple(map(float, self.rewards)))
        if len(self.ends) != len(self.rewards):
            raise ValueError(
                f"{len(self.ends)} step ends and {len(self.rewards)} rewards; expected one reward a step"
            )
        if any(end <= before for before, end in zip((0, *self.ends), self.ends, strict=False)):
            raise ValueError(
                f"step ends {self.ends}; expected numbers of characters, ascending, the first above 0"
            )
        if any(map(math.isinf, self.rewards)):
            raise ValueError(
                f"step rewards {self.rewards}; expected finite numbers, or NaN for what cannot be judged"
            )

    @property
    def mean(self) -> float | None:
        """Of the steps that could be judged; None without one."""
        judged = [reward for reward in self.rewards if not math.isnan(reward)]
        return sum(judged) / len(judged) if judged else None


def split_steps(text: str, by: str = "lines") -> list[int]:
    """Where the steps of a text end: characters before each end, as `StepRewards.ends`.

    A separator belongs to the step before it: newlines, or a sentence's last marks. Other white space belongs to the
    step after it. What holds no more than white space is no step of its own.

    Args:
        by: `"lines"`, `"blank_lines"`, `"sentences"`, or a text that marks the end of a step, like `"ки"` in
            Math-Shepherd.

    Raises:
        ValueError: `by` is empty.

    >>> text = "40 + 20 = 60\\n2 + 5 = 7\\n#### 67"
    >>> [text[start:end] for start, end in zip([0, *split_steps(text)], split_steps(text))]
    ['40 + 20 = 60\\n', '2 + 5 = 7\\n', '#### 67']
    >>> split_steps("First. Then 1.5 more!", by="sentences")
    [6, 21]
    """
    if not by:
        raise ValueError(
            "steps are split by ''; expected lines, blank_lines, sentences, or the text that marks an end"
        )
    ends: list[int] = []
    candidates = [match.end() for match in re.finditer(SEPARATORS.get(by, re.escape(by)), text)]
    for end in [*candidates, len(text)]:
        if text[ends[-1] if ends else 0 : end].strip():
            ends.append(end)
    if ends and not text[ends[-1] :].strip():
        ends[-1] = len(text)
    return ends


def step_end_tokens(
    tokenizer: Any,
    completion: str | list[dict[str, Any]],
    completion_ids: Sequence[int],
    ends: Sequence[int],
) -> list[int]:
    """The index of the token that ends each step, from the characters where it ends.

    A step ends at the token that completes its last character, so it takes along what a token holds beyond it. One that
    ends with the text ends at the last token, so that the end of the turn is credited as well. Steps that end in one
    token have the same index.

    Args:
        completion: text or messages.
        completion_ids: what the policy sampled for it.
        ends: ascending; see `StepRewards`.

    Raises:
        DataError: the text of a message is not in the text of the tokens.
    """
    text = tokenizer.decode(completion_ids, skip_special_tokens=True)
    whole = len(completion_text(completion))
    places = _places(message_texts(completion), text, [end for end in ends if end < whole])
    inner = _by_offsets(tokenizer, text, completion_ids, places) if places else []
    return inner + [len(completion_ids) - 1] * (len(ends) - len(inner))


def found_steps(
    tokenizer: Any, completion: str | list[dict[str, Any]], completion_ids: Sequence[int], by: str
) -> tuple[list[int], list[int]]:
    """Where the steps of a completion end, in its text and among its tokens; nowhere, if its text is not theirs.

    Args:
        by: how the text is cut; see `split_steps`.
    """
    ends = split_steps(completion_text(completion), by)
    try:
        tokens = step_end_tokens(tokenizer, completion, completion_ids, ends)
    except DataError:
        return [], []
    return ends, tokens


def without_end(tokenizer: Any, completion_ids: Sequence[int]) -> list[int]:
    """The tokens up to the last one that is not special: an answer without the end of its turn."""
    special = set(tokenizer.all_special_ids)
    own = (
        index
        for index in reversed(range(len(completion_ids)))
        if completion_ids[index] not in special
    )
    return list(completion_ids[: next(own, -1) + 1])


def step_places(
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    step_ends: Sequence[Sequence[int]],
) -> tuple[list[list[int]], list[list[int]]]:
    """Each row's tokens, and the positions among them at which its steps end.

    Raises:
        DataError: a step ends outside its completion.
    """
    for completion, ends in zip(completion_ids, step_ends, strict=True):
        if not all(0 <= end < len(completion) for end in ends):
            raise DataError(
                f"steps end at {list(ends)} in a completion of {len(completion)} tokens; count from 0."
            )
    rows = [
        [*prompt, *completion]
        for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
    ]
    return rows, [
        [len(prompt) + end for end in ends]
        for prompt, ends in zip(prompt_ids, step_ends, strict=True)
    ]


def _places(pieces: list[str], text: str, ends: Sequence[int]) -> list[int]:
    """The same ends as characters of the decoded text, which may hold more than the messages: tool calls, tags."""
    found = [len(text)]
    for piece in reversed(
        pieces
    ):  # what comes before an answer may repeat it, like the call of a tool
        found.insert(0, text.rfind(piece, 0, found[0]))
        if found[0] < 0:
            raise DataError(
                f"the message {piece[:60]!r} is not part of the decoded completion {text[:60]!r}, so its steps cannot "
                "be found among the tokens. A chat template that rewrites messages allows no step rewards."
            )
    starts = list(
        accumulate((len(piece) + 1 for piece in pieces), initial=0)
    )  # messages are joined by newlines
    inside = [
        bisect_left(starts, end) - 1 for end in ends
    ]  # such a newline ends with the message before it
    within = [min(end - starts[i], len(pieces[i])) for i, end in zip(inside, ends, strict=True)]
    return [
        max(1, found[i] + length) for i, length in zip(inside, within, strict=True)
    ]  # 0: an empty first message


def _by_offsets(
    tokenizer: Any, text: str, completion_ids: Sequence[int], places: Sequence[int]
) -> list[int]:
    """The index of the token that completes the first `place` characters of the text, for each place."""
    special = set(tokenizer.all_special_ids)
    own = [index for index, token in enumerate(completion_ids) if token not in special]
    if tokenizer.is_fast:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if encoding["input_ids"] == [completion_ids[index] for index in own]:
            starts = [start for start, _ in encoding["offset_mapping"]]
            reached = [0, *accumulate((end for _, end in encoding["offset_mapping"]), max)]
            whole = all(start <= end for start, end in zip(starts, reached, strict=False))
            if whole and reached[-1] == len(text):  # some tokenizers leave white space out
                return [
                    own[bisect_left(starts, place) - 1] for place in places
                ]  # the last that begins before it
    return [_by_decoding(tokenizer, text, completion_ids, place) for place in places]


def _by_decoding(tokenizer: Any, text: str, completion_ids: Sequence[int], place: int) -> int:
    """Where offsets do not say it: the first index up to which the ids decode to that much."""
    return bisect_left(
        range(len(completion_ids) - 1),
        True,
        key=lambda index: tokenizer.decode(
            completion_ids[: index + 1], skip_special_tokens=True
        ).startswith(text[:place]),
    )
