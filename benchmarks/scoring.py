"""Compare the scoring of 512 completions: our `math` in workers, TRL's `accuracy_reward`.

    python -m benchmarks.scoring [--repeats 5] [--threads 2]

The completions answer made-up problems of competition mathematics: integers, fractions, roots,
pairs, intervals and polynomials in LaTeX. Every second completion is wrong. Some correct ones are
written in another form than the gold answer. Both sides read the same texts, and the exit code is 1
if they disagree. Times are wall times: TRL's reward runs in one process, ours in one worker per
thread.

The row `hang` is the time, in seconds, that one completion costs whose reward computes 9^9^9^9. It
must not exceed the timeout of a reward by more than a second. The rows `overhead` and
`overhead_whole` are the time per completion of a reward that does next to nothing, in milliseconds,
called for each completion and with all of them; half a millisecond is allowed.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from grpo_hf import reward_settings
from grpo_hf.runs.program import quiet
from grpo_hf.scoring.registry import load_reward
from grpo_hf.scoring.reward import Reward
from grpo_hf.scoring.run_rewards import isolate
from grpo_hf.scoring.scored_reward import ScoredReward

from .common import OURS, TRL, Row, options, prepare, report
from .timing import Time, alternate, comparison, ratio_row

# Completions of a batch.
COUNT = 512

# Seconds after which a worker gives a completion up.
TIMEOUT = 5.0

# Seconds beside the timeout that a hanging completion may cost, for the restart of its worker.
RESTART_SECONDS = 1

# TRL's time has to be at least this many times ours.
BAR = 1.7

# Lines of reasoning in a completion.
STEPS = 8

# The completion that the reward of the row `hang` takes too long for.
HANGING = "9^9^9^9"
MILLISECONDS = 1000

# Milliseconds per completion that a reward which does nothing may cost, called for each of them and
# with all of them.
MOST_OVERHEAD = 0.5
OVERHEADS = {
    "overhead": "milliseconds per completion of a reward that does nothing, called for each",
    "overhead_whole": "milliseconds per completion of a reward that does nothing, called once",
}


def problems(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return gold answers, and completions of which every second one is wrong."""
    chance = random.Random(seed)
    golds = []
    texts = []
    for index in range(count):
        a = chance.randint(2, 99)
        b = chance.randint(2, 99)
        c = chance.choice([2, 3, 5, 7, 11])
        gold, correct = chance.choice(answer_forms(a, b, c))
        golds.append(gold)
        # A wrong answer is a number, different for every completion.
        answer = correct if index % 2 else str(a + 100 * b + index)
        steps = []
        for n in range(STEPS):
            steps.append(f"Then ${a + n} + {b} = {a + n + b}$.")
        texts.append(rf"Let us see. {' '.join(steps)} So the answer is $\boxed{{{answer}}}$.")
    return golds, texts


def answer_forms(a: int, b: int, c: int) -> list[tuple[str, str]]:
    """Return pairs of a gold answer and a correct answer, one for each kind of expression."""
    return [
        (f"{a * b}", f"{a * b}"),
        (rf"\frac{{{a}}}{{{a + 1}}}", rf"\dfrac{{{2 * a}}}{{{2 * a + 2}}}"),
        (rf"{a}\sqrt{{{c}}}", rf"\sqrt{{{a * a * c}}}"),
        (f"({a}, {b})", rf"\left({a}, {b}\right)"),
        (rf"[{a}, \infty)", rf"[{a}, \infty)"),
        (f"x^2 + {a}x + {b}", f"{b} + {a}x + x^2"),
    ]


def isolated(reward: Reward, workers: int, timeout: float = TIMEOUT) -> tuple[ScoredReward, Any]:
    """Return a reward that scores in workers, and the process that owns the workers."""
    entry = ScoredReward(reward)
    process = isolate([entry], workers=workers, timeout=timeout)
    return entry, process


def _messages(texts: Sequence[str]) -> list[list[dict[str, str]]]:
    return [[_message(text)] for text in texts]


def _message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def compare(workers: int, repeats: int) -> list[Row]:
    """Return the four rows."""
    # A new batch for each repeat and one for the warm-up, because both sides cache what they read.
    batches = []
    for seed in range(repeats + 1):
        batches.append(problems(COUNT, seed))
    entry, process = isolated(load_reward("math"), workers)
    math = compare_math(entry, batches, workers, repeats)
    process.close()
    texts = batches[0][1]
    rows = [math, time_hang(texts, workers)]
    for name, settings in (("overhead", {"batched": False}), ("overhead_whole", {"batched": True})):
        rows.append(time_overhead(name, settings, texts, workers, repeats))
    return rows


