"""Scoring 512 completions of competition mathematics: our `math` in worker processes against TRL's `accuracy_reward`.

    python -m benchmarks.scoring [--repeats 5] [--threads 2]

Answers are made up: integers, fractions, roots, pairs, intervals and polynomials in LaTeX; every second completion is
wrong, and some right ones are written in another way than the gold answer. Both sides read the same texts, and the exit
code is 1 if they disagree. Times are wall time: TRL's reward runs in one process, ours on as many workers as threads.

The row `hang` puts one `9^{9^{9^9}}` among them: what it costs, in seconds, of the time-out that it may cost. The row
`overhead` is the time per completion of a reward that does nothing, in milliseconds.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from grpo_hf.runs.program import quiet
from grpo_hf.scoring.registry import load_reward
from grpo_hf.scoring.reward import Reward
from grpo_hf.scoring.scored_reward import ScoredReward
from grpo_hf.scoring.scorer import isolate

from .common import OURS, TRL, Row, alternate, comparison, options, prepare, ratio_row, report

COUNT, TIMEOUT = 512, 5.0


def problems(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Gold answers, and completions of which every second is wrong."""
    chance = random.Random(seed)
    golds, texts = [], []
    for index in range(count):
        a, b, c = chance.randint(2, 99), chance.randint(2, 99), chance.choice([2, 3, 5, 7, 11])
        gold, right = chance.choice(
            [
                (f"{a * b}", f"{a * b}"),
                (rf"\frac{{{a}}}{{{a + 1}}}", rf"\dfrac{{{2 * a}}}{{{2 * a + 2}}}"),
                (rf"{a}\sqrt{{{c}}}", rf"\sqrt{{{a * a * c}}}"),
                (f"({a}, {b})", rf"\left({a}, {b}\right)"),
                (rf"[{a}, \infty)", rf"[{a}, \infty)"),
                (f"x^2 + {a}x + {b}", f"{b} + {a}x + x^2"),
            ]
        )
        said = right if index % 2 else str(a + 100 * b + index)
        golds.append(gold)
        steps = " ".join(f"Then ${a + n} + {b} = {a + n + b}$." for n in range(8))
        texts.append(rf"Let us see. {steps} So the answer is $\boxed{{{said}}}$.")
    return golds, texts


def isolated(reward: Reward, workers: int, timeout: float = TIMEOUT) -> tuple[ScoredReward, Any]:
    """A reward in worker processes, warm."""
    entry = ScoredReward(reward)
    process = isolate([entry], workers=workers, timeout=timeout)
    return entry, process


def _messages(texts: Sequence[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def compare(workers: int, repeats: int) -> list[Row]:
    """The three rows."""
    from trl.rewards import accuracy_reward

    batches = [
        problems(COUNT, seed) for seed in range(repeats + 1)
    ]  # new ones each time: both sides keep what they read
    entry, process = isolated(load_reward("math"), workers)
    values: dict[str, list[list[float | None]]] = {TRL: [], OURS: []}

    def trl() -> None:
        golds, texts = batches[len(values[TRL])]
        values[TRL].append(accuracy_reward(_messages(texts), [f"${gold}$" for gold in golds]))

    def ours() -> None:
        golds, texts = batches[len(values[OURS])]
        values[OURS].append(entry(completions=_messages(texts), answer=golds))

    for side in (trl, ours):
        side()
    times = alternate({TRL: trl, OURS: ours}, repeats)
    times = {
        side: [replace(run, cost=run.wall) for run in runs] for side, runs in times.items()
    }  # of all processes
    row = comparison("math", f"{COUNT} completions with `math`, {workers} workers", times)
    ratios = [a.wall / b.wall for a, b in zip(times[TRL], times[OURS], strict=True)]
    right = [bool(index % 2) for index in range(COUNT)]
    row |= ratio_row("math", row["title"], median(ratios), 1.7, ratios) | {
        "value_without_system": None,
        "value_by_wall": None,
        "equal": {
            n: all([v == 1.0 for v in one] == right for one in found) for n, found in values.items()
        },
    }
    golds, texts = batches[0]
    messages = _messages(texts)
    hung = [*messages[:-1], [{"role": "assistant", "content": r"$\boxed{9^{9^{9^9}}}$"}]]
    spent = []
    for completions in (messages, hung):
        start = time.perf_counter()
        found = entry(completions=completions, answer=[*golds[:-1], "12"])
        spent.append(time.perf_counter() - start)
    cost = spent[1] - spent[0]
    hang = ratio_row(
        "hang",
        f"seconds that one 9^{{9^{{9^9}}}} costs; time-out {TIMEOUT:g}",
        cost,
        None,
        [cost],
        " s",
    )
    hang["equal"] = {
        "others": [v == 1.0 for v in found[:-1]] == right[:-1],
        "within": cost < TIMEOUT + 1,
    }
    process.close()

    def nothing(completions: Sequence[Any], **columns: Any) -> list[float]:
        return [1.0]

    entry, process = isolated(load_reward(nothing), workers)
    entry(completions=messages, answer=golds)
    each = []
    for _ in range(repeats):
        start = time.perf_counter()
        entry(completions=messages, answer=golds)
        each.append(1000 * (time.perf_counter() - start) / COUNT)
    process.close()
    overhead = ratio_row(
        "overhead",
        "milliseconds per completion of a reward that does nothing",
        median(each),
        None,
        each,
        " ms",
    )
    return [row, hang, overhead]


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = options(__doc__)
    parser.set_defaults(threads=2)
    arguments = parser.parse_args(given)
    quiet()
    prepare(arguments)
    report("scoring", compare(arguments.threads, arguments.repeats), arguments)


if __name__ == "__main__":
    main()
