"""What is right in the tasks of benchmarks/tasks.py."""

import re
from collections.abc import Sequence
from typing import Any

from grpo_hf import completion_text, reward_settings


def _last_numbers(texts: Sequence[str]) -> list[str | None]:
    found = [re.findall(r"\d+", text.replace(",", "")) for text in texts]
    return [numbers[-1].lstrip("0") or "0" if numbers else None for numbers in found]


def _last_words(texts: Sequence[str]) -> list[str | None]:
    found = [re.findall(r"\w+", text) for text in texts]
    return [words[-1] if words else None for words in found]


def _equal(answers: Sequence[str | None], gold: Sequence[Any]) -> list[float]:
    return [float(given == str(right)) for given, right in zip(answers, gold, strict=True)]


@reward_settings(in_process=True, answers=_last_numbers)
def last_number(completions: Sequence[Any], answer: Sequence[int], **columns: Any) -> list[float]:
    """Pay 1.0 where the last whole number of a completion is the answer."""
    return _equal(_last_numbers([completion_text(each) for each in completions]), answer)


@reward_settings(in_process=True, answers=_last_words)
def last_word(completions: Sequence[Any], answer: Sequence[str], **columns: Any) -> list[float]:
    """Pay 1.0 where the last word of a completion is the answer."""
    return _equal(_last_words([completion_text(each) for each in completions]), answer)
