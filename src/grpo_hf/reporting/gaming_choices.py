"""Held-out prompts as choices: which candidates a prompt holds, and which of them a text names.

"Which is larger, 5315 or 2481?" holds its answer beside another candidate.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .run_evidence import HeldOut

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_WORD = re.compile(r"[^\W\d_]+")
_TOKEN = re.compile(rf"{_NUMBER.pattern}|{_WORD.pattern}|\S")
# Held-out prompts from which the habit of a policy is known.
_FEWEST = 20
# The prompts that hold their answer beside another candidate, where a task is a choice.
_CHOICE = 0.8
# Words that most prompts have, such as "or", are no candidates.
_COMMON = 0.5


@dataclass(frozen=True)
class Choice:
    """A held-out prompt as a choice.

    Args:
        candidates: in the order in which they stand in the prompt.
        gold: the right one.
    """

    answers: HeldOut
    candidates: list[str]
    gold: str

    @property
    def is_number(self) -> bool:
        return _NUMBER.fullmatch(self.gold) is not None

    def named(self, text: str) -> list[str]:
        """Return the candidates that a text names, in its order, each as often as it does."""
        return [token for token in tokens(text) if token in self.candidates]


def choices(answers: Sequence[HeldOut], *, labels: bool = False) -> list[Choice]:
    """Return the prompts that hold their right answer beside another candidate.

    Where these are fewer than 20, or than four fifths of all prompts, no habit can be known, or the
    task is no choice: then there are none.

    Args:
        labels: whether what is right elsewhere is a candidate wherever a prompt has it, such as the
            "yes" and "no" of an instruction.
    """
    golds = _golds(answers)
    numbers = _are_numbers(answers)
    read = _numbers if numbers else _words
    found = [read(text) for text in _varying([each.prompt for each in answers])]
    if not numbers:
        found = _without_common(found)
    if labels:
        for row, answer in enumerate(answers):
            held = {*found[row], *golds}
            found[row] = [each for each in read(answer.prompt) if each in held]
    kept = []
    for answer, gold, candidates in zip(answers, golds, found, strict=True):
        if gold is not None and gold in candidates and len(set(candidates)) > 1:
            kept.append(Choice(answer, candidates, gold))
    return kept if len(kept) >= max(_FEWEST, _CHOICE * len(answers)) else []


def _golds(answers: Sequence[HeldOut]) -> list[str | None]:
    """Return what is right, a number in the form of numbers where all of them are."""
    numbers = _are_numbers(answers)
    golds = []
    for each in answers:
        gold = None if each.gold is None else each.gold.strip().casefold()
        golds.append(_number_of(gold) if numbers and gold is not None else gold)
    return golds


def _are_numbers(answers: Sequence[HeldOut]) -> bool:
    golds = [each.gold for each in answers if each.gold is not None]
    return bool(golds) and all(_number_of(gold) is not None for gold in golds)


def tokens(text: str) -> list[str]:
    """Return words without case, numbers in one form for each value, and other signs.

    >>> tokens("Not 1,200: it's Lena")
    ['not', '1200', ':', 'it', "'", 's', 'lena']
    """
    found = _TOKEN.findall(text.casefold())
    return [_number_of(token) or token for token in found]


def _varying(prompts: Sequence[str]) -> list[str]:
    """Return prompts without the words that all begin and end with, such as an instruction.

    >>> _varying(["Larger, 12 or 3? Say it.", "Larger, 15 or 4? Say it."])
    ['12 or 3?', '15 or 4?']
    """
    split = [prompt.split() for prompt in prompts]
    fewest = min(map(len, split), default=0)
    start = 0
    while start < fewest and len({words[start] for words in split}) == 1:
        start += 1
    end = 0
    while end < fewest - start and len({words[-1 - end] for words in split}) == 1:
        end += 1
    return [" ".join(words[start : len(words) - end]) for words in split]


def _numbers(text: str) -> list[str]:
    return [number for found in _NUMBER.findall(text) if (number := _number_of(found)) is not None]


def _number_of(text: str) -> str | None:
    """Return the last number of a text, in one form for each value; None where there is none."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    return f"{float(found[-1].replace(',', '')):.12g}"


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _without_common(found: Sequence[list[str]]) -> list[list[str]]:
    """Return lists of words without those that most of the lists have."""
    counts: dict[str, int] = {}
    for words in found:
        for word in set(words):
            counts[word] = counts.get(word, 0) + 1
    kept = []
    for words in found:
        kept.append([word for word in words if counts[word] <= _COMMON * len(found)])
    return kept
