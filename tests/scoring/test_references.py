"""What a reward refers to that may change: it has to be called where it was defined."""

import functools
import logging
import math
import os
import random
import re
import sys
import types
from collections import namedtuple
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from trl.rewards import accuracy_reward, think_format_reward

from grpo_hf import completion_text
from grpo_hf.scoring.bytecode import may_look_up
from grpo_hf.scoring.references import references_of

NUMBER, TEXTS, PATTERN, LOG = 3, ("a", "b"), re.compile("a"), logging.getLogger("reward")
FIND = PATTERN.search
WORDS = ["a"]
Point = namedtuple("Point", "x y")
own_module = types.ModuleType("settings_of_mine")
own_module.scale, own_module.words = 2.0, ["a"]


@dataclass(frozen=True)
class Frozen:
    words: tuple[str, ...] = TEXTS


@dataclass
class Answer:
    text: str
    limit = 3

    def value(self) -> float:
        return NUMBER * len(self.text)


class Shared:
    found: list[str] = []  # noqa: RUF012


FROZEN, SHARED = Frozen(), Shared()


def helper(text: str) -> float:
    return NUMBER * len(text)


def spoilt_helper(text: str) -> float:
    return float(text in WORDS)


@lru_cache
def cached() -> float:
    return math.pi


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*given: Any, **named: Any) -> Any:
        return function(*given, **named)

    return wrapper


def closures(number: int, texts: Any) -> tuple[Any, ...]:
    def reads(completions, **_):
        return [number for _ in completions]

    def reads_list(completions, **_):
        return texts

    def writes(completions, **_):
        nonlocal number
        number += 1
        return [number]

    def reads_late(completions, **_):
        return late

    kinds = reads, reads_list, writes, reads_late
    if not kinds:
        late = 1
    return kinds


def constant_everywhere(completions, **_):
    LOG.info("scored")
    print(len(completions), file=sys.stderr)
    scored = [helper(completion_text(text)) + math.log(2) + cached() for text in completions]
    norm = np.linalg.norm([1.0]) + np.float32(1) + torch.tensor([1.0], dtype=torch.float32)
    return [bool(FIND("a")), FROZEN.words, Point(1, 2), Answer("a").value(), scored, norm, os.sep]


def seeded(completions, **_):
    return [random.Random(len(text)).random() for text in completions]


reads, reads_list, writes, reads_late = closures(1, ["a"])


@pytest.mark.parametrize(
    "reward",
    [
        *(constant_everywhere, seeded, reads, decorated(seeded), lambda completions, **_: [1.0]),
        *(partial(seeded, scale=2), torch.no_grad()(seeded), accuracy_reward, think_format_reward),
    ],
    ids=lambda reward: getattr(reward, "__name__", "partial"),
)
def test_constants_may_leave(reward: Any) -> None:
    assert references_of(reward).changeable == ""


def changes_global(completions, **_):
    global NUMBER
    NUMBER += 1


def counts_on_itself(completions, **_):
    counts_on_itself.calls = 1


def imports_when_called(completions, **_):
    from random import choice

    return [choice("ab") for _ in completions]


class Called:
    def __call__(self, completions, **_):
        return []

    def method(self, completions, **_):
        return []


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda completions, **_: WORDS, "WORDS, a list"),
        (lambda completions, **_: spoilt_helper("a"), "WORDS, a list"),
        (decorated(lambda completions, **_: WORDS), "WORDS, a list"),
        (lambda completions, **_: [text for text in completions if text in WORDS], "WORDS"),
        (lambda completions, **_: SHARED, "SHARED, a Shared"),
        (lambda completions, **_: Shared.found, "Shared.found, a list"),
        (lambda completions, **_: own_module.words, "settings_of_mine.words, a list"),
        (lambda completions, **_: random.random(), "random.random, a Random"),
        (lambda completions, **_: np.random.rand(2), "numpy.random.rand, a RandomState"),
        (lambda completions, **_: os.environ["A"], "os.environ"),
        (lambda completions, **_: globals()["WORDS"], "globals()"),
        (lambda completions, **_: UNKNOWN, "UNKNOWN, which has no value yet"),  # noqa: F821
        (lambda completions, seen=[], **_: seen, "a default value, a list"),
        (partial(seeded, words=["a"]), "a list"),
        (partial(Called()), "an object"),
        (Called(), "an object"),
        (Called().method, "a method of a Called"),
        (changes_global, "changes the global variable NUMBER"),
        (counts_on_itself, "may set attributes of counts_on_itself"),
        (imports_when_called, "a Random"),
        (reads_list, "texts, a list"),
        (writes, "changes number"),
        (reads_late, "late, which has no value yet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_change_is_named(reward: Any, said: str) -> None:
    assert said in references_of(reward).changeable


def test_a_module_of_the_user_s_own_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "settings_of_mine", own_module)
    reward = types.FunctionType((lambda completions: own_module.scale).__code__, globals())
    references = references_of(reward)
    assert (references.changeable, references.rebound()) == ("", "")
    monkeypatch.setattr(own_module, "scale", 3.0)
    assert references.rebound() == "settings_of_mine.scale"


def test_a_name_that_is_bound_anew_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    references = references_of(lambda completions: helper("a"))
    assert not references.changeable and not references.rebound()
    monkeypatch.setitem(globals(), "NUMBER", 4)
    assert references.rebound() == "NUMBER"


def test_what_cannot_be_read_stays() -> None:
    class Odd(type):
        def __getattribute__(cls, name: str) -> Any:
            raise RuntimeError("no")

    odd = Odd("odd", (), {})
    assert "cannot be read" in references_of(lambda completions: odd).changeable


def uses_one(completions, **columns):
    return columns["answer"] + columns.get("gold", [])


def hands_on(completions, **columns):
    return uses_one(completions, **columns)


@pytest.mark.parametrize(
    ("reward", "answer", "gold", "trainer_state"),
    [
        (uses_one, True, True, False),
        (hands_on, True, True, True),
        (lambda completions, **columns: [columns for _ in completions], True, True, True),
        (partial(uses_one, gold=[]), True, True, False),
        (lambda completions, **_: [], False, False, False),
        (lambda completions, answer: [], False, False, False),
        (Called(), True, True, True),
    ],
)
def test_what_a_reward_may_look_up(
    reward: Any, answer: bool, gold: bool, trainer_state: bool
) -> None:
    names = ("answer", "gold", "trainer_state")
    assert [may_look_up(reward, name) for name in names] == [answer, gold, trainer_state]
