"""What a reward model reads and learns from, as tokens: texts, the ends of steps, their labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import DataError
from ..scoring.steps import found_steps, without_end
from .preferences import PairColumns


def rows_of_tokens(
    tokenizer: Any, prompts: Sequence[Any], completions: Sequence[Any], max_length: int
) -> list[list[int]]:
    """Return the token ids of each prompt followed by its completion.

    A longer row is cut to `max_length` tokens, on the tokenizer's truncation side.

    Args:
        tokenizer: renders messages with its chat template.
        prompts, completions: texts, or lists of messages.
        max_length: tokens of a row.

    Raises:
        DataError: a prompt is a list of messages and its completion is not, or vice versa.
    """
    rows = []
    # Row by row: texts and messages go through different functions of the tokenizer.
    for prompt, completion in zip(prompts, completions, strict=True):
        rows.append(_token_ids(tokenizer, prompt, completion, max_length))
    return rows


def _token_ids(tokenizer: Any, prompt: Any, completion: Any, max_length: int) -> list[int]:
    is_text = isinstance(prompt, str)
    if is_text != isinstance(completion, str):
        kinds = f"{type(prompt).__name__} and its completion {type(completion).__name__}"
        raise DataError(f"a prompt is {kinds}; expected two texts, or two lists of messages.")
    if is_text:
        text = prompt + completion
    else:
        text = tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
    # A chat template writes the special tokens itself.
    return tokenizer(text, add_special_tokens=is_text, truncation=True, max_length=max_length)[
        "input_ids"
    ]


def pair_rows(
    tokenizer: Any, pairs: PairColumns, max_length: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of the chosen and of the rejected completions, with their prompts.

    Raises:
        DataError: as `rows_of_tokens`, or a row has no token.
    """
    chosen = rows_of_tokens(tokenizer, pairs.prompts, pairs.chosen, max_length)
    rejected = rows_of_tokens(tokenizer, pairs.prompts, pairs.rejected, max_length)
    empty = (chosen + rejected).count([])
    if empty:
        raise DataError(
            f"{empty} texts of the pairs have no token, so nothing can be read there. Leave them "
            "out."
        )
    return chosen, rejected


def rows_at(rows: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    """Return the rows with these indices."""
    return [rows[index] for index in indices]


def last_token(row: Sequence[int], padding: int | None) -> int:
    """Return the index of the last token that is not padding; 0 if there is none.

    A token counts as padding by its id alone, also where the text itself ends with this token:
    transformers' sequence classifiers count in the same way.
    """
    for index in reversed(range(len(row))):
        if row[index] != padding:
            return index
    return 0


class ReadableSteps(NamedTuple):
    """The completions whose steps can be scored, a row per completion.

    `places` are the completions' places in the batch. `text_ends` are the characters, `token_ends`
    the tokens, at which the steps end.
    """

    places: list[int]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    text_ends: list[list[int]]
    token_ends: list[list[int]]


def readable_steps(
    tokenizer: Any,
    prompt_ids: Sequence[list[int]],
    completions: Sequence[Any],
    completion_ids: Sequence[list[int]],
    by: str,
    longest: int,
) -> ReadableSteps:
    """Return the steps of the completions, without completions that a reward model cannot read.

    Such a completion has no steps, or its tokens do not write its text, or it has more than
    `longest` tokens together with its prompt.

    Args:
        tokenizer: the policy's tokenizer.
        prompt_ids, completion_ids: token ids, a list per row.
        completions: texts, or lists of messages.
        by: how a completion is cut; see `split_steps`.
        longest: tokens for which the base has positions.
    """
    steps = ReadableSteps([], [], [], [], [])
    rows = zip(prompt_ids, completions, completion_ids, strict=True)
    for place, (prompt, completion, sampled) in enumerate(rows):
        # The step that ends with the text is read there, not at the token that ends the turn.
        written = without_end(tokenizer, sampled)
        text_ends, token_ends = found_steps(tokenizer, completion, written, by)
        if text_ends and len(prompt) + len(written) <= longest:
            steps.places.append(place)
            steps.prompt_ids.append(prompt)
            steps.completion_ids.append(written)
            steps.text_ends.append(text_ends)
            steps.token_ends.append(token_ends)
    return steps


def check_labels(step_ends: Sequence[Sequence[int]], labels: Sequence[Sequence[float]]) -> None:
    """Check that every row has steps, and each step a label that is a probability.

    Raises:
        DataError: a row has no step, or a label is missing or no probability.
    """
    for ends, row_labels in zip(step_ends, labels, strict=True):
        # NaN fails the comparison, so a step that nobody could judge is refused as well.
        probable = all(0 <= label <= 1 for label in row_labels)
        if not ends or len(ends) != len(row_labels) or not probable:
            raise DataError(
                f"{len(ends)} step ends have labels {list(row_labels)}; expected one from 0 to 1 "
                "for each."
            )
