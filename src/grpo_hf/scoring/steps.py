"""Steps of a completion: where they end in its text, what each earned, and at which token it ends.

A step reward is a reward function that returns `StepRewards` instead of numbers. It counts the
characters of the completion's text. An update needs tokens, and those are the ids that the policy
sampled, which need not be the ids that the tokenizer would write for the same text. The functions
here go from one to the other.
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

# In most vocabularies the space before a word is in the word's token, and newlines are not: so
# newlines can end a step, and other white space cannot.
SEPARATORS = {
    "lines": r"\n(\s*\n)?",
    "blank_lines": r"\n\s*\n",
    "sentences": (r"((?<=[.!?…])[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）】]*)(\s*\n)?|\n(\s*\n)?"),
}


@dataclass(frozen=True)
class StepRewards:
    """What the steps of one completion earned: step j is the text up to `ends[j]`.

    Args:
        ends: characters before the end of each step, counted from the start of the text of the
            assistant's messages (joined by newlines, where there are several); ascending, the first
            above 0.
        rewards: a finite number for each end; NaN for a step that cannot be judged.

    Raises:
        ValueError: they are something else.

    >>> StepRewards(ends=[10, 25], rewards=[1.0, 0.0])
    StepRewards(ends=(10, 25), rewards=(1.0, 0.0))
    """

    ends: Sequence[int]
    rewards: Sequence[float]

    def __post_init__(self) -> None:
        # The class is frozen, and its values may come as numpy or torch scalars.
        object.__setattr__(self, "ends", tuple(map(int, self.ends)))
        object.__setattr__(self, "rewards", tuple(map(float, self.rewards)))
        if len(self.ends) != len(self.rewards):
            raise ValueError(
                f"{len(self.ends)} step ends and {len(self.rewards)} rewards; expected one reward "
                "a step"
            )
        before = 0
        for end in self.ends:
            if end <= before:
                raise ValueError(
                    f"step ends {self.ends}; expected numbers of characters, ascending, the first "
                    "above 0"
                )
            before = end
        if any(map(math.isinf, self.rewards)):
            raise ValueError(
                f"step rewards {self.rewards}; expected finite numbers, or NaN for what cannot be "
                "judged"
            )

    @property
    def mean(self) -> float | None:
        """The mean reward of the steps that could be judged; None without one."""
        judged = [reward for reward in self.rewards if not math.isnan(reward)]
        return sum(judged) / len(judged) if judged else None


def split_steps(text: str, by: str = "lines") -> list[int]:
    """Return where the steps of a text end: characters before each end, as `StepRewards.ends`.

    A separator belongs to the step before it: newlines, or a sentence's last marks. Other white
    space belongs to the step after it. A piece that holds nothing but white space is no step of
    its own.

    Args:
        by: `"lines"`, `"blank_lines"`, `"sentences"`, or a text that marks the end of a step, like
            `"ки"` in Math-Shepherd.

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
            "steps are split by ''; expected lines, blank_lines, sentences, or the text that marks "
            "an end"
        )
    candidates = [match.end() for match in re.finditer(SEPARATORS.get(by, re.escape(by)), text)]
    candidates.append(len(text))
    ends: list[int] = []
    start = 0
    for end in candidates:
        if text[start:end].strip():
            ends.append(end)
            start = end
    # White space behind the last step belongs to it, so that the steps cover the whole text.
    if ends and not text[start:].strip():
        ends[-1] = len(text)
    return ends


def step_end_tokens(
    tokenizer: Any,
    completion: str | list[dict[str, Any]],
    completion_ids: Sequence[int],
    ends: Sequence[int],
) -> list[int]:
    """Return the index of the token that ends each step, from the characters where it ends.

    A step ends at the token that completes its last character, so it takes along whatever that
    token holds beyond it. A step that ends with the text ends at the last token, so that the end of
    the turn is credited as well. Steps that end in one token have the same index.

    Args:
        completion: text or messages.
        completion_ids: what the policy sampled for it.
        ends: ascending; see `StepRewards`.

    Raises:
        DataError: the text of a message is not in the text of the tokens.
    """
    text = tokenizer.decode(completion_ids, skip_special_tokens=True)
    whole = len(completion_text(completion))
    inner_ends = [end for end in ends if end < whole]
    places = _places_in_decoded(message_texts(completion), text, inner_ends)
    tokens = _tokens_at(tokenizer, text, completion_ids, places) if places else []
    last = len(completion_ids) - 1
    return tokens + [last] * (len(ends) - len(tokens))


