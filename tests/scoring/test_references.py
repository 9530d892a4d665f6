"""What a reward refers to that may change: it has to be called where it was defined."""

import decimal
import enum
import functools
import importlib
import inspect
import json
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
from os import getenv as read_environment
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from trl.rewards import accuracy_reward, think_format_reward

from grpo_hf import completion_text
from grpo_hf.scoring import constants
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


@dataclass(frozen=True)
class Nothing:
    """A constant without parts."""


@dataclass
class Answer:
    text: str
    limit = 3

    def value(self) -> float:
        return NUMBER * len(self.text)


class Shared:
    found: list[str] = []  # noqa: RUF012


FROZEN, NOTHING, SHARED = Frozen(), Nothing(), Shared()


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
    print(len(completions))
    scored = [helper(completion_text(text)) + math.log(2) for text in completions]
    norm = np.linalg.norm([1.0]) + np.float32(1)
    return [
        bool(FIND("a")),
        NOTHING,
        FROZEN.words,
        Point(1, 2),
        Answer("a").value(),
        scored,
        norm,
        os.sep,
    ]


def seeded(completions, **_):
    return [random.Random(len(text)).random() for text in completions]


reads, reads_list, writes, reads_late = closures(1, ["a"])


@pytest.mark.parametrize(
    "reward",
    [
        *(constant_everywhere, seeded, reads, decorated(seeded), lambda completions, **_: [1.0]),
        *(partial(seeded, scale=2), accuracy_reward, think_format_reward),
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


def imports_a_sibling(completions, **_):
    from .words import WORDS as words  # type: ignore[import-not-found]

    return words


@functools.singledispatch
def dispatched(value):
    return 1.0


@dispatched.register
def _of_text(value: str):
    return 2.0


vectorized = np.vectorize(spoilt_helper)


@dataclass(frozen=True)
class Reader:
    factor: float = 1.0

    def read(self):
        return WORDS


class Reading(NamedTuple):
    factor: float = 1.0

    def read(self):
        return WORDS


class Mode(enum.Enum):
    ONE = 1

    def read(self):
        return WORDS


class Counted:
    calls = 0

    @classmethod
    def add(cls, count):
        cls.calls += count


class Held(enum.Enum):
    WORDS = ["a"]  # noqa: RUF012


class Grade(enum.Enum):
    BEST = 1


class Weight(float):
    """A number with room for attributes."""


class Measured(type):
    total = 0

    @property
    def level(cls) -> int:
        return Measured.total


class Level(metaclass=Measured):
    pass


class Ancestor:
    level = 0


class Child(Ancestor):
    pass


READER, READING, WEIGHT = Reader(), Reading(), Weight(1)
WEIGHT.bonus = 1  # type: ignore[attr-defined]


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
        (lambda completions, **_: inspect.currentframe(), "inspect.currentframe, which is about"),
        (lambda completions, **_: os.getenv("A"), "os.getenv, which is about the process"),
        (lambda completions, **_: read_environment("A"), "read_environment, which is about"),
        (lambda completions, **_: decimal.Decimal(1) / 3, "decimal.Decimal, which is about"),
        (lambda completions, **_: LOG.info("scored"), "LOG, a Logger"),
        (lambda completions, **_: torch.rand(2), "torch.rand, which is about"),
        (lambda completions, **_: print("a", file=sys.stderr), "sys.stderr, which is about"),
        (lambda completions, **_: cached(), "cached, which keeps what it has returned"),
        (lambda completions, **_: getattr(helper, "factor", 1), "getattr()"),
        (lambda completions, **_: eval("WORDS"), "eval()"),
        (lambda completions, **_: dispatched("a"), "dispatched, whose decorator may"),
        (lambda completions, **_: vectorized("a"), "vectorized, a vectorize"),
        (lambda completions, **_: READER.read(), "WORDS, a list"),
        (lambda completions, **_: READING.read(), "WORDS, a list"),
        (lambda completions, **_: Mode.ONE.read(), "WORDS, a list"),
        (lambda completions, **_: Held.WORDS.value, "_value_, a list"),
        (lambda completions, **_: WEIGHT, "WEIGHT, a Weight"),
        (lambda completions, **_: Counted.add(1), "sets the attribute calls"),
        (imports_a_sibling, "imports .words when it is called"),
        (lambda completions, **_: globals()["WORDS"], "globals()"),
        (lambda completions, **_: UNKNOWN, "UNKNOWN, which has no value yet"),  # noqa: F821
        (lambda completions, seen=[], **_: seen, "a default value, a list"),
        (partial(seeded, words=["a"]), "a list"),
        (partial(Called()), "an object"),
        (Called(), "an object"),
        (Called().method, "a method of a Called"),
        (changes_global, "changes the global variable NUMBER"),
        (counts_on_itself, "sets the attribute calls"),
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


def test_a_method_that_is_replaced_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    references = references_of(lambda completions: Answer("a").value())
    assert not references.changeable and not references.rebound()
    monkeypatch.setattr(Answer, "value", lambda self: 1.0)
    assert references.rebound() == "Answer.value"


@pytest.mark.parametrize(
    ("reward", "moved", "attribute", "said"),
    [
        (lambda completions: Child.level, Child, "level", "Child.level"),
        (lambda completions: Level.level, Measured, "total", "Measured.total"),
        (lambda completions: Grade.BEST.value, Grade.BEST, "_value_", "Grade.BEST._value_"),
        (lambda completions: FROZEN.words, FROZEN, "words", "FROZEN.words"),
        (lambda completions: helper("a"), helper, "__defaults__", "helper.__defaults__"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_seldom_moved_is_watched(
    reward: Any, moved: Any, attribute: str, said: str
) -> None:
    references = references_of(reward)
    assert (references.changeable, references.rebound()) == ("", "")
    before = vars(moved).get(attribute, helper.__defaults__)
    # A frozen data class has to be gone round.
    put = type.__setattr__ if isinstance(moved, type) else object.__setattr__
    put(moved, attribute, ("b",))
    try:
        assert references.rebound() == said
    finally:
        if moved is Child:
            del Child.level
        else:
            put(moved, attribute, before)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "LEVELS, a list"),
        ({"dir_info": {}}, "LEVELS, a list"),
        ({"vcs_info": {"vcs": "git"}}, "LEVELS, a list"),
        ({}, ""),
        ({"archive_info": {}}, ""),
    ],
)
def test_a_package_that_was_installed_from_its_source_may_be_the_program_s_own(
    source: Any, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "state_of_mine.py").write_text(
        "LEVELS = [0]\ndef score(text):\n    return LEVELS[0]\n"
    )
    if source is not None:
        about = folder / "state_of_mine-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Name: state-of-mine\nVersion: 1.0\n")
        (about / "RECORD").write_text("state_of_mine.py,,\n")
        if source:
            (about / "direct_url.json").write_text(json.dumps({"url": "file:///x", **source}))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "state_of_mine", raising=False)
    module = importlib.import_module("state_of_mine")
    for known in (constants._distributions, constants._is_published):
        known.cache_clear()
    code = (lambda completions: state_of_mine.score("a")).__code__  # type: ignore[name-defined]  # noqa: F821
    reward = types.FunctionType(code, {**globals(), "state_of_mine": module})
    found = references_of(reward).changeable
    assert (said in found) if said else found == ""


