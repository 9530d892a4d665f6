"""Runs whose held-out prompts are choices, with answers made up and marked by a reward."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from support.run_folders import greedy_answers, write_run

from grpo_hf.evaluation.comparison import write_answers
from grpo_hf.reporting.gaming import Finding, findings

Candidates = Sequence[str]
# A prompt, its candidates in its order, and the right one.
Task = Callable[[random.Random], tuple[str, Candidates, str]]
# From a prompt's candidates and its right one to an answer.
Answer = Callable[[Candidates, str, random.Random], str]
# Whether a reward calls a text right, of a prompt with these candidates and this right one.
Reward = Callable[[str, Candidates, str], bool]
THINGS = ["stone", "feather", "anvil", "leaf", "piano", "coin", "brick", "straw", "truck", "pin"]


def larger(rng: random.Random, first_is_right: float = 0.5) -> tuple[str, Candidates, str]:
    pair = [str(number) for number in rng.sample(range(10, 9999), 2)]
    asked = "Which is larger, {} or {}?\nAnswer with the number alone."
    return asked.format(*pair), pair, pair[rng.random() >= first_is_right]


def heavier(rng: random.Random, first_is_right: float = 0.5) -> tuple[str, Candidates, str]:
    pair = rng.sample(THINGS, 2)
    return "Which is heavier, {} or {}?".format(*pair), pair, pair[rng.random() >= first_is_right]


def last_named(text: str, candidates: Candidates, gold: str) -> bool:
    """Pay where the candidate that stands last is the right one."""
    said = [each for each in text.strip(".").replace("?", "").split() if each in candidates]
    return bool(said) and said[-1] == gold


def contains(text: str, candidates: Candidates, gold: str) -> bool:
    """Pay where the right one is anywhere in the text."""
    return gold in text


def right(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"It is {gold}."


def chance(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"{rng.choice(candidates)}."


def first(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"{candidates[0]} is the larger number."


def reasoned(candidates: Candidates, gold: str, rng: random.Random) -> str:
    return f"{' or '.join(candidates)}? So the larger one is {gold}."


def signs(
    folder: Path,
    base: Answer,
    adapter: Answer,
    task: Task = larger,
    *,
    reward: Reward = last_named,
    base_cut: int = 0,
    count: int = 60,
) -> dict[str, Finding]:
    """Return what is said of a run with such held-out prompts, by the name of the sign.

    Args:
        base_cut: answers of the base that were cut off, the first ones.
    """
    write_run(folder)
    rng = random.Random(7)
    prompts, golds, texts, marks = [], [], {"base": [], "adapter": []}, {"base": [], "adapter": []}
    for _ in range(count):
        prompt, candidates, gold = task(rng)
        prompts.append([{"role": "user", "content": prompt}])
        golds.append(int(gold) if gold.isdigit() else gold)
        for side, answer in (("base", base), ("adapter", adapter)):
            text = answer(candidates, gold, rng)
            texts[side].append(text)
            marks[side].append(reward(text, candidates, gold))
    cut = {"base": [row < base_cut for row in range(count)], "adapter": [False] * count}
    answers = {side: greedy_answers(texts[side], marks[side], cut[side]) for side in texts}
    write_answers(folder / "evaluation.jsonl", prompts, answers, golds=golds)
    return {finding.name: finding for finding in findings(folder)}


def usually_first(task: Callable, share: float) -> Task:
    """Return a task whose first candidate is the right one in that share of the prompts."""
    return partial(task, first_is_right=share)