def compare_math(
    entry: ScoredReward, batches: list[tuple[list[str], list[str]]], workers: int, repeats: int
) -> Row:
    """Return the row `math`: TRL's time over ours."""
    from trl.rewards import accuracy_reward

    # The rewards of every batch. Their number says which batch is next.
    values: dict[str, list[list[float | None]]] = {TRL: [], OURS: []}

    def trl() -> None:
        golds, texts = batches[len(values[TRL])]
        solutions = [f"${gold}$" for gold in golds]
        values[TRL].append(accuracy_reward(_messages(texts), solutions))

    def ours() -> None:
        golds, texts = batches[len(values[OURS])]
        values[OURS].append(entry(completions=_messages(texts), answer=golds))

    # The warm-up.
    trl()
    ours()
    times = by_wall_time(alternate({TRL: trl, OURS: ours}, repeats))
    row = comparison("math", f"{COUNT} completions with `math`, {workers} workers", times)
    ratios = []
    for trl_time, our_time in zip(times[TRL], times[OURS], strict=True):
        ratios.append(trl_time.wall / our_time.wall)
    row |= ratio_row("math", row["title"], median(ratios), BAR, ratios)
    # The value is by wall time already.
    row["value_without_system"] = None
    row["value_by_wall"] = None
    row["equal"] = {side: are_correct(of_batches) for side, of_batches in values.items()}
    return row


def by_wall_time(times: dict[str, list[Time]]) -> dict[str, list[Time]]:
    """Return times whose cost is wall time: CPU time does not include that of other processes."""
    result = {}
    for side, runs in times.items():
        result[side] = [replace(run, cost=run.wall) for run in runs]
    return result


def full_marks(values: Sequence[float | None]) -> list[bool]:
    """Return for each reward whether it is the full mark."""
    return [value == 1.0 for value in values]


def expected_marks(count: int) -> list[bool]:
    """Return for each completion of `problems` whether it is correct."""
    return [bool(index % 2) for index in range(count)]


def are_correct(of_batches: Sequence[Sequence[float | None]]) -> bool:
    """Return whether the rewards of all batches are right."""
    expected = expected_marks(COUNT)
    return all(full_marks(values) == expected for values in of_batches)


def time_hang(texts: list[str], workers: int) -> Row:
    """Return the row `hang`: what one completion that hangs costs, in seconds."""

    @reward_settings(batched=False)
    def power(completions: Sequence[Any], **columns: Any) -> list[float]:
        if completions[0][0]["content"] == HANGING:
            # One operation of Python, which nothing but the end of the process interrupts.
            return [float(9**9**9**9 > 0)]
        return [1.0]

    entry, process = isolated(load_reward(power), workers)
    messages = _messages(texts)
    hanging = [*messages[:-1], [_message(HANGING)]]
    # The first call starts the workers.
    entry(completions=messages)
    seconds = []
    for completions in (messages, hanging):
        start = time.perf_counter()
        values = entry(completions=completions)
        seconds.append(time.perf_counter() - start)
    process.close()
    without_hang, with_hang = seconds
    cost = with_hang - without_hang
    title = f"seconds that one 9^9^9^9 costs; time-out {TIMEOUT:g}"
    row = ratio_row("hang", title, cost, None, [cost], " s")
    row["equal"] = {
        # The other completions have to be scored as if nothing had happened.
        "others": full_marks(values[:-1]) == [True] * (COUNT - 1),
        "within": cost < TIMEOUT + RESTART_SECONDS,
    }
    return row


def time_overhead(
    name: str, settings: dict[str, bool], texts: list[str], workers: int, repeats: int
) -> Row:
    """Return the time per completion of a reward that does next to nothing.

    Args:
        name: of the row.
        settings: what the reward says of itself; what it does not say is found out before.
    """

    def lengths(completions: Sequence[Any], **columns: Any) -> list[float]:
        return [float(len(messages[0]["content"])) for messages in completions]

    messages = _messages(texts)
    entry, process = isolated(load_reward(reward_settings(**settings)(lengths)), workers)
    # The first calls start the workers, and measure how the reward may be called.
    for _ in range(3):
        entry(completions=messages)
    each = []
    for _ in range(repeats):
        start = time.perf_counter()
        entry(completions=messages)
        each.append(MILLISECONDS * (time.perf_counter() - start) / COUNT)
    process.close()
    row = ratio_row(name, OVERHEADS[name], median(each), None, each, " ms")
    row["equal"] = {"below": median(each) < MOST_OVERHEAD}
    return row


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark that the flags describe."""
    parser = options(__doc__)
    # One worker per thread; the other benchmarks use one thread.
    parser.set_defaults(threads=2)
    arguments = parser.parse_args(given)
    quiet()
    prepare(arguments)
    report("scoring", compare(arguments.threads, arguments.repeats), arguments)


if __name__ == "__main__":
    main()