def test_an_installed_package_is_the_reward_s_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "site-packages" / "package_of_rewards"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "state.py").write_text("words = []\n")
    (package / "rewards.py").write_text(
        "from . import state\ndef reward(completions, **_):\n    return state.words\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    reward = importlib.import_module("package_of_rewards.rewards").reward
    assert "state.words, a list" in references_of(reward).changeable


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


@pytest.mark.parametrize(
    "before, after, is_mistake",
    [
        ("", "", True),
        ("", "completon_text = str\n", False),
        ("", "def later():\n    global completon_text\n    completon_text = str\n", False),
        ("from os.path import *\n", "", False),
        ("globals().update(completon=1)\n", "", False),
    ],
)
def test_a_name_that_its_file_defines_nowhere_is_a_typing_error(
    before: str, after: str, is_mistake: bool, tmp_path: Path
) -> None:
    text = (
        f"{before}from grpo_hf import completion_text\ndef mine(completions, **_):\n"
        f"    return [len(completon_text(text)) for text in completions]\n{after}"
    )
    file = tmp_path / "typo.py"
    file.write_text(text)
    # As where the reward is looked at before the file has been read to its end.
    names: dict[str, Any] = {"__name__": "typo"}
    exec(compile(text, str(file), "exec"), names)
    names.pop("completon_text", None)
    undefined = references_of(names["mine"]).undefined
    assert bool(undefined) == is_mistake
    assert not is_mistake or undefined == (
        "it refers to completon_text, which typo.py defines nowhere. Did you mean "
        "'completion_text'?"
    )