def found_steps(
    tokenizer: Any, completion: str | list[dict[str, Any]], completion_ids: Sequence[int], by: str
) -> tuple[list[int], list[int]]:
    """Return where the steps of a completion end, in its text and among its tokens.

    Both lists are empty where the text of the completion is not the text of its tokens.

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
    """Return the tokens of an answer without the special ones that end its turn."""
    special = set(tokenizer.all_special_ids)
    length = len(completion_ids)
    while length and completion_ids[length - 1] in special:
        length -= 1
    return list(completion_ids[:length])


def step_places(
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    step_ends: Sequence[Sequence[int]],
) -> tuple[list[list[int]], list[list[int]]]:
    """Return each row's tokens, and the positions among them at which its steps end.

    Raises:
        DataError: a step ends outside its completion.
    """
    rows = []
    places = []
    for prompt, completion, ends in zip(prompt_ids, completion_ids, step_ends, strict=True):
        positions = []
        for end in ends:
            if not 0 <= end < len(completion):
                raise DataError(
                    f"steps end at {list(ends)} in a completion of {len(completion)} tokens; count "
                    "from 0."
                )
            positions.append(len(prompt) + end)
        rows.append([*prompt, *completion])
        places.append(positions)
    return rows, places


def _places_in_decoded(messages: list[str], text: str, ends: Sequence[int]) -> list[int]:
    """Return the same ends as characters of the decoded text.

    The decoded text may hold more than the messages: the calls of tools, and tags.
    """
    found = _starts_in_decoded(messages, text)
    # The messages are joined by newlines, one character each.
    starts = list(accumulate((len(message) + 1 for message in messages), initial=0))
    places = []
    for end in ends:
        # A newline that joins two messages ends with the message before it.
        number = bisect_left(starts, end) - 1
        inside = min(end - starts[number], len(messages[number]))
        # At least 1, because an empty first message has no character to end at.
        places.append(max(1, found[number] + inside))
    return places


def _starts_in_decoded(messages: list[str], text: str) -> list[int]:
    """Return where each message starts in the decoded text.

    Raises:
        DataError: a message is not there.
    """
    starts: list[int] = []
    limit = len(text)
    # From the last message back: what comes before an answer, like the call of a tool, may repeat
    # the text of the answer.
    for message in reversed(messages):
        limit = text.rfind(message, 0, limit)
        if limit < 0:
            raise DataError(
                f"the message {message[:60]!r} is not part of the decoded completion "
                f"{text[:60]!r}, so its steps cannot be found among the tokens. A chat template "
                "that rewrites messages allows no step rewards."
            )
        starts.insert(0, limit)
    return starts


def _tokens_at(
    tokenizer: Any, text: str, completion_ids: Sequence[int], places: Sequence[int]
) -> list[int]:
    """Return the index of the token that completes the first `place` characters, for each place."""
    special = set(tokenizer.all_special_ids)
    own = [index for index, token in enumerate(completion_ids) if token not in special]
    if tokenizer.is_fast:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # The offsets are those of the ids that the tokenizer would write, so they count only where
        # the policy wrote the same.
        if encoding["input_ids"] == [completion_ids[index] for index in own]:
            starts = _whole_offsets(encoding["offset_mapping"], len(text))
            if starts is not None:
                # The last token that begins before the place.
                return [own[bisect_left(starts, place) - 1] for place in places]
    return [_token_by_decoding(tokenizer, text, completion_ids, place) for place in places]


def _whole_offsets(offsets: Sequence[tuple[int, int]], length: int) -> list[int] | None:
    """Return where each token starts, or None where the tokens do not cover the text.

    Some tokenizers leave white space out of their offsets.
    """
    starts = []
    reached = 0
    for start, end in offsets:
        if start > reached:
            return None
        starts.append(start)
        reached = max(reached, end)
    return starts if reached == length else None


def _token_by_decoding(tokenizer: Any, text: str, completion_ids: Sequence[int], place: int) -> int:
    """Return the first index up to which the ids decode to the first `place` characters."""

    def reaches(index: int) -> bool:
        beginning = tokenizer.decode(completion_ids[: index + 1], skip_special_tokens=True)
        return beginning.startswith(text[:place])

    # A longer beginning decodes to a longer text, so the first one is found by halving.
    return bisect_left(range(len(completion_ids) - 1), True, key=reaches)
