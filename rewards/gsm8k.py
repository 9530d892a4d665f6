r"""Pay for the right final number of a grade-school word problem (GSM8K, arXiv 2110.14168).

The answer of a completion is the number after the last `####`; without `####`, the number in the
last box that is not empty; without either, the last number of the text. A marker decides: if it is
there and no number follows, the answer is wrong, whatever the text said before. A line `#### ...`
(or a box) that holds a second number is wrong too, even if the two are equal, because neither a
hedge ("42 or 43") nor an unfinished sum ("3 * 3") is an answer. Units and words beside the number
are ignored.
`_text.py` says what counts as a number, and what makes a number unreadable.
"""

from fractions import Fraction
from typing import Any

from grpo_hf.data.completions import Completion, completion_text
from grpo_hf.rewards._boxes import BOX, boxes_of
from grpo_hf.rewards._text import numbers_as_written, parse_number
from grpo_hf.scoring.reward import reward_settings


def final_numbers(texts: list[str]) -> list[str | None]:
    """Return the final number of each text, equal ones spelled alike; None where there is none.

    >>> final_numbers(["#### 0.5", "So 1/2", "#### 42 or 43"])
    ['1/2', '1/2', None]
    """
    numbers: list[str | None] = []
    for text in texts:
        value = _final_value(text)
        numbers.append(None if value is None else str(value))
    return numbers


@reward_settings(in_process=True, answers=final_numbers, gold="answer")
def gsm8k(completions: list[Completion], answer: list[Any], **columns: Any) -> list[float | None]:
    r"""Return 1.0 where the completion's final number is exactly the gold answer's, else 0.0.

    Args:
        completions: texts, or lists of messages.
        answer: gold answers: GSM8K solutions that end in `#### n`, or bare numbers (text, int or
            float).

    Returns:
        One reward per completion; None where the gold answer holds no readable number.

    >>> completions = ["18 + 24 = 42\n#### $42.00", "#### 41", "#### 42 or 43", r"So \boxed{42}"]
    >>> gsm8k(completions, answer=["#### 42"] * 4)
    [1.0, 0.0, 0.0, 1.0]
    >>> gsm8k(["It is 1,234."], answer=[1234]), gsm8k(["#### 7"], answer=["seven"])
    ([1.0], [None])
    """
    rewards: list[float | None] = []
    for completion, gold in zip(completions, answer, strict=True):
        gold_value = _gold_value(gold)
        if gold_value is None:
            rewards.append(None)
        else:
            value = _final_value(completion_text(completion))
            rewards.append(float(value == gold_value))
    return rewards


def _gold_value(gold: Any) -> Fraction | None:
    if isinstance(gold, str):
        return _final_value(gold)
    try:
        # By way of text: the 0.1 of a dataset means 1/10, not the binary fraction nearest to it.
        return Fraction(str(gold))
    # It is not a finite number, or it has more digits than str() converts.
    except ValueError:
        return None


def _final_value(text: str) -> Fraction | None:
    """Return the number that is the answer; None if it is missing or cannot be read."""
    _, hash_marker, after_hash = text.rpartition("####")
    if hash_marker:
        # The answer ends with its line; some models explain it below.
        lines = after_hash.strip().splitlines()
        return _only_value(lines[0]) if lines else None
    if BOX.search(text):
        boxes = boxes_of(text)
        return _only_value(boxes[-1]) if boxes else None
    numbers = numbers_as_written(text)
    return parse_number(numbers[-1]) if numbers else None


def _only_value(text: str) -> Fraction | None:
    """Return the number in the text if there is exactly one."""
    numbers = numbers_as_written(text)
    return parse_number(numbers[0]) if len(numbers) == 1 else None
